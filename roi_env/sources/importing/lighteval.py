"""lighteval: ``details/ORG/MODEL/TIME/details_TASK_TIME.parquet`` of ``--save-details``, and those that leaderboards of the Hugging Face hub
published, in which the same columns had other names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from roi_env.sources.importing.files import LogFile
from roi_env.sources.importing.generations import (
    Generation,
    Options,
    Report,
    choose,
    dict_of,
    judged_by_share,
    settings_text,
    text_of,
)

_FILE = re.compile(r"details_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.:-]+$")
_USUAL = re.compile(
    r"(extractive|exact|quasi_exact)_match|q?em|acc|pqem|.*pass@.*|avg@.*|maj@.*|.*strict_acc.*|.*accuracy|.*_judge"
)
"""Metrics that say whether an answer is right."""
_SHARE = re.compile(r".*pass@(k:k=)?1\b.*|avg@.*")
"""Those that of several generations are the share that was right."""


def matches(file: LogFile, first: Any) -> bool:
    """Rows with a document, a response and metrics; or their older names."""
    if not isinstance(first, dict):
        return False
    return {"doc", "model_response", "metric"} <= first.keys() or {
        "full_prompt",
        "predictions",
        "metrics",
    } <= first.keys()


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of a file, by one metric of several; counts are those of the tokens' ids."""
    metrics: dict[str, None] = {}
    for _, record in file.records():
        metrics |= dict.fromkeys(name for name, value in _metrics(record).items() if value is not None)
    usual = [name for name in metrics if _USUAL.fullmatch(name)] or list(metrics)
    if options.filter is not None and options.filter not in metrics:
        raise file.error(f"no metric {options.filter!r}; metrics are {', '.join(metrics)}", is_log=True)
    metric = choose(list(metrics) if options.filter else usual, options.filter, "metric", report) or ""
    model = _model(file, report)
    for place, record in file.records():
        if not isinstance(record, dict):
            raise file.error(f"{place} is no object of a document, a response and metrics")
        doc, said = dict_of(record.get("doc")), dict_of(record.get("model_response"))
        texts = [
            text_of(one)
            for one in _list(said.get("text") if said else record.get("predictions"))
            if isinstance(one, str)
        ]
        if not texts:
            report.dropped["chosen by likelihood: nothing was generated"] += 1
            continue
        ids = _list(said.get("output_tokens") if said else record.get("cont_tokens"))
        ids = [ids] if ids and not isinstance(ids[0], list) else ids
        counts: list[Any] = [len(one) if isinstance(one, list) else None for one in ids]
        counts = counts if len(ids) == len(texts) else [None] * len(texts)
        thoughts = _list(said.get("reasonings")) if said else []
        task, shots = _task(text_of(doc.get("task_name")) or _named(file))
        score, number = _metrics(record).get(metric), len(texts)
        whole = Generation(
            dataset=task,
            question_id=text_of(doc.get("id")),
            question=text_of(doc.get("query") or record.get("example") or record.get("full_prompt")),
            answer=_answer(doc, record),
            model=model,
            condition=settings_text({"num_fewshot": shots}),
            place=place,
        )
        if number == 1 or _SHARE.fullmatch(metric):
            scores = judged_by_share(file, place, metric, score, number)
            for at, text in enumerate(texts):
                thought = thoughts[at] if at < len(thoughts) else None
                yield replace(whole, score=scores[at], tokens=counts[at], text=text, thought=thought)
        else:
            report.note(
                f"several generations a question ({file.path.name}): all of them are judged as one answer, so all are paid"
            )
            total = sum(counts) if None not in counts else None
            yield replace(whole, score=score, tokens=total, text=texts[0], texts=tuple(texts[1:]))


def _metrics(record: Any) -> Mapping[str, Any]:
    return dict_of(dict_of(record).get("metric") or dict_of(record).get("metrics"))


def _list(value: Any) -> list[Any]:
    """A list, or the only element of one; some versions wrote lists as texts."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return value if isinstance(value, list) else [] if value is None else [value]


def _answer(doc: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    choices, gold = doc.get("choices"), _list(doc.get("gold_index"))
    if isinstance(choices, list) and gold and isinstance(gold[0], int) and 0 <= gold[0] < len(choices):
        return text_of(choices[gold[0]])
    return text_of(record.get("gold"))


def _named(file: LogFile) -> str:
    match = _FILE.match(file.stem)
    return match["task"] if match else file.stem


def _task(name: str) -> tuple[str, str]:
    """``(task, examples in the prompt)`` of ``SUITE|TASK|SHOTS`` or ``TASK|SHOTS``."""
    parts = name.split("|")
    if len(parts) > 1 and parts[-1].isdecimal():
        return parts[1] if len(parts) > 2 else parts[0], parts[-1] if len(parts) < 4 else parts[2]
    return name, ""


def _model(file: LogFile, report: Report) -> str:
    """From the folders ``details/ORG/MODEL/TIME`` or, of the hub's, ``details_ORG__MODEL/TIME``."""
    folder = file.folder
    name = folder.name.removeprefix("details_").removesuffix("_private")
    if "__" in name:
        return name.replace("__", "/", 1)
    if "details" in (folder.parent.name, folder.parent.parent.name):
        return name if folder.parent.name == "details" else f"{folder.parent.name}/{name}"
    report.warn(
        f"{file.path.name}: nothing but its folder names the model; it is called {name!r}: name it with --column tier=..."
    )
    return name
