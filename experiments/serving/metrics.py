"""What `roi serve` tells of itself: numbers for Prometheus and one line of a log for every request, neither with texts."""

from __future__ import annotations

import json
import logging
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Seconds up to which requests are counted together."""

_access = logging.getLogger("roi.access")


def log_to_stderr() -> None:
    """Write the access log, which nobody sees otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _access.addHandler(handler)
    _access.setLevel(logging.INFO)
    _access.propagate = False


@dataclass
class _Times:
    """A histogram of seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass
class Visit:
    """One request, from its arrival to its end.

    :param budget: that it reached; empty: none, by a known name.
    :param path: empty: none that there is.
    :param tier: None: not decided; "skip": not answered.
    :param status: of HTTP.
    :param code: of the error that it ended with.
    :param first: seconds to the first chunk of a stream.
    """

    budget: str
    path: str
    begun: float = field(default_factory=time.perf_counter)
    tier: str | None = None
    charged: int = 0
    prompt: int | None = None
    usd: float | None = None
    status: int = 200
    code: str | None = None
    stream: bool = False
    first: float | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.begun


def log(visit: Visit) -> None:
    """Write the line of a request."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "budget": visit.budget or None,
        "path": visit.path or None,
        "status": visit.status,
        "code": visit.code,
        "tier": visit.tier,
        "tokens": visit.charged,
        "prompt_tokens": visit.prompt,
        "usd": visit.usd,
        "stream": visit.stream,
        "seconds": round(visit.seconds, 4),
    }
    _access.info(json.dumps(line))


class Metrics:
    """Counts since this process began; what was charged is the budgets' own, over restarts."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._tiers: dict[tuple[str, str], int] = defaultdict(int)
        self._refusals: dict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[str, _Times] = defaultdict(_Times)
        self._first: dict[str, _Times] = defaultdict(_Times)

    def ended(self, visit: Visit) -> None:
        """Count a request, and log it."""
        log(visit)
        self._requests[visit.budget, visit.path, visit.status] += 1
        self._seconds[visit.budget].add(visit.seconds)
        if visit.tier is not None:
            self._tiers[visit.budget, visit.tier] += 1
        if visit.code is not None:
            self._refusals[visit.budget, visit.code] += 1
        if visit.first is not None:
            self._first[visit.budget].add(visit.first)

    def text(self, budgets: Iterable[Mapping[str, Any]]) -> str:
        """Everything, as Prometheus reads it.

        :param budgets: the state of each.
        """
        lines: list[str] = []

        def tell(name: str, kind: str, help_: str, values: Iterable[tuple[Mapping[str, str], int]]) -> None:
            lines.extend((f"# HELP {name} {help_}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{_labels(labels)} {value}" for labels, value in values)

        told = list(budgets)
        unit = told[0]["unit"] if told else "tokens"
        what = "Tokens" if unit == "tokens" else "US dollars"
        for key, name, kind, help_ in (
            (unit, f"roi_budget_{unit}", "gauge", f"{what} of the budget."),
            ("charged", f"roi_charged_{unit}_total", "counter", f"{what} charged, earlier processes included."),
            ("reserved", f"roi_reserved_{unit}", "gauge", f"{what} reserved by requests in flight."),
            ("remaining", f"roi_remaining_{unit}", "gauge", f"{what} neither charged nor reserved."),
            ("in_flight", "roi_requests_in_flight", "gauge", "Requests at the endpoint."),
            ("waiting", "roi_requests_waiting", "gauge", "Requests that wait for their turn."),
            (
                "database_up",
                "roi_database_up",
                "gauge",
                "0: the database is away, and how the budget stood last is told.",
            ),
        ):
            lines.extend((f"# HELP {name} {help_}", f"# TYPE {name} {kind}"))
            lines.extend(f"{name}{_labels({'budget': one['budget']})} {one[key]}" for one in told)
        tell(
            "roi_requests_total", "counter", "Requests answered, by status.",
            (({"budget": b, "path": p, "status": str(s)}, n) for (b, p, s), n in sorted(self._requests.items())),
        )  # fmt: skip
        tell(
            "roi_refusals_total", "counter", "Requests that ended with an error, by its code.",
            (({"budget": b, "code": c}, n) for (b, c), n in sorted(self._refusals.items())),
        )  # fmt: skip
        tell(
            "roi_tier_choices_total", "counter", "Decisions, by tier; skip: not answered.",
            (({"budget": b, "tier": t}, n) for (b, t), n in sorted(self._tiers.items())),
        )  # fmt: skip
        for name, help_, times in (
            ("roi_request_seconds", "Seconds from a request to the end of its answer.", self._seconds),
            ("roi_first_chunk_seconds", "Seconds from a request to the first chunk of its stream.", self._first),
        ):
            lines.extend((f"# HELP {name} {help_}", f"# TYPE {name} histogram"))
            for budget, one in sorted(times.items()):
                below = 0
                for bound, count in zip((*BOUNDS, "+Inf"), one.counts, strict=True):
                    below += count
                    lines.append(f"{name}_bucket{_labels({'budget': budget, 'le': str(bound)})} {below}")
                lines.append(f"{name}_sum{_labels({'budget': budget})} {one.total:.6f}")
                lines.append(f"{name}_count{_labels({'budget': budget})} {below}")
        return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}"
