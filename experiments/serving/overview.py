"""The page at `/`: how budgets stand, what they went to, and the newest requests; no text of any question or answer.

It has no script, and loads nothing: its style is in it, and the policy that goes with it allows that style alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jinja2

from experiments.serving.amounts import Plan
from experiments.templating import templates
from roi_env.answering.books import DatabaseLedger
from roi_env.sources.units import cost_text, cost_with_unit

if TYPE_CHECKING:
    from experiments.serving.budget import Budget

NEWEST = 2000
"""Requests that tell what a budget went to."""
SHOWN = 20
"""Newest requests in the table."""
BARS = 48
"""Of the chart."""
LONGEST = 30 * 86400.0
"""Seconds that the chart shows at most."""


@cache
def _template() -> tuple[jinja2.Template, str]:
    """The page, and the policy that goes with it."""
    environment = templates()
    environment.filters["n"] = lambda number: f"{number:,}"
    page = environment.get_template("budgets.html.j2")
    style = re.search("<style>(.*?)</style>", page.render(budgets=[], now=""), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    rules = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, rules


async def page(budgets: Sequence[Budget]) -> tuple[str, dict[str, str]]:
    """The page on these budgets, and its headers.

    :raises BooksAway: where their books are not there.
    """
    template, rules = _template()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    headers = {
        "content-security-policy": rules,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    told = [await one.clerk.look(partial(overview, one.plan)) for one in budgets]
    return template.render(budgets=told, now=now), headers


def overview(plan: Plan, ledger: DatabaseLedger) -> dict[str, Any]:
    """What the page tells of a budget."""
    unit, standing = plan.unit, ledger.standing()
    rows = [_request(one) for one in ledger.newest(NEWEST)]
    settled = [row for row in rows if row["charged"] is not None]
    answered = [row["charged"] for row in settled if row["tier"] != "skip"]
    decisions = [row["charged"] for row in settled if row["tier"] == "skip"]
    mean = sum(answered) / len(answered) if answered else 0.0
    held = standing.charged + standing.reserved
    numbers = {
        "charged": standing.charged,
        "reserved": standing.reserved,
        "left": max(0, standing.limit - held),
    }
    whole = max(1, standing.limit, held)
    return {
        "name": plan.name,
        "period": plan.period,
        "unit": "tokens" if unit == "tokens" else "US dollars",
        "cost": lambda cost: cost_text(cost, unit),
        "told": lambda cost: cost_with_unit(cost, unit),
        "amount": standing.limit,
        **numbers,
        "asked": ledger.asked,
        "bar": {name: round(100 * numbers[name] / whole, 2) for name in ("charged", "reserved")},
        "chart": _chart(ledger),
        "mix": [
            {
                "tier": tier,
                "count": count,
                "share": round(100 * count / len(rows), 1),
                "charged": sum(row["charged"] for row in settled if row["tier"] == tier),
            }
            for tier, count in Counter(row["tier"] for row in rows).most_common()
        ],
        "counted": len(rows),
        "skipped": len(decisions),
        "mean": round(mean),
        "saved": max(0, round(len(decisions) * mean) - sum(decisions)),
        "rows": rows[:SHOWN],
    }


def _request(one: dict[str, Any]) -> dict[str, Any]:
    """A request as the page shows it."""
    key, facts = one["key"], one["facts"] or {}
    tiers = one["settings"].get("tiers", [])
    action = key[2] if len(key) == 4 else 0
    if facts.get("skipped"):
        tier = "skip"
    else:
        tier = str(tiers[action - 1][0]) if 0 < action <= len(tiers) else "unknown"
    if one["charged"] is None:
        what = "in flight"
    elif one["facts"] is None:
        what = "lost with its proxy"
    elif facts.get("error"):
        what = "failed"
    else:
        what = "skipped" if tier == "skip" else "cut" if facts.get("finish") == "length" else "answered"
    return {
        "time": datetime.fromtimestamp(one["began"], UTC).strftime("%m-%d %H:%M:%S"),
        "tier": tier,
        "what": what,
        "charged": one["charged"],
        "reserved": one["reserved"],
        "seconds": None if one["ended"] is None else f"{one['ended'] - one['began']:.1f}",
    }


def _chart(ledger: DatabaseLedger) -> dict[str, Any]:
    """What was charged over time, in bars."""
    now = time.time()
    first = ledger.first(now - LONGEST)
    width = max(60, int((now - (now if first is None else first)) / BARS) + 1)
    begin = int(now) // width - BARS + 1
    charged = ledger.charged_by(width, begin * width)
    most = max([1, *charged.values()])
    bars = [
        {
            "x": place * 10,
            "height": round(100 * charged.get(begin + place, 0) / most, 2),
            "charged": charged.get(begin + place, 0),
            "time": datetime.fromtimestamp((begin + place) * width, UTC).strftime("%m-%d %H:%M"),
        }
        for place in range(BARS)
    ]
    return {"bars": bars, "most": most, "begins": bars[0]["time"], "width": _span(width)}


def _span(seconds: int) -> str:
    """A span of time in words."""
    for name, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds} s"
