"""Our own journals of a model in this process (``roi record MODEL``): settings, then a line a (question, sample).

Journals of endpoints hold texts without a judgement: ``roi regrade`` judges them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from roi_env.sources.importing.files import LogError, LogFile, Terms
from roi_env.sources.importing.generations import Generation, Options, Report, text_of


def matches(file: LogFile, first: Any) -> bool:
    """A first line with settings that name tiers."""
    return (
        file.kind == "lines"
        and isinstance(first, dict)
        and isinstance(first.get("tiers"), list)
        and "temperature" in first
    )


def is_endpoints(first: Any) -> bool:
    """Whether the settings are those of an endpoint's recording."""
    return isinstance(first, dict) and "menu" in first


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of all tiers of every line; a torn last line is counted."""
    lines = file.lines()
    settings = file.parsed(next(lines)[1], "a journal", ", line 1")
    if is_endpoints(settings):
        raise file.error(
            "is the journal of an endpoint's recording: its answers are not judged in it. Import it alone, with --grader NAME",
            is_log=True,
        )
    tiers = [text_of(tier[0]) if isinstance(tier, list) and tier else text_of(tier) for tier in settings["tiers"]]
    _read_terms(file, settings, tiers, report)
    for number, line in lines:
        place = f"line {number}"
        try:
            record = file.parsed(line, "a journal", f", {place}")
        except LogError:
            # A process that was killed leaves half a line.
            report.dropped["a line of a journal that cannot be read"] += 1
            continue
        outcomes = record.get("tiers") if isinstance(record, dict) else None
        if not isinstance(outcomes, list) or len(outcomes) != len(tiers):
            raise file.error(f"{place} has not one outcome for each of the tiers {tiers}")
        for order, (tier, outcome) in enumerate(zip(tiers, outcomes, strict=True), 1):
            if not isinstance(outcome, dict):
                raise file.error(f"{place}: the outcome of tier {tier!r} is no object")
            yield Generation(
                score=outcome.get("correct"),
                dataset=text_of(record.get("dataset")),
                question_id=text_of(record.get("question_id")),
                menu=_menu(settings),
                tier=tier,
                tier_order=order,
                tokens=outcome.get("tokens"),
                text=outcome.get("text"),
                thought=outcome.get("reasoning"),
                sample=record.get("sample"),
                place=place,
            )


def _menu(settings: Mapping[str, Any]) -> str:
    return text_of(settings.get("model")) or "model"


def _read_terms(file: LogFile, settings: Mapping[str, Any], tiers: list[str], report: Report) -> None:
    """Most tokens of every tier: those of its thought and its answer."""
    limits = [tier[1:] for tier in settings["tiers"] if isinstance(tier, list)]
    if len(limits) == len(tiers) and all(len(one) == 2 and all(type(most) is int for most in one) for one in limits):
        # A thought that is cut costs its forced end besides.
        most = [thinking + answer + (thinking > 0) for thinking, answer in limits]
        caps = {_menu(settings): dict(zip(tiers, most, strict=True))}
        file.terms = Terms(caps, caps)
    report.note(
        f"{file.path.name}: a journal has no texts of questions, and does not tell what a decision costs or whether samples are paired across tiers: the same "
        "`roi record` writes a table that does"
    )
