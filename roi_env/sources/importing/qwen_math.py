"""Qwen2.5-Math's evaluation harness and its many copies: lines with ``code[]`` (the texts) and ``score[]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from roi_env.sources.importing.files import LogFile
from roi_env.sources.importing.generations import NO_SAMPLES, Generation, Options, Report, text_of, with_options

_RUN = re.compile(r"(train|test|val|validation)_.*")
_OF_SAMPLES = re.compile(r"_seed\d+|_s\d+_e-?\d+")
"""What the names of runs that only draw other samples, or ask other questions, differ in."""


def matches(file: LogFile, first: Any) -> bool:
    """Lines with lists of texts and of scores."""
    return isinstance(first, dict) and isinstance(first.get("code"), list) and isinstance(first.get("score"), list)


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Every text of a question is a generation."""
    model, dataset = _names(file)
    condition = _OF_SAMPLES.sub("", file.stem) if _RUN.fullmatch(file.stem) else ""
    for place, record in file.records():
        if not isinstance(record, dict) or not isinstance(record.get("code"), list):
            raise file.error(f"{place} has no list 'code' of texts")
        scores = record.get("score")
        if not isinstance(scores, list):
            report.dropped["no score"] += len(record["code"])
            continue
        if len(scores) != len(record["code"]):
            raise file.error(f"{place}: {len(record['code'])} texts in 'code' but {len(scores)} values in 'score'")
        if not scores:
            report.dropped[NO_SAMPLES] += 1
        question = next((record[name] for name in ("question", "problem") if isinstance(record.get(name), str)), "")
        answer = next((record[name] for name in ("gt", "answer") if record.get(name) is not None), None)
        for text, score in zip(record["code"], scores, strict=True):
            yield Generation(
                score=score,
                dataset=dataset,
                question_id=text_of(record.get("idx")),
                question=with_options(question.strip(), record.get("choices")),
                answer=text_of(answer),
                model=model,
                text=text if isinstance(text, str) else text_of(text),
                condition=condition,
                place=place,
            )


def _names(file: LogFile) -> tuple[str, str]:
    """``(model, dataset)``: the harness writes ``MODEL/.../DATASET/test_....jsonl``; copies are named ``MODEL__DATASET``."""
    stem = file.stem
    model, between, dataset = stem.rpartition("__")
    if between:
        return model, dataset
    folders = file.path.absolute().parent.parts
    if _RUN.fullmatch(stem) and len(folders) > 2:
        above = [name for name in folders[:-1] if name not in ("math_eval", "outputs", "results")]
        return above[-1], folders[-1]
    return stem, folders[-1]
