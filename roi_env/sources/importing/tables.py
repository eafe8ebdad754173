"""Generations of any logs as one outcome table."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from roi_env.sources.importing.files import LogError, LogFile, printable
from roi_env.sources.importing.folders import (
    distinct,
    find_logs,
    nothing_left,
    say_left_out,
    say_same_content,
    say_same_names,
)
from roi_env.sources.importing.formats import TABULAR, find_format
from roi_env.sources.importing.generations import NOTHING, Generation, Options, Report, choose, verdict
from roi_env.sources.importing.tabular import LABELS
from roi_env.sources.importing.terms import joined
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.table_files import INTEGERS, MAX_TOKENS
from roi_env.sources.texts import normalised
from roi_env.sources.thoughts import thinks
from roi_env.sources.units import Unit

CHARACTERS_A_TOKEN = 4
"""Of the estimate where a log has neither counts nor a tokenizer: English text and code have about so many."""
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(\.\d{3})+")
_DIGITS = 300
"""Of numbers that are read, before and behind the point: a float holds them."""
_NO_ERRORS = (*NOTHING, "no", "false", "0", "[]", "{}")
_form = lru_cache(maxsize=2**16)(normalised)
"""A question is asked of many tiers, many times."""
_THOUGHT = re.compile(r"<think|<thought|<\|?(begin_of_)?thought|<reasoning|\[think", re.IGNORECASE)


def import_logs(paths: Sequence[Path], options: Options, name: str) -> tuple[OutcomeTable, dict[str, int], Report]:
    """The table that logs make, how many files each format had, and what a user must know.

    A log that is understood but lacks what a table needs is left out where others are whole, and warned of.

    :param name: of the table: names it in errors.
    :raises LogError: for damaged files, values that cannot be read, and where nothing is left.
    """
    report = Report()
    files, reasons = distinct(find_logs(paths, report), report)
    kinds: Counter[str] = Counter()
    generations: list[tuple[LogFile, Generation]] = []
    taken: list[LogFile] = []
    for file in files:
        try:
            kind = find_format(file, options)
            mine = list(kind.read(file, options, report, files))
            if kind is not TABULAR:
                mine = [_labelled(file, one, options) for one in mine]
            _check_judged(file, mine)
            file.forget()
        except LogError as error:
            if not error.is_log or len(files) == 1:
                raise
            reasons.append(error)
            continue
        kinds[kind.name] += 1
        taken.append(file)
        for note in file.notes:
            report.note(f"{file.path.name}: {note}")
        generations += [(file, one) for one in mine]
    if reasons and not kinds:
        raise nothing_left(reasons)
    say_left_out(reasons, report)
    say_same_content(generations, report)
    say_same_names(taken, options.columns.get("tier", ""), report)
    return _table(generations, files, options, report, name), dict(kinds), report


def _labelled(file: LogFile, one: Generation, options: Options) -> Generation:
    """A generation of a known format under the labels that a user gives: constants, ``{file}`` and ``{folder}``."""
    for label in LABELS:
        text = options.columns.get(label)
        if text is None:
            continue
        known = {
            "file": file.stem,
            "folder": file.folder.name,
            "model": one.model,
            "effort": one.effort,
        }
        unknown = [part for part in re.findall(r"\{([^{}]*)\}", text) if part not in known]
        if unknown:
            raise file.error(f"--column {label}={text}: {{{unknown[0]}}} is unknown here; there are {sorted(known)}")
        setattr(one, label, text.format_map(known).strip("'\""))
    return one


def _table(
    found: list[tuple[LogFile, Generation]], files: list[LogFile], options: Options, report: Report, name: str
) -> OutcomeTable:
    total = len(found)
    kept = _by_one_judge(_without_copies(found, report), options, report)
    _say_conditions(kept, report)
    kept = [(file, one) for file, one in kept if _has_score(one, report)]
    if not kept:
        said = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        raise LogError(
            ", ".join(dict.fromkeys(str(file.path) for file in files[:3]))
            + (f" and {len(files) - 3:,} more" if files[3:] else ""),
            f"no generation is left ({said or 'the logs have none'}): a table needs answers that were generated and judged",
        )
    _say_shared_ids(kept, report)
    _say_several_answers(kept, report)
    _say_errors(kept, report)
    _forget_empty_counts(kept, report)
    _add_thoughts(kept, report)
    unit = _unit(kept, options, report)
    rows: list[tuple[Generation, dict[str, Any]]] = []
    sources: list[LogFile] = []
    correct = _correct(kept, options, report)
    counts: Counter[str] = Counter()
    for (file, one), right in zip(kept, correct, strict=True):
        cost, counted = _micro_usd(file, one) if unit == "micro-usd" else _tokens(file, one, options)
        if cost is None:
            report.dropped["no cost" if unit == "micro-usd" else "no tokens and no text"] += 1
            continue
        counts[counted] += 1
        sources.append(file)
        rows.append((one, {"tokens": cost, "correct": right, "counted": counted}))
    if not rows:
        what = "a cost in US dollars" if unit == "micro-usd" else "tokens, or a text to count"
        raise LogError(
            str(kept[0][0].path),
            f"no generation has {what}: name its column with --column {'cost' if unit == 'micro-usd' else 'tokens'}=...",
        )
    labels = _labels([one for one, _ in rows], report)
    samples = _samples([one for one, _ in rows], labels, report)
    orders = [_order(file, one) for file, (one, _) in zip(sources, rows, strict=True)]
    table: dict[str, list[Any]] = {
        "dataset": [],
        "question_id": [],
        "question": [],
        "answer": [],
        "menu": [],
        "tier": [],
    }
    for (one, _), (menu, tier) in zip(rows, labels, strict=True):
        question = _text(one.question)
        for column, value in (
            ("dataset", printable(one.dataset).strip() or "imported"),
            ("question_id", printable(one.question_id).strip() or _id_of(question)),
            ("question", question),
            ("answer", _text(one.answer)),
            ("menu", menu),
            ("tier", tier),
        ):
            table[column].append(value)
    for column in ("tokens", "correct", "counted"):
        table[column] = [values[column] for _, values in rows]
    if samples is not None:
        table["sample"] = samples
    if None not in orders:
        table["tier_order"] = orders
    elif lacking := sum(order is None for order in orders) % len(orders):
        report.note(f"tier_order is missing in {lacking:,} rows, so it is left out of all")
    _say_counts(rows, labels, counts, unit, report)
    if (left := total - len(rows)) and not report.dropped:
        report.dropped["of unknown reason"] += left
    if any(not one.question_id.strip() for one, _ in rows):
        report.note("questions without an id have one from their text")
    terms = joined(sources, labels, samples is not None, report)
    arrow = pa.table(table).replace_schema_metadata({"unit": unit, **terms})
    return OutcomeTable.from_arrow(arrow, name)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _id_of(question: str) -> str:
    return "q-" + hashlib.sha256((_form(question) or question).encode()).hexdigest()[:12]


def _say_shared_ids(kept: list[tuple[LogFile, Generation]], report: Report) -> None:
    """Warn of ids that are different questions in different files or rows: they would be one."""
    seen: dict[tuple[str, str], tuple[Path, str]] = {}
    shared: dict[tuple[str, str], None] = {}
    places: set[str] = set()
    for file, one in kept:
        text = _form(one.question)
        if one.question_id.strip() and text:
            key = one.dataset, one.question_id
            path, before = seen.setdefault(key, (file.path, text))
            if before != text:
                shared[key] = None
                places.add("files" if path != file.path else "rows")
    if shared:
        report.warn(
            f"{len(shared):,} ids have other texts in other {' and '.join(sorted(places))} (e.g. {printable(next(iter(shared))[1])!r}): if these are different "
            "questions, tell their data sets apart with --column dataset={file} or another column, or leave out --column question_id"
        )


def _say_several_answers(kept: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Warn where a column of references seems to hold what models wrote."""
    known: dict[tuple[str, str], set[str]] = {}
    for _, one in kept:
        if one.answer:
            known.setdefault((one.dataset, one.question_id or one.question), set()).add(one.answer)
    several = sum(len(answers) > 1 for answers in known.values())
    if several > len(known) / 2:
        report.warn(
            f"{several:,} of {len(known):,} questions have several reference answers: the column may hold what was generated. Name the "
            "reference with --column answer=..., or that column with --text; beside counts and scores it changes nothing"
        )


def _say_errors(kept: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Warn of calls that failed: their rows say wrong, and no answer was."""
    failed = [one.error for _, one in kept if one.error.lower() not in _NO_ERRORS]
    if failed:
        report.warn(
            f"{len(failed):,} generations have an error beside them (e.g. {printable(failed[0])[:60]!r}) and count as answers: leave out the "
            "rows whose call failed, or answers that never came count as wrong"
        )


def _without_copies(found: list[tuple[LogFile, Generation]], report: Report) -> list[tuple[LogFile, Generation]]:
    seen: set[str] = set()
    kept = []
    for file, one in found:
        if one.name and one.name in seen:
            report.dropped["copy of a generation of another log (the same sample of the same run)"] += 1
            continue
        seen.add(one.name)
        if not (one.question_id.strip() or _form(one.question)):
            report.dropped["neither an id nor a text of the question"] += 1
            continue
        kept.append((file, one))
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Right or wrong


def _cell(one: Generation) -> tuple[str, ...]:
    """What rows have in common that are samples of one question and tier, or the same sample."""
    return (
        one.dataset,
        one.question_id or _form(one.question),
        one.menu,
        one.tier,
        one.model,
        one.effort,
        str(one.sample),
    )


def _by_one_judge(
    found: list[tuple[LogFile, Generation]], options: Options, report: Report
) -> list[tuple[LogFile, Generation]]:
    """The rows of one judge where several judge the same generation, a row each.

    :raises LogError: where none of them is the one that is asked for.
    """
    judges: dict[tuple[str, ...], dict[str, None]] = {}
    for _, one in found:
        if one.judge:
            judges.setdefault(_cell(one), {})[one.judge] = None
    several = {cell: mine for cell, mine in judges.items() if len(mine) > 1}
    names = list(dict.fromkeys(name for mine in (several or judges).values() for name in mine))
    taken = choose(names, options.filter, "judge", report) if several or options.filter else None
    if judges and options.filter is not None and taken is None:
        raise next(file.error(f"no judge {options.filter!r}; there are {names}") for file, one in found if one.judge)
    kept = []
    for file, one in found:
        if one.judge not in ("", taken) and (options.filter or _cell(one) in several):
            report.dropped[f"other judge of the same generation ({printable(one.judge)})"] += 1
        else:
            kept.append((file, one))
    return kept


def _say_conditions(kept: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Warn of rows that may be no samples of one question and tier: other turns, steps of a training, perturbations."""
    known: dict[tuple[str, ...], dict[str, None]] = {}
    for _, one in kept:
        known.setdefault(_cell(one), {})[one.condition] = None
    differ = next((mine for mine in known.values() if len(mine) > 1), None)
    if differ is not None:
        settings = [text.split(", ") for text in differ]
        own = [[one for one in mine if any(one not in other for other in settings)] for mine in settings]
        shown = "; ".join(printable(", ".join(mine) or "nothing of it")[:60] for mine in own[:3])
        report.warn(
            f"rows of one question and tier differ in more than the sample (e.g. {shown}), and each is taken as a sample: if they are other "
            "questions or other ways to answer, name them in the tier, --column 'tier={model} {step}' (of other tools' logs: {file}, {folder}), "
            "or leave them out"
        )


def _has_score(one: Generation, report: Report) -> bool:
    if _missing(one.score):
        report.dropped["no score"] += 1
        return False
    return True


def _correct(kept: list[tuple[LogFile, Generation]], options: Options, report: Report) -> list[bool]:
    """Whether each was right.

    :raises LogError: for values that say nothing, and numbers beyond 0 and 1 without ``correct_at``.
    """
    values = [_judged(file, one) for file, one in kept]
    numbers = sorted({value for value in values if not isinstance(value, bool)} - {0.0, 1.0})
    at = options.correct_at
    if at is None and numbers:
        for (file, one), value in zip(kept, values, strict=True):
            if not isinstance(value, bool) and not 0 <= value <= 1:
                raise file.error(
                    f"{one.place}: score {value:g} is not between 0 and 1: say from which score an answer is right, with --correct-at"
                )
        share = sum(not isinstance(value, bool) and value not in (0.0, 1.0) for value in values) / len(values)
        report.warn(
            f"{share:.0%} of the scores lie between 0 and 1 ({numbers[0]:g} to {numbers[-1]:g}): only 1 counts as right; --correct-at .9 "
            "counts those from .9"
        )
    if at is not None and at <= 1 and numbers and numbers[-1] > 1:
        report.warn(
            f"scores go up to {numbers[-1]:g}, and --correct-at {at:g} counts all from {at:g} as right: is their scale another?"
        )
    least = 1.0 if at is None else at
    return [value if isinstance(value, bool) else value >= least for value in values]


def _check_judged(file: LogFile, mine: Iterable[Generation]) -> None:
    """Whether a file's scores are judgements at all: some scorers say something else (left, right or both; a text).

    :raises LogError: where most are none; others can go on without the file.
    """
    scored, errors = 0, []
    for one in mine:
        scored += one.score is not None
        try:
            if one.score is not None:
                _judged(file, one)
        except LogError as error:
            errors.append(error)
    if len(errors) > scored / 2:
        errors[0].is_log = True
        raise errors[0]


def _judged(file: LogFile, one: Generation) -> bool | float:
    score = one.score
    if isinstance(score, bool):
        return score
    if isinstance(score, str):
        plain = score.strip().lower()
        if (right := verdict(plain)) is not None:
            return right
        percent = plain.endswith("%")
        number = _number(plain.removesuffix("%"))
        if number is not None:
            return float(number) / (100 if percent else 1)
    elif isinstance(score, int | float | Decimal) and (number := _number(str(score))) is not None:
        return float(number)
    raise file.error(
        f"{one.place}: expected a score (true or false, a number, C or I), got {printable(str(score))[:60]!r}; correct it, or name "
        "another column (or --filter)"
    )


def _number(text: str) -> Decimal | None:
    """A finite number of few digits; a comma may stand for its point."""
    text = text.strip().removeprefix("$")
    if re.fullmatch(r"[-+]?\d+,\d+", text) and not re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text):
        text = text.replace(",", ".")
    try:
        number = Decimal(text) if text.isascii() else None
    except InvalidOperation:
        return None
    # Of 1e999999 the digits alone take minutes.
    return number if number is not None and number.is_finite() and abs(number.adjusted()) < _DIGITS else None


# ---------------------------------------------------------------------------------------------------------------------
# Cost


def _unit(kept: Iterable[tuple[LogFile, Generation]], options: Options, report: Report) -> Unit:
    if options.unit is not None:
        return "micro-usd" if options.unit == "micro-usd" else "tokens"
    tokens = {file.path for file, one in kept if not _missing(one.tokens) or one.text is not None}
    money = {file.path: file for file, one in kept if file.path not in tokens and not _missing(one.usd)}
    if tokens and money:
        file, other = next(iter(money.values())), printable(str(min(tokens)))
        raise file.error(
            f"counts US dollars, and {other} counts tokens: import them apart, or choose one with --unit (the others are left out)"
        )
    if not money:
        return "tokens"
    report.note("costs are the logs' US dollars, in micro-dollars (--unit micro-usd)")
    return "micro-usd"


def _as_number(file: LogFile, one: Generation, column: str, value: Any, expected: str) -> Decimal:
    number = None
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        number = _number(str(value))
    if number is None or number < 0:
        raise file.error(
            f"{one.place}, {column}: expected {expected}, got {printable(str(value))[:60]!r}; "
            + ("write it without separators" if re.search(r"\d[,' ]\d", str(value)) else "correct it or drop the row")
        )
    return number


def _missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and value.strip().lower() in NOTHING)
    )


def _forget_empty_counts(kept: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Take counts of 0 of texts that are not empty as no counts: converters and proxies write them where they know none."""
    empty = [
        one
        for _, one in kept
        if not _missing(one.tokens) and one.text and one.text.strip() and _number(str(one.tokens)) == 0
    ]
    for one in empty:
        one.tokens = None
    if empty:
        report.warn(
            f"{len(empty):,} generations are counted as 0 tokens and have a text: the log did not count them, so the text is counted"
        )


def _add_thoughts(kept: Iterable[tuple[LogFile, Generation]], report: Report) -> None:
    """Add the thought's tokens where they are counted apart: where a generation's are more than its tokens, or the total holds them besides,
    in all of its file and tier."""
    by_tier: dict[tuple[Path, str, str, str], list[tuple[Generation, Decimal, Decimal]]] = {}
    for file, one in kept:
        tokens, thought = (
            None if _missing(value) else _number(str(value)) for value in (one.tokens, one.thought_tokens)
        )
        if tokens is not None and thought is not None:
            by_tier.setdefault((file.path, one.tier, one.model, one.effort), []).append((one, tokens, thought))
    apart = [mine for mine in by_tier.values() if any(thought > tokens or one.apart for one, tokens, thought in mine)]
    for one, tokens, thought in (found for mine in apart for found in mine):
        one.tokens = tokens + thought
    if apart:
        report.warn(
            f"tokens of {sum(map(len, apart)):,} generations do not hold the thought's, which are counted apart: they are added"
        )


def _order(file: LogFile, one: Generation) -> int | None:
    if _missing(one.tier_order):
        return None
    _, low, high, expected = INTEGERS["tier_order"]
    number = _as_number(file, one, "tier_order", one.tier_order, expected)
    if number != int(number) or not low <= number <= high:
        raise file.error(
            f"{one.place}, tier_order: expected {expected}, got {one.tier_order}; correct it or drop the row"
        )
    return int(number)


def _micro_usd(file: LogFile, one: Generation) -> tuple[int | None, str]:
    if _missing(one.usd):
        return None, ""
    cost = round(_as_number(file, one, "cost", one.usd, "US dollars, a number >= 0") * 1_000_000)
    if cost > MAX_TOKENS:
        raise file.error(
            f"{one.place}, cost: {one.usd} US dollars are more than a table holds ({MAX_TOKENS / 1e6:,.0f})"
        )
    return cost, "log"


def _tokens(file: LogFile, one: Generation, options: Options) -> tuple[int | None, str]:
    if not _missing(one.tokens):
        expected = f"generated tokens, an integer from 0 to {MAX_TOKENS}"
        if isinstance(one.tokens, str) and _THOUSANDS.fullmatch(one.tokens.strip()):
            expected += " without a point, which may stand for thousands or a fraction"
            raise file.error(f"{one.place}, tokens: expected {expected}, got {one.tokens!r}; write it without")
        number = _as_number(file, one, "tokens", one.tokens, expected)
        if number != int(number) or number > MAX_TOKENS:
            raise file.error(f"{one.place}, tokens: expected {expected}, got {one.tokens}; correct it or drop the row")
        return int(number), one.counted or "log"
    if one.text is None:
        return None, ""
    texts = [one.text, *one.texts, *([one.thought] if one.thought else [])]
    if options.tokenizer is not None:
        return sum(map(options.tokenizer, map(_text, texts))), "tokenizer"
    return sum(-(-len(text) // CHARACTERS_A_TOKEN) for text in texts), "estimate"


def _say_counts(
    rows: list[tuple[Generation, dict[str, Any]]],
    labels: list[tuple[str, str]],
    counts: Counter[str],
    unit: Unit,
    report: Report,
) -> None:
    if unit == "micro-usd":
        low = sum(values["tokens"] < 50 for _, values in rows)
        if low:
            report.note(f"costs are rounded to micro-dollars: of {low:,} generations below 50 of them by more than 1 %")
        return
    if counts["estimate"]:
        report.warn(
            f"tokens of {counts['estimate']:,} of {len(rows):,} generations are estimated, {CHARACTERS_A_TOKEN} characters a token "
            "(counted=estimate): give the model's --tokenizer DIR, or a column of counts with --column tokens=..."
        )
    by_tier: dict[str, list[Generation]] = {}
    for (one, _), (menu, tier) in zip(rows, labels, strict=True):
        if _missing(one.tokens) and thinks(menu, tier):
            by_tier.setdefault(tier, []).append(one)
    for tier, mine in by_tier.items():
        shown = sum(bool(one.thought) or bool(one.text and _THOUGHT.search(one.text)) for one in mine)
        if shown < len(mine) / 2:
            report.warn(
                f"HIDDEN THOUGHTS: {tier} is said to think, but {len(mine) - shown:,} of its {len(mine):,} texts hold no thought. It was "
                "billed and is not in the text, so these tokens are far too few: use counts of the provider's bill"
            )
    paid = {label for label, (_, values) in zip(labels, rows, strict=True) if values["tokens"]}
    free = {tier for menu, tier in labels if (menu, tier) not in paid}
    if free:
        report.warn(f"all generations of {', '.join(sorted(free))} are counted as 0 tokens: is this the right column?")
    if empty := sum(_missing(one.tokens) and not (one.text or "").strip() for one, _ in rows):
        report.warn(f"{empty:,} generations have an empty text: what they cost is unknown, and counted as 0 tokens")


# ---------------------------------------------------------------------------------------------------------------------
# Tiers, menus, samples


def _labels(rows: list[Generation], report: Report) -> list[tuple[str, str]]:
    """``(menu, tier)`` of every row. A tier is a model, with its effort where it has several; a menu is a menu: the tiers
    that a data set was answered with."""
    efforts: dict[str, set[str]] = {}
    for one in rows:
        efforts.setdefault(one.model, set()).add(one.effort)
    alone = len(efforts) == 1

    def tier_of(one: Generation) -> str:
        name = one.tier
        if not name:
            effort = one.effort or "default"
            name = (
                (one.model or effort)
                if len(efforts[one.model]) == 1
                else effort
                if alone and one.model
                else f"{one.model} {effort}"
            )
        return printable(name).strip() or "default"

    if nameless := sum(not (one.tier or one.model or one.effort) for one in rows):
        report.warn(
            f"{nameless:,} generations have no tier: it is called 'default' here; complete its column, or name it with --column tier=..."
        )
    tiers = [tier_of(one) for one in rows]
    menus: dict[str, dict[str, None]] = {}
    for one, tier in zip(rows, tiers, strict=True):
        menus.setdefault(one.dataset, {})[tier] = None
    names: dict[frozenset[str], str] = {}
    for menu in menus.values():
        names.setdefault(
            frozenset(menu), _menu_name(list(menu), [one for one in efforts if one] if alone else [], names.values())
        )
    made = [(printable(one.menu).strip() or names[frozenset(menus[one.dataset])]) for one in rows]
    if len(names) > 1 and not all(one.menu for one in rows):
        report.note(
            "not all data sets were answered by the same tiers: each set of tiers is a menu of its own; --column menu=... "
            "names them otherwise"
        )
    return list(zip(made, tiers, strict=True))


def _menu_name(menu: list[str], model: list[str], taken: Iterable[str]) -> str:
    name = printable(model[0]).strip() if model else " + ".join(menu)
    if len(name) > 80:
        name = f"{len(menu)} tiers"
    number, unique, known = 1, name, set(taken)
    while unique in known:
        number += 1
        unique = f"{name} ({number})"
    return unique


def _samples(rows: list[Generation], labels: list[tuple[str, str]], report: Report) -> list[int] | None:
    """The logs' own numbers of generations, where all have one and no two are the same; else rows are numbered as they come."""
    if any(_missing(one.sample) for one in rows):
        return None
    numbers = []
    for one in rows:
        number = _number(str(one.sample))
        if number is None or number != int(number) or not 0 <= number < 2**63:
            report.note("samples have names, not numbers: they are numbered as their rows come")
            return None
        numbers.append(int(number))
    keys = {
        (one.dataset, one.question_id or one.question, label, number)
        for one, label, number in zip(rows, labels, numbers, strict=True)
    }
    if len(keys) < len(rows):
        report.note(
            "several generations of a question and tier have the same number of a sample: they are numbered anew"
        )
        return None
    return numbers
