"""Anything tabular: a column of ours is a column, path or text of theirs (``--column ours=theirs``).

``theirs`` is

* a column, or a path into nested objects and lists: ``usage.completion_tokens``, ``choices.0.text``;
* with ``*`` every key of an object (or element of a list) is a generation: ``arms.*.cost``; ``{*}`` is the key;
* with ``*`` inside a name, of columns side by side: ``correct=*``, ``cost=*|total_cost``; ``{*}`` is what it stands for;
* text with ``{file}``, ``{folder}``, ``{*}`` or ``{path}`` in it: ``tier={file}``, ``tier={model} {effort}``;
* of ``tier``, ``menu`` and ``dataset`` also a constant: ``menu='mine'``, or a bare word that is no column.

Lists under ``correct``, ``tokens``, ``cost`` or ``text`` are samples.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any

import pyarrow.parquet as pq

from roi_env.sources.importing.files import LogError, LogFile, Terms, printable
from roi_env.sources.importing.generations import NO_SAMPLES, NOTHING, Generation, Options, Report, text_of, verdict
from roi_env.sources.importing.proposals import (
    CONDITIONS,
    ERRORS,
    JUDGED_BY,
    PROPOSED,
    Kind,
    check_complete,
    counts,
    lacking,
    like,
    proposed,
    some,
    spellings,
)
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.table_files import own_name
from roi_env.sources.thoughts import COUNTED_THOUGHTS

OURS = (
    "dataset", "question_id", "question", "answer", "menu", "tier", "tier_order", "tokens", "cost", "correct", "sample", "text",
)  # fmt: skip
LABELS = ("dataset", "menu", "tier")
_SAMPLED = ("correct", "tokens", "cost", "text", "sample", "thought_tokens")
_NUMBERS = ("correct", "tokens", "cost")
_TOTALS = ("total_tokens", "total_token_count", "totaltokencount", "totaltokens")
_PROMPTS = ("prompt_tokens", "input_tokens", "prompt_token_count", "prompttokencount", "prompttokens", "inputtokens")
_MISSING = object()
_LOOKED_AT = 200
"""Rows whose names are all names that a file has."""
_DEEP = 7
"""Names that a path is of: ``results.results.*.response.tokenUsage.completion`` has six."""
_ALIKE = 2
"""Objects of the same names that are parts of one kind, not columns."""


def matches(file: LogFile, first: Any) -> bool:
    """Rows that are objects."""
    return isinstance(first, dict)


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of the rows of a file."""
    paths = _paths(file)
    columns = dict(options.columns)
    if options.text is not None:
        columns["text"] = options.text
    first = _first(file)
    _spell(file, first, columns, paths, others, report)
    columns |= _own(file, columns, paths)
    right = columns.get("correct") or next(iter(proposed("correct", paths, starred=len(first) == 1)), "")
    if "*" in right and "{" not in right:
        # What stands beside a list of generations is that of all of them.
        for name in ("tokens", "cost", "text"):
            if name not in options.columns and "*" not in columns.get(name, "*"):
                del columns[name]
    if options.text is None:
        _find_counts(file, first, columns, paths, options, report)
    _find_counts_of_thoughts(columns, paths)
    told = (("judge", JUDGED_BY, "{{{}}}"), ("error", ERRORS, "{{{}}}"), ("condition", CONDITIONS, "{0} {{{0}}}"))
    for name, usual, form in told:
        found = [path for path in paths if own_name(path) in usual and not _used(path, columns)]
        if found:
            columns[name] = ", ".join(map(form.format, found))
    if options.filter is not None and "judge" not in columns:
        raise file.error(
            f"--filter {options.filter}: it has no column that names judges ({', '.join(JUDGED_BY)})", is_log=True
        )
    micro = {b"level_edges", b"pairing"} <= file.metadata().keys() and _read_ours(file, columns)
    constants = _constants(file, first, columns, paths, report)
    check_complete(file, columns, paths, others, _keyed(first, paths), starred=len(first) == 1, unit=options.unit)
    other = [path for path in paths if path and "." not in path and not _used(path, columns)]
    if other:
        report.note(f"columns that are not taken: {some(other)}")
    yield from rows(file, columns, constants, report, micro=micro)


def _own(file: LogFile, columns: Mapping[str, str], paths: Iterable[str]) -> dict[str, str]:
    """Columns that have our names already: to the letter, else but for case and spaces.

    :raises LogError: where several could be one of ours.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        parts = own_name(path) in _NUMBERS and any(other.startswith(f"{path}.") for other in paths)
        if own_name(path) in OURS and own_name(path) not in columns and not parts:
            found.setdefault(own_name(path), []).append(path)
    for name, mine in found.items():
        beside = [path for path in mine if "." not in path]
        if len(beside) > 1 and name not in beside:
            raise file.error(
                f"could take any of the columns {some(beside)} for {name}: name one, --column {name}=...", is_log=True
            )
    return {name: name if name in mine else mine[0] for name, mine in found.items()}


def _read_ours(file: LogFile, columns: dict[str, str]) -> bool:
    """Take what a table of ours says beside its rows; give whether its column ``tokens`` holds micro-dollars.

    :raises OutcomeTableError: where it is no whole table.
    """
    table = OutcomeTable.from_arrow(pq.read_table(file.path), str(file.path))
    file.terms = Terms(table.level_edges, table.tier_caps, table.decision_cost, table.pairing)
    if "counted" in table.rows.column_names:
        columns["counted"] = "counted"
    if table.unit == "tokens" or columns.get("tokens") != "tokens":
        return False
    columns["cost"] = columns.pop("tokens")
    columns.pop("text", None)
    return True


def _spell(
    file: LogFile,
    first: Sequence[Any],
    columns: dict[str, str],
    paths: Mapping[str, Kind],
    others: Sequence[LogFile],
    report: Report,
) -> None:
    """Name columns as this file does where it has not what a user named and another file has.

    :raises LogError: where it may be several.
    """
    for name, theirs in columns.items():
        if "{" in theirs or theirs[0] in "'\"" or any(_leads(record, theirs) for record in first):
            continue
        elsewhere = next((one for one in others if one is not file and _has(one, theirs)), None)
        if elsewhere is None:
            continue
        distinct: dict[str, str] = {}
        for path in spellings(name, theirs, paths):
            distinct.setdefault(repr([_get(record, path) for record in first]), path)
        found = list(distinct.values())
        if len(found) != 1:
            what = f"which of {some(found)} is it?" if found else f"it has {some(list(paths))}."
            raise file.error(
                f"no column {theirs!r} for {name}, which {elsewhere.path.name} has: {what} Import it apart with --column {name}=..., "
                "then both tables together",
                is_log=True,
            )
        columns[name] = found[0]
        report.note(f"{file.path.name}: {name} is {found[0]!r} (it has no {theirs!r}, as {elsewhere.path.name} has)")


def _has(file: LogFile, path: str) -> bool:
    """Whether the first row of a file has a column; not of what is no table."""
    try:
        return file.kind != "zip" and _leads(file.first(), path)
    except LogError:
        return False  # said where it is read


def _find_counts(
    file: LogFile,
    first: Sequence[Any],
    columns: dict[str, str],
    paths: Mapping[str, Kind],
    options: Options,
    report: Report,
) -> None:
    """Take the file's count of generated tokens where its name says so and nothing else is missing."""
    found, dollars = counts(paths), "cost" in columns and options.unit != "tokens"
    names = {own_name(path.rpartition(".")[2]) for path in paths}
    unnamed = "tokens" in columns.keys() - options.columns.keys() and not {"total_tokens", "counted"} & names
    if unnamed and not found and {"prompt_tokens", "input_tokens"} & names:
        report.warn(
            f"{file.path.name}: {columns['tokens']!r} stands beside a count of the prompt's tokens: is the prompt in it? A table's tokens are "
            "those that were generated"
        )
    if len(found) != 1 or lacking({*columns, "tokens"}):
        return
    if dollars:
        if not {"tokens", "cost"} & options.columns.keys():
            report.note(f"{file.path.name}: {columns['cost']!r} is what answers cost; --unit tokens takes {found[0]!r}")
        return
    values = [_get(record, found[0]) for record in first]
    if "tokens" in columns:
        pairs = zip((_get(record, columns["tokens"]) for record in first), values, strict=True)
        if (differ := next((pair for pair in pairs if pair[0] != pair[1]), None)) and own_name(
            columns["tokens"]
        ) == "tokens":
            report.warn(
                f"{file.path.name}: {columns['tokens']!r} and {found[0]!r} differ (e.g. {differ[0]} and {differ[1]}) and the first is taken: "
                f"is the prompt in it? --column tokens={found[0]} takes the other"
            )
        return
    # A list beside one score is of the tokens' ids.
    kinds = {type(_get(record, columns["correct"])) for record in first} | set(map(type, values))
    if kinds == {list} or list not in set(map(type, values)):
        columns["tokens"] = found[0]
        report.note(f"{file.path.name}: tokens is {found[0]!r}")


def _find_counts_of_thoughts(columns: dict[str, str], paths: Mapping[str, Kind]) -> None:
    """Where beside the tokens those of the thought are counted: perhaps apart."""
    beside = columns.get("tokens", "").rpartition(".")[0]
    found = [
        path
        for path in paths
        if own_name(path.rpartition(".")[2]) in COUNTED_THOUGHTS
        and path.startswith(beside)
        and path.count("*") == beside.count("*")
    ]
    if "tokens" in columns and len(found) == 1:
        columns["thought_tokens"] = found[0]
        for name, usual in (("total_tokens", _TOTALS), ("prompt_tokens", _PROMPTS)):
            mine = [
                path
                for path in paths
                if path.rpartition(".")[0] == beside and own_name(path.rpartition(".")[2]) in usual
            ]
            if len(mine) == 1:
                columns[name] = mine[0]


def _first(file: LogFile) -> list[Any]:
    """The first rows. The others are read too: that a file is damaged is told before what it lacks."""
    return [record for number, (_, record) in enumerate(file.records()) if number < _LOOKED_AT]


def _used(path: str, columns: Mapping[str, str]) -> bool:
    """Whether a mapping takes something of a column."""
    return any(
        path == theirs
        or theirs.startswith(f"{path}.")
        or f"{{{path}" in theirs
        or ("{" not in theirs and fnmatchcase(path, theirs))
        for theirs in columns.values()
    )


def router_matches(file: LogFile, first: Any) -> bool:
    """Lines with ``arms``: what every model earned and cost on a prompt."""
    arms = first.get("arms") if isinstance(first, dict) else None
    return (
        isinstance(arms, dict)
        and bool(arms)
        and all(isinstance(arm, dict) and {"reward", "cost"} <= arm.keys() for arm in arms.values())
    )


def read_router(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of a router's data: one a prompt and model."""
    first = file.first()
    columns = {"question": "prompt", "tier": "{*}", "correct": "arms.*.reward", "cost": "arms.*.cost"}
    if "source" in first:
        columns["dataset"] = "source"
    for one in rows(file, columns, {}, report):
        # Benchmarks of many tasks: BBH's are of a handful of prompts each.
        yield replace(one, dataset=one.dataset.partition("/")[0])


def rows(
    file: LogFile, columns: Mapping[str, str], constants: Mapping[str, str], report: Report, *, micro: bool = False
) -> Iterator[Generation]:
    """Generations of all rows under a mapping; ``micro``: costs are micro-dollars, not dollars."""
    starred = [text for text in columns.values() if "*" in text and "{" not in text]
    beside = any(re.search(r"[^.]\*|\*[^.]", text) for text in starred)
    prefixes = {text.partition("*")[0].rstrip(".") for text in starred}
    if len(prefixes) > 1 and not beside:
        raise file.error(
            f"'*' stands for the parts of one object or list, not of several ({', '.join(sorted(starred))})"
        )
    prefix = min(prefixes, default=None)
    single = [
        name
        for name in ("correct", "tokens", "cost", "text")
        if name in columns.keys() - constants.keys() and not re.search(r"[*{]", columns[name])
    ]
    micro = micro or own_name(columns.get("cost", "")).endswith(("micro_usd", "usd_micros", "micros", "microusd"))
    for place, record in file.records():
        if not isinstance(record, dict):
            raise file.error(f"{place} is no object of columns: write one JSON object a row")
        branches: list[tuple[str, Any]] = [("", None)]
        if beside:
            stems = _stems(file, place, record, starred)
            for left in sorted({*_stems_of(columns.get("correct", ""), record)} - {*stems}):
                report.warn(f"{file.path.name}: {left!r} is left out: it has not all of {', '.join(starred)}")
            branches = [(key, record) for key in stems]
        elif prefix is not None:
            inner = _get(record, prefix) if prefix else record
            if not isinstance(inner, dict | list):
                raise file.error(f"{place}: {prefix!r} is no object or list, whose parts {'*'!r} could stand for")
            branches = [
                (str(key), child) for key, child in (inner.items() if isinstance(inner, dict) else enumerate(inner))
            ]
            if any("*.*" in text for text in starred):
                branches = [(key, part) for key, child in branches for part in _children(child)]
        if prefix is not None and not beside and len(branches) > 1 and single:
            raise file.error(
                f"{place}: {columns[single[0]]!r} ({single[0]}) is one value, and there are {len(branches)} generations in {prefix or 'it'!r}: "
                f"name that of each, {single[0]}={prefix + '.' if prefix else ''}*.NAME"
            )
        for key, child in branches:
            found: dict[str, Any] = dict(constants)
            for name, theirs in columns.items():
                if name not in constants:
                    text = theirs.replace("*", key) if beside and theirs in starred else theirs
                    found[name] = _value(file, record, text, key, child, prefix)
            made = _samples(file, place, found, constants)
            if not made:
                report.dropped[NO_SAMPLES] += 1
            for one in made:
                yield _generation(file, place, one, micro)


def _stems(file: LogFile, place: str, record: Mapping[str, Any], starred: Sequence[str]) -> list[str]:
    """What ``*`` may stand for in names of columns, so that all of them exist.

    :raises LogError: where nothing does.
    """
    stems = _stems_of(max(starred, key=len), record)
    found = [stem for stem in stems if all(_get(record, text.replace("*", stem)) is not _MISSING for text in starred)]
    if not found:
        raise file.error(f"{place}: '*' stands for no name so that there are columns {' and '.join(starred)}")
    return found


def _stems_of(pattern: str, record: Mapping[str, Any]) -> list[str]:
    """What ``*`` stands for in a pattern of more than it."""
    before, star, after = pattern.partition("*")
    if not star or not before + after:
        return []
    return [
        name[len(before) : len(name) - len(after)]
        for name in record
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    ]


def _samples(file: LogFile, place: str, found: dict[str, Any], constants: Mapping[str, str]) -> list[dict[str, Any]]:
    """The row itself, or one row an element where columns are lists."""
    for name in _SAMPLED:
        value = found.get(name)
        if name != "text" and isinstance(value, str) and value.lstrip().startswith("["):
            if (parsed := _list_of(value)) is None:
                raise file.error(f"{place}, column {name!r}: {printable(value)[:60]!r} begins like a list and is none")
            found[name] = parsed
    # A text may begin with a bracket by itself.
    if isinstance(found.get("correct"), list) and isinstance(found.get("text"), str):
        found["text"] = _list_of(found["text"]) or found["text"]
    lists = {name: found[name] for name in _SAMPLED if isinstance(found.get(name), list)}
    if not lists:
        return [found]
    if len({len(values) for values in lists.values()}) > 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
        raise file.error(f"{place}: lists of samples have different lengths ({sizes})")
    if "correct" not in lists and len(next(iter(lists.values()))) > 1:
        raise file.error(
            f"{place}: {next(iter(lists))!r} is a list, but 'correct' is one value: which sample was right?"
        )
    if "correct" in lists and len(lists["correct"]) > 1:
        costs = [name for name in ("tokens", "cost", "text") if found.get(name) not in (None, "", _MISSING)]
        if costs and costs[0] not in lists and costs[0] not in constants:
            raise file.error(
                f"{place}: 'correct' is a list of {len(lists['correct'])} samples, but {costs[0]!r} is one value: that of each, or of "
                "all of them? Write a list of as many"
            )
    return [found | dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _list_of(text: str) -> list[Any] | None:
    """The list that a field of a CSV holds."""
    value = _held(text)
    return value if isinstance(value, list) else None


def _held(text: str) -> Any:
    """The list or object that a field of a CSV holds, in JSON's spelling or Python's; only literals are read."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return None


def _generation(file: LogFile, place: str, found: Mapping[str, Any], micro: bool) -> Generation:
    def text(name: str) -> str:
        value = found.get(name, "")
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value)):
            what = ("an object", "a.b") if isinstance(value, dict) else ("a list of objects or lists", "a.0.b")
            raise file.error(
                f"{place}, column {name!r}: expected text or a number, got {what[0]}; name a part of it ({what[1]})"
            )
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]  # the same of every sample
        return "" if value is _MISSING else text_of(value)

    def given(name: str) -> Any:
        value = found.get(name)
        return None if value is _MISSING or value == "" else value

    usd = given("cost")
    if usd is not None and micro:
        usd = _micro(file, place, usd)
    return Generation(
        score=given("correct"),
        dataset=text("dataset"),
        question_id=text("question_id"),
        question=text("question"),
        answer=text("answer"),
        menu=text("menu"),
        tier=text("tier"),
        tier_order=given("tier_order"),
        tokens=given("tokens"),
        thought_tokens=given("thought_tokens"),
        apart=_apart(*map(given, ("tokens", "thought_tokens", "prompt_tokens", "total_tokens"))),
        usd=usd,
        # Counted as it is, with the white space around it.
        text=raw if isinstance(raw := found.get("text"), str) else text("text") if "text" in found else None,
        counted=text("counted"),
        sample=given("sample"),
        judge=text("judge"),
        condition=text("condition"),
        error=text("error").strip(", "),
        place=place,
    )


def _apart(*counts: Any) -> bool:
    """Whether of the counts of tokens, thought, prompt and total the last says that the thought's are not among the first."""
    if any(isinstance(one, bool) or not re.fullmatch(r"\d{1,18}(\.0*)?", str(one)) for one in counts):
        return False
    tokens, thought, prompt, total = (int(float(one)) for one in counts)
    return thought > 0 and tokens + thought + prompt == total


def _micro(file: LogFile, place: str, value: Any) -> str:
    try:
        return str(Decimal(str(value)) / 1_000_000)
    except InvalidOperation:
        raise file.error(f"{place}, column 'cost': expected a number, got {printable(str(value))[:60]!r}") from None


def _value(file: LogFile, record: Mapping[str, Any], theirs: str, key: str, child: Any, prefix: str | None) -> Any:
    if "{" in theirs and theirs not in record:
        known = {
            "file": file.stem,
            "folder": file.folder.name,
            "*": key,
        }
        return re.sub(r"\{([^{}]+)\}", lambda match: known.get(match[1]) or _part(record, match[1]), theirs)
    if prefix is not None and "*" in theirs:
        rest = theirs.partition("*")[2].replace(".*", "").lstrip(".")
        return _get(child, rest) if rest else child
    return _get(record, theirs)


def _part(record: Mapping[str, Any], path: str) -> str:
    value = _get(record, path)
    return "" if value is _MISSING else text_of(value)


def _get(value: Any, path: str) -> Any:
    """What a path leads to: names may hold points themselves."""
    if isinstance(value, str) and value[:1] in "{[" and path:
        value = _held(value)
    if isinstance(value, dict):
        if path in value:
            return value[path]
        for name, child in value.items():
            if isinstance(name, str) and path.startswith(f"{name}."):
                found = _get(child, path[len(name) + 1 :])
                if found is not _MISSING:
                    return found
    elif isinstance(value, list):
        head, _, rest = path.partition(".")
        if re.fullmatch(r"-?\d{1,9}", head) and -len(value) <= int(head) < len(value):
            return _get(value[int(head)], rest) if rest else value[int(head)]
        if not re.fullmatch(r"-?\d+", head) and value and all(isinstance(child, dict) for child in value):
            return [None if (found := _get(child, path)) is _MISSING else found for child in value]
    return _MISSING


def _paths(file: LogFile) -> dict[str, Kind]:
    """Columns, and paths into nested ones, of the first rows, and what each leads to."""
    found: dict[str, Kind] = {}
    for number, (place, record) in enumerate(file.records()):
        if not isinstance(record, dict):
            raise file.error(f"{place} is no object of columns: write one JSON object a row")
        if file.kind in ("csv", "parquet"):
            held = {
                name: _held(text)
                for name, text in record.items()
                if isinstance(text, str) and text.startswith(("{", "["))
            }
            record = record | {name: value for name, value in held.items() if value and not _texts(value)}
        level: list[tuple[str, Any]] = [("", record)]
        for _ in range(_DEEP):
            level = [
                (f"{path}.{name}" if path else str(name), child) for path, item in level for name, child in _parts(item)
            ][:2000]
            for path, child in level:
                # Texts among which some look like numbers are texts.
                kind = _kind(child)
                found[path] = kind if found.get(path, "") in ("", "number", "mark") and kind else found.get(path, "")
        if number == _LOOKED_AT:
            break
    if not found:
        raise file.error("has no rows", is_log=True)
    return found


def _texts(value: Any) -> bool:
    """Whether a value is a list with a text: a text that looks like one, such as a prompt in brackets."""
    return isinstance(value, list) and any(isinstance(one, str) for one in value)


def _kind(value: Any) -> Kind:
    if isinstance(value, list):
        return "" if _objects(value, dict | list) else "list"
    if isinstance(value, bool) or (isinstance(value, str) and verdict(value.strip()) is not None):
        return "mark"
    if isinstance(value, str):
        return (
            ""
            if value.strip().lower() in NOTHING
            else "number"
            if re.fullmatch(r"[-+$]?\d+([.,]\d+)?(e-?\d+)?%?", value.strip(), re.I)
            else "text"
        )
    return "number" if isinstance(value, int | float | Decimal) else ""


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _keyed(first: Sequence[Any], paths: Iterable[str]) -> set[str]:
    """What stands before a ``*`` whose parts are called the same in several rows, or hold rows of their own."""
    found = set()
    for before in {path.partition("*")[0] for path in paths if "*" in path}:
        held = [_get(record, before[:-1]) if before else record for record in first]
        names = [list(one) for one in held if isinstance(one, dict)]
        if names and names.count(names[0]) == len(first) and (len(first) > 1 or f"{before}*.*" in paths):
            found.add(before)
    return found


def _parts(item: Any) -> list[tuple[str, Any]]:
    """Names and children of an object; those that are alike stand for all of them under the name ``*``."""
    if isinstance(item, list):
        return [("*", item[0])] if _objects(item) else []
    if not isinstance(item, dict):
        return []
    # Samples of one question in a list are told by their first.
    alike = {name: child[0] if _objects(child) else child for name, child in item.items()}
    alike = {name: child for name, child in alike.items() if isinstance(child, dict) and child}
    numbered = all(str(name).isdecimal() for name in alike)
    kinds = list(alike.values())
    if len(kinds) >= (_ALIKE if numbered else max(_ALIKE, 0.9 * len(item))) and all(
        one.keys() == kinds[0].keys() for one in kinds
    ):
        return [("*", kinds[0])]
    return list(item.items())


def _objects(value: Any, kinds: type | UnionType = dict) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], kinds)


def _constants(
    file: LogFile, first: Sequence[Any], columns: Mapping[str, str], paths: Mapping[str, Kind], report: Report
) -> dict[str, str]:
    """Columns that are given as texts.

    :raises LogError: for what is neither a column nor a text, with the names that it may mean.
    """
    constants = {}
    for name, theirs in columns.items():
        if re.fullmatch(r"'[^']*'|\"[^\"]*\"", theirs):
            constants[name] = theirs[1:-1]
            continue
        if "{" in theirs:
            inner = [part for part in re.findall(r"\{([^{}]+)\}", theirs) if part not in ("file", "folder", "*")]
        else:
            inner = [theirs]
        for part in inner:
            if any(_leads(record, part) for record in first):
                continue
            alike = like(part, paths)
            usual = [] if alike or name in LABELS else proposed(name, paths)[:1] if name in PROPOSED else []
            if name in LABELS and "{" not in theirs and not alike:
                constants[name] = theirs
                report.note(f"{file.path.name} has no column {theirs!r}: {name} is {theirs!r} in all rows")
                continue
            meant = (
                f"did you mean {', '.join(f'--column {name}={one}' for one in alike or usual)}? "
                if alike or usual
                else ""
            )
            raise file.error(
                f"no column {part!r} for {name}: {meant}It has {some(list(paths))}"
                + (f"; a constant is written in quotes, {name}=\"'...'\"" if name in LABELS else ""),
                is_log=True,
            )
    return constants


def _leads(record: Any, path: str) -> bool:
    """Whether a path, perhaps with a ``*``, leads to something."""
    before, star, after = path.partition("*")
    if not star or path in record:
        return _get(record, path) is not _MISSING
    if re.search(r"[^.]$", before) or re.match(r"[^.]", after):
        return True  # columns side by side: told where rows are read
    inner = _get(record, before[:-1]) if before else record
    rest = after.replace(".*", "").removeprefix(".")
    children = _children(inner)
    if after.startswith(".*"):
        children = [part for child in children for part in _children(child)]
    return any(not rest or _get(child, rest) is not _MISSING for child in children)
