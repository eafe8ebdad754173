"""What our own tables and journals say beside their rows: level edges, caps, the cost of a decision, pairing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from roi_env.sources.importing.files import LogFile, printable
from roi_env.sources.importing.generations import Report

_MAPS = ("level_edges", "tier_caps")


def joined(
    files: Sequence[LogFile], labels: Sequence[tuple[str, str]], numbered: bool, report: Report
) -> dict[str, str]:
    """Metadata of the table of rows that came from ``files`` (one a row) and have the (menu, tier) ``labels``.

    :param numbered: whether rows keep the numbers of their samples; else no pairing can.
    :raises LogError: where two files differ in a term of the same tier, or in the cost of a decision.
    """
    rows: dict[str, tuple[LogFile, set[tuple[str, str]]]] = {}
    for file, label in zip(files, labels, strict=True):
        rows.setdefault(str(file.path), (file, set()))[1].add(label)
    found: dict[str, dict[str, dict[str, int]]] = {name: {} for name in _MAPS}
    costs: dict[int, str] = {}
    for file, here in rows.values():
        if (terms := file.terms) is None:
            continue
        for name in _MAPS:
            for menu, tiers in getattr(terms, name).items():
                for tier, tokens in tiers.items():
                    if (menu, tier) not in here:
                        report.warn(
                            f"{file.path.name}: {name} of tier {tier!r} of menu {menu!r} are left out: it has no rows of that name here"
                        )
                        continue
                    before = found[name].setdefault(menu, {}).setdefault(tier, tokens)
                    if before != tokens:
                        raise file.error(
                            f"{name} of tier {tier!r} of menu {menu!r} is {tokens} in it and {before} in another file: import them apart, "
                            "or tell their menus apart with --column menu={file}"
                        )
        if terms.decision_cost is not None:
            for other, path in costs.items():
                if other != terms.decision_cost:
                    raise file.error(
                        f"a decision costs {terms.decision_cost} in it and {other} in {path}: import them apart"
                    )
            costs[terms.decision_cost] = printable(str(file.path))
        if terms.pairing and not (numbered and len(rows) == 1):
            report.warn(
                f"{file.path.name}: its samples are paired across tiers, those of this table are not: "
                + ("several files do not share thoughts" if numbered else "samples were numbered anew")
            )
    paired = numbered and len(rows) == 1 and all(file.terms is not None and file.terms.pairing for file in files[:1])
    return {
        **{name: json.dumps(value) for name, value in found.items()},
        "decision_cost": str(next(iter(costs), 0)),
        "pairing": str(paired).lower(),
    }
