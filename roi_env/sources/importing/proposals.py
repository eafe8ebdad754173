"""What strangers call our columns: usual names, and the options that an error proposes."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from roi_env.sources.importing.files import LackingError, LogFile, printable
from roi_env.sources.outcome_tables import JUDGES
from roi_env.sources.table_files import own_name

_GENERATED = (
    "output_tokens", "completion_tokens", "generated_tokens", "num_generated_tokens", "num_output_tokens", "num_completion_tokens",
    "output_token_count", "completion_token_count", "response_tokens", "tokens_out", "out_tokens", "tokens_completion", "completiontokens",
    "outputtokens", "eval_count", "total_output_tokens", "total_completion_tokens",
)  # fmt: skip
"""Names of counts of generated tokens that say so."""
PROPOSED = {
    "question": (
        "question", "prompt", "problem", "input", "query", "instruction", "q", "task_prompt", "question_text", "problem_statement",
        "full_prompt", "user_prompt", "input_text", "user_input", "inputs", "prompt_messages", "input_messages",
    ),
    "question_id": (
        "question_id", "custom_id", "id", "qid", "uid", "doc_id", "problem_id", "task_id", "instance_id", "sample_id", "item_id",
        "example_id", "idx", "index", "key",
    ),
    "answer": ("answer", "target", "gt", "expected_answer", "reference", "gold", "ground_truth", "solution", "label"),
    "tier": (
        "tier", "effort", "reasoning_effort", "model", "model_name", "model_id", "model_name_or_path", "arm", "engine", "llm", "level",
        "llm_selected", "selected_model", "selected_llm", "model_used", "model_slug", "model_permaslug", "generator", "mode", "system", "strategy",
        "policy", "agent", "provider",
    ),
    "tokens": (
        *_GENERATED, "tokens", "num_tokens", "n_tokens", "token_count", "length", "token_len", "candidates_token_count",
        "candidatestokencount",
    ),
    "cost": ("cost", "cost_usd", "usd", "price", "total_cost", "totalcost", "dollars"),
    "correct": (
        "correct", "is_correct", "score", "scores", "reward", "exact_match", "acc", "passed", "pass", "success", "right",
        "grade", "graded_list", "result", "em", "resolved", "correctness", "answer_correctness", "performance", "extractive_match", "quasi_exact_match",
        "accuracy", "verdict", "pass@1", "base_status",
    ),
    "text": (
        "text", "response", "output", "completion", "generation", "model_output", "code", "full_response", "answer_text", "prediction",
        "generated_text", "model_response", "raw_output", "output_list", "responses", "outputs", "generations", "content", "solution",
    ),
    "dataset": ("dataset", "task", "benchmark", "source", "subset", "category"),
}  # fmt: skip
"""Their usual names for what a table needs."""
_ANOTHER = re.compile(
    r"prompt|input|max|total|cache|request|session|run|user|response|answer|trace|judge|grader|model|group|parent|api|format"
    r"|(^|_)(num|avg|mean|count|in|std)($|_)"
)
"""What, before a usual name, makes it something else: ``prompt_tokens``, ``request_id``."""
_NOT_GENERATED = re.compile(
    r"question|problem|query|instruction|context|document|passage|system|expected|reference|gold|target|truth|correct|label|tool|eval"
)
"""What, before a usual name of what answered, its text or cost, makes it another: ``question_content``, ``expected_output``, ``evaluationModel``."""
ERRORS = ("error", "error_message", "exception")
"""Columns that say that a call failed."""
NO_TABLE = 9
"""How far a file is from a table for which nothing can be proposed."""
Kind = Literal["", "number", "mark", "text", "list"]
"""What a path leads to; "" where it is nothing or has parts, ``mark`` a word or truth value that says right or wrong."""
_KINDS: dict[str, tuple[Kind, ...]] = {
    "question": ("text",),
    "text": ("text", "list"),
    "tokens": ("number", "list"),
    "cost": ("number", "list"),
    "correct": ("number", "mark", "list"),
}
"""Kinds of values that a column of ours can have, where not all."""
_PART = {"question": ("raw", "text", "content", "value"), "tier": ("id", "name"), "correct": ("value",)}
"""Names of parts that stand for the whole: ``prompt.raw``, ``provider.id``."""
JUDGED_BY = (*JUDGES, "evaluator", "metric_name", "scorer_name", "evaluator_name")
"""Columns that name who judged a row, or by what."""
CONDITIONS = (
    "step", "global_step", "checkpoint", "turn", "perturbation", "temperature", "prompt_id", "prompt_name", "prompt_version", "variant",
    "condition", "setting", "num_fewshot", "effort", "reasoning_effort", "thinking_budget", "eval_id",
)  # fmt: skip
"""Columns that make rows of one question and model other than its samples."""
_EFFORTS = ("effort", "reasoning_effort", "level", "mode")
_OF_REQUESTS = {
    "completions", "cached", "request_time", "request_datetime", "error_flags", "status_code", "http_status", "status_text", "ttft",
    "itl",
}  # fmt: skip
"""What stands beside a ``success`` that says that a request was answered, not that the answer was right."""
_HOW = re.compile(r"(?!.*_(level|mode|system|strategy|policy|agent|provider)$)|.*(reason|think|effort)")
"""Names that, where they end in a usual one, say who answered or how: ``thinking_mode``, not ``failure_mode``."""
_WORDS = ("correct", "is_correct", "grade", "correctness")
"""Columns that judge, whatever they say: what cannot be read is told row by row."""
_COUNT = re.compile(r"_(count|total|num)$")
"""What, behind the name of a judgement, counts them."""
_JUDGEMENTS = ("score", "scores", "correctness", "feedback", "metric", "metrics", "metrics_data", "assertions")
"""Objects of judgements by name: ``scores.accuracy``, and ``score_match`` beside each other."""


def like(name: str, paths: Iterable[str]) -> list[str]:
    """Paths that end in a name, else those that read like it."""
    leaves = {path: path.rpartition(".")[2] for path in paths}
    found = [path for path, leaf in leaves.items() if own_name(leaf) == own_name(name.rpartition(".")[2])]
    return (found or difflib.get_close_matches(name, paths, 3, 0.75))[:3]


def lacking(columns: Iterable[str]) -> dict[str, str]:
    """Columns of ours that a table still needs, and what each says."""
    have, missing = set(columns), {}
    if "correct" not in have:
        missing["correct"] = "whether an answer was right"
    if not {"tokens", "cost", "text"} & have:
        missing["tokens"] = "what an answer cost (tokens, or cost in US dollars, or the text to count)"
    if not {"question", "question_id"} & have:
        missing["question"] = "which question it answers"
    if "tier" not in have:
        missing["tier"] = "who answered, or how much it thought"
    return missing


def check_complete(
    file: LogFile,
    columns: dict[str, str],
    paths: Mapping[str, Kind],
    others: Sequence[LogFile],
    keyed: Iterable[str],
    *,
    starred: bool,
    unit: str | None,
) -> None:
    """Whether a mapping gives all that a table needs.

    :param starred: whether generations are parts of one row, not rows.
    :param unit: of costs that a user wants, if any.
    :param keyed: paths before a ``*`` whose parts are called the same in all rows, as tiers are.
    :raises LackingError: with options that would.
    """
    if not (missing := lacking(columns)):
        return
    costs = {None: ("tokens", "cost", "text"), "tokens": ("tokens", "text")}.get(unit, ("cost",))
    instead = {"tokens": costs, "question": ("question", "question_id")}
    proposals: dict[str, str] = {}
    for name in missing:
        options = [
            (ours, path) for ours in instead.get(name, (name,)) for path in proposed(ours, paths, starred=starred)
        ]
        # All stars stand for the parts of one list.
        lists = {path.partition("*")[0] for path in (columns | proposals).values() if "*" in path}
        fitting = [one for one in options if "*" not in one[1] or not lists or one[1].partition("*")[0] in lists]
        if name == "tokens" and lists:
            fitting.sort(key=lambda one: "*" not in one[1])  # of each generation, not of all of a row
        proposals |= dict(fitting[:1])
    if "tier" in proposals and _name(proposals["tier"]) in _EFFORTS:
        # Models at several efforts are tiers of each.
        models = [path for path in proposed("tier", paths) if _name(path) not in _EFFORTS]
        if models and "*" not in models[0] + proposals["tier"]:
            proposals["tier"] = f"{{{models[0]}}} {{{proposals['tier']}}}"
    beside = _side_by_side(paths) if {"correct", "tokens"} <= missing.keys() else {}
    if beside and (beside["correct"] != "*" or "correct" not in proposals):
        # Columns of one model alone would be no mapping.
        proposals = {ours: path for ours, path in proposals.items() if ours not in ("tokens", "cost", "text")} | beside
    if "*" not in (columns | proposals).get("correct", "*"):
        # Lists beside a list of scores are its samples, not generations by themselves.
        proposals = {ours: theirs.replace(".*.", ".") for ours, theirs in proposals.items()}
    if "tier" not in {*proposals, *columns} and (columns | proposals).get("correct", "").partition("*")[0] in keyed:
        proposals["tier"] = "{*}"
    if "tier" not in {*proposals, *columns}:
        proposals["tier"] = "{folder}" if sum(other.stem == file.stem for other in others) > 1 else "{file}"
    unknown = [name for name in missing if not {*instead.get(name, (name,))} & proposals.keys()]
    judging = _judging(paths) if "correct" in unknown else []
    if judging:
        unknown.remove("correct")
    raise LackingError(
        str(file.path),
        f"no column says {'; or '.join(missing.values())} ({', '.join(missing)}). It has {some(list(paths))}. "
        + (f"Whether an answer was right may stand in {some(judging)}. " if judging else "")
        + (f"Nothing in it reads like {' or '.join(unknown)}, without which there is no table. " if unknown else "")
        + ("Name columns with --column ours=theirs" + (f", perhaps: {as_options(proposals)}" if proposals else "")),
        NO_TABLE + len(unknown) - 1 if unknown else len(missing),
        proposals,
    )


def as_options(columns: Mapping[str, str]) -> str:
    """A mapping as a command line has it."""
    return " ".join(f"--column {_quoted(f'{ours}={theirs}')}" for ours, theirs in columns.items())


def _quoted(text: str) -> str:
    """A word of a command line, as a shell needs it."""
    return text if re.fullmatch(r"[\w=.{}@%+:,/-]+", text) else shlex.quote(text)


def proposed(ours: str, paths: Mapping[str, Kind], *, starred: bool = False) -> list[str]:
    """Paths to values that have a usual name of a column of ours, then those that end in one, the likeliest first.

    :param starred: whether those of parts come before all others: in a document of all generations.
    """
    leaves = _leaves(ours, paths)
    found = []
    for wanted in PROPOSED[ours]:
        found += sorted((path for path, leaf in leaves.items() if leaf == wanted), key=lambda path: path.count("*"))
    for wanted in PROPOSED[ours]:
        ends = {path: leaf.removesuffix(f"_{wanted}") for path, leaf in leaves.items() if leaf.endswith(f"_{wanted}")}
        another = (_ANOTHER, _NOT_GENERATED) if ours in ("text", "tokens", "cost", "tier") else (_ANOTHER,)
        found += [
            path
            for path, before in ends.items()
            if not any(one.search(before) for one in another) and (ours != "tier" or _HOW.match(leaves[path]))
        ]
    for judge in _JUDGEMENTS if ours == "correct" else ():
        mine = [
            path
            for path, leaf in leaves.items()
            if judge in (leaf.partition("_")[0], _parent(path)) and not _COUNT.search(leaf)
        ]
        found += mine if len(mine) == 1 else []
    found = list(dict.fromkeys(found))
    return sorted(found, key=lambda path: "*" not in path) if starred and ours not in ("tier", "dataset") else found


def _judging(paths: Mapping[str, Kind]) -> list[str]:
    """Paths of judgements by name, of which none can be proposed because there are several; of a list: the first."""
    fitting = [
        path for path, kind in paths.items() if kind in ("number", "mark", "list") and not _COUNT.search(_name(path))
    ]
    return [
        path.replace(".*.", ".0.")
        for path in fitting
        if any(judge in (_name(path).partition("_")[0], _parent(path.replace(".*.", "."))) for judge in _JUDGEMENTS)
    ]


def _leaves(ours: str, paths: Mapping[str, Kind]) -> dict[str, str]:
    """What the paths to values of the right kind are called; of turns of a conversation: the last."""
    found = {}
    for path, kind in paths.items():
        leaf = _name(path)
        turns = path.removesuffix(".*.content")
        if turns != path and f"{turns}.*.role" in paths:
            path, leaf = f"{turns}.-1.content", _name(turns)
        elif leaf in _PART.get(ours, ()) and _parent(path) in PROPOSED[ours]:
            leaf = _parent(path)
        elif ours == "question_id" and _parent(path) in PROPOSED["tier"]:
            continue
        elif ours == "tokens" and leaf in ("completion", "output") and re.search("usage|token", _parent(path)):
            leaf = _GENERATED[0]
        elif ours == "cost" and leaf == "total" and re.search("cost|price", _parent(path)):
            leaf = "total_cost"
        asked = any(own_name(part) in PROPOSED["question"] for part in path.split(".")[:-1])
        fits = kind in _KINDS.get(ours, (kind,)) or (ours == "correct" and leaf in _WORDS)
        if ours == "correct" and leaf == "success":
            above = path.rpartition(".")[0]
            fits = fits and not any(
                _name(other) in _OF_REQUESTS for other in paths if other.rpartition(".")[0] == above
            )
        # The parts of an object of judgements are no generations.
        plain = ".".join(map(_name, path.split(".")))
        judges = ours == "correct" and any(f"{judge}.*" in plain for judge in _JUDGEMENTS)
        if kind and fits and not judges and not (ours == "text" and asked):
            found[path] = leaf
    return found


def _name(path: str) -> str:
    """What the last part of a path is called: ``a.actualOutput`` is ``actual_output``, ``Cost (USD)`` is ``cost_usd``, ``em/v1/score`` is ``em``."""
    leaf = re.sub(r"/v\d+(/score)?$", "", path.rpartition(".")[2])
    return own_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[()]", " ", leaf))


def _parent(path: str) -> str:
    return _name(path.rpartition(".")[0])


def _side_by_side(paths: Iterable[str]) -> dict[str, str]:
    """A mapping for tables with columns for every model, side by side: ``gpt-4``, ``gpt-4|total_cost``, ``llama``, ..., or ``m_correct``,
    ``m_tokens``, or ``correct_m``, ``tokens_m``; or nothing."""
    names = set(paths)
    usual = {name for group in PROPOSED.values() for name in group}
    found: dict[tuple[str, str], set[str]] = {}
    wanted_names = [(one, name) for one in ("correct", "tokens", "cost", "text") for name in PROPOSED[one]]
    for ours, wanted in wanted_names:
        for path in sorted(names):
            after = re.fullmatch(rf"(?P<stem>.+?)(?P<end>[^0-9A-Za-z]+{wanted})", path, re.IGNORECASE)
            before = re.fullmatch(rf"(?P<start>{wanted}[^0-9A-Za-z.]+)(?P<stem>.+)", path, re.IGNORECASE)
            if not (match := after or before):
                continue
            part = after is not None and after["end"][0] == "." and after["stem"] in names
            if not part and own_name(match["stem"]) not in usual and not _ANOTHER.fullmatch(own_name(match["stem"])):
                pattern = f"*{after['end']}" if after else f"{match['start']}*"
                found.setdefault((ours, pattern), set()).add(match["stem"])
    judged = {pattern: stems for (ours, pattern), stems in found.items() if ours == "correct"}
    for ours in ("tokens", "cost", "text"):
        for (other, pattern), stems in found.items():
            if other != ours:
                continue
            for right, judges in (judged | ({"*": names} if pattern[0] == "*" else {})).items():
                if len(stems & judges) > 1:
                    return {"correct": right, ours: pattern, "tier": "{*}"}
    return {}


def spellings(ours: str, theirs: str, paths: Mapping[str, Kind]) -> list[str]:
    """What a file may call what another calls ``theirs``: the same name elsewhere, else our own, else a usual one of one meaning."""
    leaves = {path: _name(path) for path, kind in paths.items() if kind}
    several = {
        name
        for ours, names in PROPOSED.items()
        for other, more in PROPOSED.items()
        if other != ours
        for name in {*names} & {*more}
    }
    usual = {name for name in PROPOSED.get(ours, ()) if name not in several}
    for names in ({_name(theirs)}, {ours}, set(_GENERATED) if ours == "tokens" else set(), usual):
        if found := [path for path, leaf in leaves.items() if leaf in names]:
            return found
    return []


def counts(paths: Mapping[str, Kind]) -> list[str]:
    """Paths whose names say that they count generated tokens."""
    return [path for path, kind in paths.items() if kind and _name(path) in _GENERATED]


def some(paths: Sequence[str], most: int = 30) -> str:
    """The first of some names."""
    shown = ", ".join(printable(path)[:60] for path in paths[:most])
    return shown + (f" and {len(paths) - most} more" if len(paths) > most else "")
