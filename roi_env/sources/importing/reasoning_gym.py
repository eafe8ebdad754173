"""reasoning-gym's evaluations: ``categories[].datasets[].results[]``, or one data set's ``results[]``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roi_env.sources.importing.files import LogFile
from roi_env.sources.importing.generations import Generation, Options, Report, dict_of, settings_text, text_of

_RUN = re.compile(r"(?P<model>.+?)_\d{8}_\d{6}")
_SETTINGS = ("system_prompt", "system_prompt_id", "max_tokens", "temperature", "top_p", "reasoning_effort")
"""Under others of these, answers are no samples of the same."""


def matches(file: LogFile, first: Any) -> bool:
    """A document with results that have completions, or with categories of them."""
    if not isinstance(first, dict):
        return False
    if isinstance(first.get("categories"), list):
        return any(isinstance(one, dict) and "datasets" in one for one in first["categories"])
    results = first.get("results")
    return isinstance(results, list) and any(isinstance(one, dict) and "completions" in one for one in results[:10])


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Every completion of every question is a generation."""
    document = file.only()
    model, run = _model(file.path, document, report), _run(file.path, document)
    for dataset in _datasets(file, document):
        results = dataset.get("results")
        name = text_of(dataset.get("name") or dataset.get("dataset") or file.path.stem)
        if not isinstance(results, list):
            raise file.error(f"data set {name!r} has no list of results (only averages?)", is_log=True)
        told = {**dataset, **_metadata(document)}
        condition = settings_text({one: told.get(one) for one in _SETTINGS})
        for number, result in enumerate(results):
            place = f"data set {name!r}, result {number + 1}"
            if not isinstance(result, dict):
                raise file.error(f"{place} is no object")
            completions = result.get("completions")
            if not isinstance(completions, list) or not completions:
                report.dropped["no completions"] += 1
                continue
            for sample, completion in enumerate(completions):
                if not isinstance(completion, dict):
                    raise file.error(f"{place}: a completion is no object")
                if completion.get("score") is None:
                    report.dropped["ended in an error" if completion.get("error") else "no score"] += 1
                    continue
                text = completion.get("full_model_response")
                yield Generation(
                    score=completion["score"],
                    dataset=name,
                    # Numbers say nothing: another seed or version asks another question under the same one.
                    question_id="" if (question := text_of(result.get("question"))) else str(number),
                    question=question,
                    answer=text_of(result.get("expected_answer")),
                    model=model,
                    tokens=completion.get("output_tokens", completion.get("completion_tokens")),
                    text=text if isinstance(text, str) else "",
                    name=f"{run} {name} {number} {sample} {text_of(text)}" if run else "",
                    condition=condition,
                    error=text_of(completion.get("error")),
                    place=place,
                )


def _run(path: Path, document: Mapping[str, Any]) -> Path | None:
    """The folder of a run, which has ``results.json`` of all data sets, and in ``CATEGORY/`` the same results, a file each; None of
    other files."""
    folder = path.absolute().parent
    if folder.name == document.get("category"):
        return folder.parent
    return folder if path.stem == "results" and "categories" in document else None


def _metadata(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the document tells of its run."""
    return {**dict_of(document.get("config")), **document, **dict_of(document.get("metadata"))}


def _datasets(file: LogFile, document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "categories" not in document:
        yield document
        return
    for category in document["categories"]:
        datasets = category.get("datasets") if isinstance(category, dict) else None
        if not isinstance(datasets, list):
            raise file.error("a category has no list of datasets")
        for dataset in datasets:
            if not isinstance(dataset, dict):
                raise file.error("a data set is no object")
            yield dataset


def _model(path: Path, document: Mapping[str, Any], report: Report) -> str:
    """The model that the log names, else the file or folder: ``MODEL_DATE_TIME``; of one category: ``MODEL_CATEGORY_DATE_TIME``."""
    if isinstance(named := _metadata(document).get("model"), str) and named.strip():
        return named.strip()
    for part in (path.stem, *(parent.name for parent in path.absolute().parents)):
        if match := _RUN.match(part):
            return match["model"].removesuffix(f"_{text_of(document.get('category'))}").replace("_", "/", 1)
    report.warn(f"{path.name}: nothing names the model; it is called {path.stem!r} after its file")
    return path.stem
