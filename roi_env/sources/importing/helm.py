"""HELM: ``per_instance_stats.json`` of a run, whose model, questions and texts stand in the files beside it; or the
``display_predictions.json`` that ``helm-summarize`` writes, with the metrics that it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from roi_env.sources.importing.files import CompanionError, LogError, LogFile
from roi_env.sources.importing.generations import (
    Generation,
    Options,
    Report,
    choose,
    dict_of,
    settings_text,
    text_of,
    with_options,
)

_STATS, _DISPLAYED, _STATE, _RUN = (
    "per_instance_stats.json", "display_predictions.json", "scenario_state.json", "run_spec.json",
)  # fmt: skip
_METRICS = (
    "chain_of_thought_correctness", "ifeval_strict_accuracy", "omni_math_accuracy", "math_equiv_chain_of_thought", "math_equiv",
    "final_number_exact_match", "code_eval_acc", "pass", "strict_acc", "exact_match", "quasi_exact_match", "prefix_exact_match",
    "quasi_prefix_exact_match", "exact_match_indicator", "accuracy", "correctness",
)  # fmt: skip
"""Metrics that say whether an answer is right, those of one benchmark before those of all."""
_INSTANCE = {
    "input", "references", "split", "sub_split", "id", "perturbation", "contrast_inputs", "contrast_references", "extra_data",
}  # fmt: skip
_LIKELIHOODS = ("multiple_choice_separate", "language_modeling", "ranking_binary")
_SETTINGS = ("method", "instructions", "max_train_instances", "num_outputs", "temperature", "max_tokens")
"""Of a run, under others of which answers are no samples of the same."""


def matches(file: LogFile, first: Any) -> bool:
    """Elements that judge an instance."""
    if not isinstance(first, dict) or not {"instance_id", "stats"} <= first.keys():
        return False
    return "predicted_text" in first or (isinstance(first["stats"], list) and "train_trial_index" in first)


def is_companion(first: Any) -> bool:
    """Whether a document is another file of a run: its settings, requests and answers, averages."""
    if not isinstance(first, dict):
        return False
    state = isinstance(first.get("request_states"), list) or "scenario_spec" in first
    asked = {"instance_id", "train_trial_index", "request"} <= first.keys()
    instance = {"input", "references", "id", "split"} <= first.keys() <= _INSTANCE
    average = isinstance(first.get("name"), dict) and {"count", "sum", "sum_squared"} <= first.keys()
    scenario = {"name", "description", "tags", "definition_path"} <= first.keys()
    return ("adapter_spec" in first and state) or asked or instance or average or scenario


def read(file: LogFile, options: Options, report: Report, others: list[LogFile]) -> Iterator[Generation]:
    """Generations of a run: one an instance and trial, by one metric of several."""
    displayed = "predicted_text" in file.first()
    if displayed and any(one.path == file.path.with_name(_STATS) for one in others):
        raise CompanionError(str(file.path), f"holds what {_STATS} beside it holds")
    run = _run(file.path.parent)
    if not run.model:
        report.warn(
            f"{file.path}: no {_RUN} beside it names the model; it is called {run.name!r} after its folder: name it with --column tier=..."
        )
    judged = _displayed(file) if displayed else _judged(file)
    names = list(dict.fromkeys(name for _, stats, _ in judged.values() for name in stats))
    if options.filter is not None and options.filter not in names:
        raise file.error(f"no metric {options.filter!r}; metrics are {', '.join(names)}", is_log=True)
    usual = [name for name in _METRICS if name in names]
    if options.filter is None and not usual:
        raise file.error(
            f"has no metric that says whether an answer is right ({', '.join(_METRICS)}); it has {', '.join(names)}: name one with --filter",
            is_log=True,
        )
    metric = choose(usual, None, "metric", report) if options.filter is None else options.filter
    for (instance, trial, perturbation), (place, stats, record) in judged.items():
        if perturbation:
            report.dropped["asked in a perturbed form (robustness, fairness): another question"] += 1
            continue
        if run.method.startswith(_LIKELIHOODS):
            report.dropped["chosen by likelihood: nothing was generated"] += 1
            continue
        asked = run.asked.get((instance, trial), {})
        texts, thought = (
            _texts(asked) if asked else ([text_of(record.get("predicted_text"))] if displayed else [], None)
        )
        yield Generation(
            score=stats.get(str(metric)),
            dataset=run.dataset,
            question_id=instance,
            question=_question(dict_of(asked.get("instance"))),
            answer=_answer(dict_of(asked.get("instance"))),
            model=run.model or run.name,
            tokens=stats.get("num_output_tokens"),
            text=texts[0] if texts else None,
            texts=tuple(texts[1:]),
            thought=text_of(record.get("thinking_text")) or thought,
            sample=trial,
            condition=run.condition,
            error=text_of(dict_of(asked.get("result")).get("error")),
            place=place,
        )


_Judged = dict[tuple[str, str, str], tuple[str, dict[str, Any], Mapping[str, Any]]]
"""Place, metrics and record of every (instance, trial, perturbation)."""


def _judged(file: LogFile) -> _Judged:
    """Every metric writes elements of its own: those of one instance and trial belong together."""
    found: _Judged = {}
    for place, record in file.records():
        if not isinstance(record, dict) or not isinstance(record.get("stats"), list):
            raise file.error(f"{place} is no element of {_STATS} (an object with instance_id and a list of stats)")
        _, stats, _ = found.setdefault(_key(record), (place, {}, record))
        for stat in map(dict_of, record["stats"]):
            stats[text_of(dict_of(stat.get("name")).get("name"))] = stat.get("mean")
    return found


def _displayed(file: LogFile) -> _Judged:
    return {
        _key(record): (place, dict_of(record.get("stats")), record)
        for place, record in ((place, dict_of(value)) for place, value in file.records())
    }


def _key(record: Mapping[str, Any]) -> tuple[str, Any, str]:
    perturbation = dict_of(record.get("perturbation"))
    return (
        text_of(record.get("instance_id")),
        text_of(record.get("train_trial_index")),
        text_of(perturbation.get("name")),
    )


class _Run(NamedTuple):
    """What the files beside the judgements tell of a run."""

    name: str
    model: str
    dataset: str
    method: str
    condition: str
    asked: Mapping[tuple[str, str], Mapping[str, Any]]
    """Requests and results by (instance, trial)."""


@lru_cache(maxsize=8)
def _run(folder: Path) -> _Run:
    spec, state = _document(folder / _RUN), _document(folder / _STATE)
    adapter = dict_of(spec.get("adapter_spec") or state.get("adapter_spec"))
    name = text_of(spec.get("name")) or folder.absolute().name
    scenario, _, settings = name.partition(":")
    task = [part for part in settings.split(",") if part and not part.startswith(("model=", "model_deployment="))]
    asked = {}
    states = state.get("request_states")
    for one in map(dict_of, states if isinstance(states, list) else []):
        instance = dict_of(one.get("instance"))
        if one.get("request_mode") != "calibration" and not instance.get("perturbation"):
            asked[text_of(instance.get("id")), text_of(one.get("train_trial_index"))] = one
    return _Run(
        name,
        text_of(adapter.get("model") or adapter.get("model_deployment")),
        ":".join([scenario, ",".join(task)] if task else [scenario]),
        text_of(adapter.get("method")),
        settings_text({one: adapter.get(one) for one in _SETTINGS}),
        asked,
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        return dict_of(LogFile(path).document()) if path.is_file() else {}
    except LogError as error:
        if error.is_log:
            return {}
        raise


def _texts(asked: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """All texts that a request was answered with, and the first's thought."""
    completions = dict_of(asked.get("result")).get("completions")
    found = [dict_of(one) for one in completions] if isinstance(completions, list) else []
    thoughts = [text_of(dict_of(one.get("thinking")).get("text")) for one in found]
    return [str(one.get("text") or "") for one in found], "\n".join(filter(None, thoughts)) or None


def _question(instance: Mapping[str, Any]) -> str:
    text = text_of(dict_of(instance.get("input")).get("text"))
    options = [text_of(dict_of(one.get("output")).get("text")) for one in _references(instance)]
    return with_options(text, options if len(options) > 1 else None)


def _answer(instance: Mapping[str, Any]) -> str:
    right = [one for one in _references(instance) if "correct" in text_of(one.get("tags")).split(", ")]
    return text_of(dict_of(right[0].get("output")).get("text")) if right else ""


def _references(instance: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = instance.get("references")
    return [dict_of(one) for one in found] if isinstance(found, list) else []
