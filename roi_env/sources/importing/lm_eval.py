"""lm-evaluation-harness: ``samples_TASK_TIME.jsonl`` of ``--log_samples``, with the results file of the run beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from roi_env.sources.importing.files import LogError, LogFile
from roi_env.sources.importing.generations import (
    Generation,
    Options,
    Report,
    choose,
    dict_of,
    judged_by_share,
    settings_text,
    text_of,
    verdict,
    with_options,
)

_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)$")
_METRICS = ("exact_match", "acc", "pass@1", "pass_at_1", "math_verify", "correct", "em", "score")
_SHARES = ("pass@1", "pass_at_1")
"""Metrics that of several generations are the share that was right."""
_QUESTIONS = ("question", "problem", "query", "prompt", "input", "text")
_OPTIONS = ("options", "choices")
_OURS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip


def matches(file: LogFile, first: Any) -> bool:
    """Lines with ``doc_id`` and what was answered."""
    return isinstance(first, dict) and "doc_id" in first and ("resps" in first or "filtered_resps" in first)


def is_results(first: Any) -> bool:
    """Whether a document is the results file of a run: aggregates."""
    return (
        isinstance(first, dict)
        and isinstance(first.get("results"), dict)
        and bool({"configs", "n-shot", "lm_eval_version", "versions"} & first.keys())
    )


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of a file: one filter of several, one metric of several."""
    name = _SAMPLES.match(file.stem)
    run = _run(file.path.parent, name["time"] if name else "")
    task = name["task"] if name else next((one for one in run.filters if file.stem.endswith(f"_{one}")), file.stem)
    model, effort = _model(file, name["time"] if name else "", run, report)
    labels = _filters(file, run.filters.get(task, ()))
    filters, metrics = list(dict.fromkeys(labels)), _metrics(file)
    by_filter, by_metric = options.filter in filters, options.filter in metrics
    if options.filter is not None and not (by_filter or by_metric):
        raise file.error(
            f"no filter or metric {options.filter!r}; filters are {filters}, metrics {metrics}", is_log=True
        )
    taken = choose(filters, options.filter if by_filter else None, "filter", report)
    if not metrics:
        raise file.error("has no metric that says whether an answer is right (exact_match, acc, ...)", is_log=True)
    metric = choose(metrics, options.filter if by_metric else None, "metric", report) or ""
    for (place, value), label in zip(file.records(), labels, strict=True):
        record = _record(file, place, value)
        if label != taken:
            report.dropped[f"other filter of the same generation ({label})"] += 1
            continue
        if (texts := _texts(record.get("resps"))) is None:
            report.dropped["chosen by likelihood: nothing was generated"] += 1
            continue
        doc = dict_of(record.get("doc"))
        whole = Generation(
            dataset=task,
            question_id=text_of(record["doc_id"]),
            question=_question(doc, record),
            answer=_answer(record.get("target")),
            model=model,
            effort=effort,
            condition=run.conditions.get(task, ""),
            place=place,
        )
        for score, paid in _judged(file, place, record, metric, taken or "", texts, report):
            yield replace(whole, score=score, text=paid[0] if paid else None, texts=tuple(paid[1:]))


def _judged(
    file: LogFile, place: str, record: Mapping[str, Any], metric: str, taken: str, texts: list[str], report: Report
) -> list[tuple[Any, list[str]]]:
    """``(score, texts that are paid for it)`` of a sample's generations.

    :raises LogError: where of several generations it is not told which were right.
    """
    score, number = _score(record.get(metric)), len(texts)
    if isinstance(score, list):
        if len(score) != number:
            raise file.error(
                f"{place}: {metric!r} is a list of {len(score)} scores, and there are {number} generations"
            )
        return [(one, [text]) for one, text in zip(score, texts, strict=True)]
    if number < 2:
        return [(score, texts)]
    said = f"several generations a question ({file.path.name}): "
    all_judged = len(_texts(record.get("filtered_resps")) or ()) >= number
    if not all_judged and not re.search(r"maj|vote|pass@|best", taken):
        report.note(f"{said}the first is judged, and paid")
        return [(score, texts[:1])]
    if all_judged and metric in _SHARES:
        return [
            (one, [text]) for one, text in zip(judged_by_share(file, place, metric, score, number), texts, strict=True)
        ]
    report.note(f"{said}all of them are judged as one answer, so all are paid")
    return [(score, texts)]


def _record(file: LogFile, place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "doc_id" not in value:
        raise file.error(f"{place} is no sample of lm-evaluation-harness (an object with doc_id)")
    return value


def _filters(file: LogFile, names: Sequence[str]) -> list[str]:
    """The filter of every record. Versions before 0.4.6 wrote a generation once for each filter and did not say which: the first
    of the task's filters comes first."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for place, value in file.records():
        record = _record(file, place, value)
        if "filter" not in record:
            key = text_of(record["doc_id"]), json.dumps(record.get("resps"))
            number, seen[key] = seen[key], seen[key] + 1
            found.append(names[number] if number < len(names) else f"filter {number + 1}")
        else:
            found.append(text_of(record["filter"]))
    return found


def _metrics(file: LogFile) -> list[str]:
    """Names of what a sample is judged by, the usual ones first."""
    first = file.first()
    generations = len(_texts(first.get("resps")) or ())

    def each(value: Any) -> bool:
        """Whether it judges every one of several generations."""
        return isinstance(value, list) and len(value) == generations > 1 and all(map(_judges, value))

    numbers = [name for name, value in first.items() if name not in _OURS and (_judges(_score(value)) or each(value))]
    told = first.get("metrics")
    named = [name for name in told if name in numbers] if isinstance(told, list) else numbers
    return sorted(
        named or numbers,
        key=lambda name: (not each(first[name]), _METRICS.index(name) if name in _METRICS else len(_METRICS)),
    )


def _score(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _texts(resps: Any) -> list[str] | None:
    """Generated texts of a sample, or None where options were scored by likelihood instead."""
    flat: list[str] = []
    level = [resps]
    while level:
        value = level.pop(0)
        if isinstance(value, str):
            flat.append(value)
        elif isinstance(value, list):
            if len(value) == 2 and str(value[1]) in ("True", "False") and _is_number(value[0]):
                return None
            level = [*value, *level]
        elif isinstance(value, int | float):
            return None
    return flat


def _judges(value: Any) -> bool:
    """Whether a value is a judgement: a number, or a text, as the harness writes values of NumPy."""
    return isinstance(value, bool | int | float) or (
        isinstance(value, str) and (verdict(value) is not None or _is_number(value))
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _question(doc: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    text = next((str(doc[name]) for name in _QUESTIONS if isinstance(doc.get(name), str) and doc[name].strip()), "")
    choices = next((doc[name] for name in _OPTIONS if doc.get(name)), None)
    if isinstance(choices, dict):
        choices = choices.get("text")
    if text:
        return with_options(text.strip(), choices)
    # The prompt: arguments of the request.
    level: list[Any] = [record.get("arguments")]
    while level:
        value = level.pop(0)
        if isinstance(value, str):
            return value
        level = [*(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()), *level]
    return ""


def _answer(target: Any) -> str:
    """The reference; of a worked solution in GSM8K's form, what follows its last mark."""
    text = text_of(target)
    return text.rpartition("####")[2].strip()


class _Run(NamedTuple):
    """What the results file of a run tells: who answered, the names of every task's filters, and its other settings."""

    model: str = ""
    effort: str = ""
    filters: Mapping[str, Sequence[str]] = {}
    conditions: Mapping[str, str] = {}


def _model(file: LogFile, time: str, run: _Run, report: Report) -> tuple[str, str]:
    """``(model, effort)``: from the results file of the same run beside it, else the folder that the harness names after the
    model, else the time of the run."""
    if run.model:
        return run.model, run.effort
    folder = file.path.absolute().parent.name
    if "__" in folder:
        return folder.replace("__", "/", 1), ""
    report.warn(
        "no results file names the model of some runs: they are told apart by their time or file name; put results_TIME.json "
        "beside the samples, or name tiers with --column tier=... (and --column dataset=... where files are named after models)"
    )
    return time.partition(".")[0] or file.stem, ""


@lru_cache(maxsize=256)
def _run(folder: Path, time: str) -> _Run:
    path = folder / (f"results_{time}.json" if time else "results.json")
    if not path.is_file():
        return _Run()
    try:
        results = dict_of(LogFile(path).document())
    except LogError:
        return _Run()
    config = dict_of(results.get("config"))
    arguments = _settings(config.get("model_args"))
    model = text_of(
        results.get("model_name") or arguments.get("pretrained") or arguments.get("model") or config.get("model")
    )
    generation = _settings(config.get("gen_kwargs"))
    settings = arguments | generation
    named = ("reasoning_effort", "enable_thinking", "thinking_budget", "max_gen_toks", "max_tokens")
    effort = " ".join(f"{name}={text_of(settings[name])}" for name in named if settings.get(name) not in (None, ""))
    tasks = dict_of(results.get("configs"))
    shots = dict_of(results.get("n-shot")) | {task: dict_of(of).get("num_fewshot") for task, of in tasks.items()}
    prompts = {name: results.get(name) for name in ("system_instruction", "chat_template_sha")}
    return _Run(
        model,
        effort,
        {task: _names(of) for task, of in tasks.items()},
        {task: settings_text({"num_fewshot": number} | prompts | generation) for task, number in shots.items()},
    )


def _names(task: Any) -> list[str]:
    filters = dict_of(task).get("filter_list")
    return [text_of(dict_of(one).get("name")) for one in filters] if isinstance(filters, list) else ["none"]


def _settings(value: Any) -> dict[str, Any]:
    """Settings as an object, or as ``name=value,name=value``."""
    if isinstance(value, str):
        return dict(part.partition("=")[::2] for part in value.split(","))
    return dict_of(value)
