"""`roi llm mcft-report`: how well a model's tags tell what questions take of it, beside what their look tells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from experiments.config import ConfigError
from experiments.terminal import Table, console, stacked
from roi_env.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agents.llm.mcft.recorded import Announced
    from agents.llm.mcft.rejection import Labels
    from agents.llm.mcft.self_knowledge import Against, Reliability

HIDDEN, ALL = "hidden difficulty", "all"


def mcft_report(
    model: Annotated[
        str,
        typer.Argument(help="Model directory written by `roi mcft`, or one that comes with the package: tinylm-mcft"),
    ],
    table: Annotated[Path, typer.Option(help="Recorded outcomes of the model before fine-tuning (`roi record`)")],
    labels_from: Annotated[
        str | None,
        typer.Option(help="Model directory written by `roi mcft` that this one began as, where RL trained it further"),
    ] = None,
    other: Annotated[
        Path | None, typer.Option(help="Outcomes of another model on the same questions: the cross-model control")
    ] = None,
    without: Annotated[
        Path | None,
        typer.Option(help="Leave out questions of this table: those that choices were made on, say"),
    ] = None,
    untaught: Annotated[
        str | None, typer.Option(help="The model before fine-tuning, whose zero-shot tags stand beside")
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(help="Model on whose state at the end of a question a logistic regression stands beside"),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="Column of the table that people supplied (a level, say): logistic regression on it and the data set; repeatable",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures (JSON) and the reliability picture")] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or all")] = "test",
    remaining: Annotated[
        int | None, typer.Option(help="Tokens left in the prompt; default: the largest budget of the recipe")
    ] = None,
    tasks_left: Annotated[int, typer.Option(help="Tasks left in the prompt", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch", min=1)] = 2,
) -> None:
    """Tags against outcomes: accuracy of levels, refusals, calibration, cost; beside a surface predictor and another model's outcomes."""
    import torch

    from agents.llm.mcft import self_knowledge as sk
    from agents.llm.small_model.tasks import FAMILIES
    from roi_env.sources.outcome_tables import SPLITS

    if split not in (*SPLITS, "all"):
        raise ConfigError(f"--split must be one of {[*SPLITS, 'all']}, got {split!r}")
    recipe, train, validation = _taught(labels_from or model)
    labels = _labels_of(table, recipe, split, without)
    torch.set_num_threads(threads)
    left = remaining or recipe["budget"][1]
    costs = sk.level_costs(train)
    dtype = recipe.get("dtype", "float32")
    parts = [train, validation, labels]
    # Where everything is asked as `roi mcft` asked it, nothing is read again.
    kept = None if (left, tasks_left) != (recipe["budget"][1], 1) else _kept(model, parts)
    tags = _tags(model, labels, left, tasks_left, dtype) if kept is None else kept[2].taught
    controls = {
        "surface predictor": sk.SurfaceLevels(train).probabilities(labels),
        "shares of the data set": sk.dataset_shares(train, labels),
    }
    if untaught is not None:
        began = kept is not None and Path(untaught).name == _record(model)["model"]
        controls["untaught model, zero-shot"] = (
            kept[2].untaught if kept is not None and began else _tags(untaught, labels, left, tasks_left, dtype)
        )
    if kept is not None:
        controls["frozen layers' state, logistic"] = _linear(parts, [one.state for one in kept])
    if hidden is not None:
        controls["hidden state, logistic"] = _linear(parts, [_states(hidden, part, dtype) for part in parts])
    if columns:
        controls[f"given {', '.join(columns)}"] = _linear(parts, _indicators(table, parts, columns))
    found: dict[str, Any] = {"questions": len(labels.texts), "prompt": {"remaining": left, "tasks_left": tasks_left}}
    beside: dict[str, list[str]] = {}
    for name, probabilities in {"tags": tags, **controls}.items():
        measured, ends = sk.measure(probabilities, labels, costs), sk.measured_intervals(probabilities, labels, costs)
        found[name.split()[0]] = measured._asdict()
        found[f"{name.split()[0]}_interval"] = {key: [end.low, end.high] for key, end in ends.items()}
        beside[name] = _cells(measured._asdict(), ends)
    if other is not None:
        theirs = _labels_of(other, recipe | {"menu": None}, split, without)
        found |= _cross_model(tags, labels, theirs, costs, f"{other} has none of the {split} questions of {table}")
        beside["tags, other model's outcomes"] = _cells(found["other"], {})
    shown = Table(title=f"Levels of {len(labels.texts):,} {split} questions [95 %, questions resampled]")
    shown.add_column("")
    for name in beside:
        shown.add_column(escape(name), justify="right")
    for measure, *cells in zip(_MEASURES.values(), *beside.values(), strict=True):
        shown.add_row(measure, *cells)
    console.print(shown)

    kinds = {name: labels.dataset == name for name in dict.fromkeys(labels.dataset.tolist())}
    groups = dict(kinds)
    if unseen := [name for name in kinds if name in FAMILIES and FAMILIES[name].hidden]:
        groups[HIDDEN] = np.isin(labels.dataset, unseen)
    groups[ALL] = np.ones(len(labels.texts), bool)
    for name, probabilities in controls.items():
        found[f"against_{name.split()[0]}"] = _against(name, sk.against(tags, probabilities, labels, groups))
    if other is not None:
        own, gain = found["own"], found["own_gain"]
        console.print(
            f"On the {found['questions_of_both']:,} questions of both models: level accuracy {own['accuracy']:.3f} on its own "
            f"outcomes, {found['other']['accuracy']:.3f} on the other's, gain {interval_text(gain['accuracy'])}; nats {own['nats']:.3f} and "
            f"{found['other']['nats']:.3f}, gain {interval_text(gain['nats'])}; AUC of refusal {own['auc']:.3f} and {found['other']['auc']:.3f}"
        )
    if out is not None:
        _write(out, found, {"tags": tags, **controls}, labels)
        console.print(f"Written: [bold]{out}[/bold]")


_MEASURES = {
    "accuracy": "level right", "within_one": "within one", "precision": "refusal, precision", "recall": "recall", "auc": "AUC",
    "nats": "nats a label", "ece": "ECE", "refusal_ece": "ECE of refusal", "cost_error": "cost error, tokens",
}  # fmt: skip


def _cells(figures: dict[str, float], ends: dict[str, Any]) -> list[str]:
    """Measures of a predictor, each with its interval below it where there is one."""
    cells = []
    for key in _MEASURES:
        digits = 0 if key == "cost_error" else 2
        cells.append(_number(figures[key], digits))
        if key in ends:
            cells[-1] += f"\n{_number(ends[key].low, digits)} {_number(ends[key].high, digits)}"
    return cells


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _taught(model: str) -> tuple[dict[str, Any], Labels, Labels]:
    """Recipe, training and validation labels that `roi mcft` left in a folder.

    :raises ConfigError: where there are none.
    """
    from agents.llm.decisions.policy import model_source
    from agents.llm.mcft.rejection import read_labels
    from agents.llm.mcft.training import LABELS, RECIPE

    folder = Path(model_source(model))
    if not (folder / RECIPE).exists() or not (folder / LABELS).exists():
        raise ConfigError(
            f"{folder}: not a model directory of `roi mcft` (it lacks {RECIPE} or {LABELS}); "
            "for one that was trained further name that with --labels-from"
        )
    train, validation = (read_labels(folder / LABELS, split) for split in ("train", "validation"))
    return _record(str(folder))["recipe"], train, validation


def _record(model: str) -> dict[str, Any]:
    """What `roi mcft` wrote down of its work."""
    from agents.llm.decisions.policy import model_source
    from agents.llm.mcft.training import RECIPE

    return json.loads((Path(model_source(model)) / RECIPE).read_text())  # type: ignore[no-any-return]


def _labels_of(file: Path, recipe: dict[str, Any], split: str, without: Path | None) -> Labels:
    """Labels of a table's questions, by the rule that the training's labels follow; those without a text cannot be read."""
    from agents.llm.mcft.rejection import table_labels
    from roi_env.sources.outcome_tables import OutcomeTable

    try:
        answered = OutcomeTable.read(file).select(recipe.get("menu"), recipe.get("table_tiers"))
        answered = answered.split(split)  # type: ignore[arg-type]
        answered.log_notes()
        if without is not None:
            answered = answered.without(OutcomeTable.read(without))
        labels = table_labels(answered, recipe["keep"], recipe["sampled"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with_text = np.array([bool(text) for text in labels.texts])
    if not with_text.any():
        raise ConfigError(f"{file}: no {split} question has a text to read")
    if not with_text.all():
        console.print(
            f"[yellow]Left out:[/] {(~with_text).sum()} {split} questions of {file} have no text", highlight=False
        )
    return labels.take(np.flatnonzero(with_text))


def _kept(model: str, parts: list[Labels]) -> list[Announced] | None:
    """What `roi mcft` kept of all questions, each part's stacked; None where it did not."""
    from agents.llm.decisions.policy import model_source
    from agents.llm.mcft.recorded import Announced, announced

    found = announced(Path(model_source(model)))
    if found is None or any(text not in found for part in parts for text in part.texts):
        return None
    rows = [[found[text] for text in part.texts] for part in parts]
    return [Announced(*map(np.array, zip(*part, strict=True))) for part in rows]


def _linear(parts: list[Labels], features: list[Any]) -> Any:
    """What a logistic regression says of the last of train, validation and asked questions."""
    from agents.llm.mcft.self_knowledge import LinearLevels

    return LinearLevels(parts[0], features[0], parts[1], features[1]).probabilities(features[2])


def _states(model: str, labels: Labels, dtype: str) -> Any:
    from agents.predictors.language import text_states

    try:
        return text_states(model, labels.texts, "hidden", dtype)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _indicators(file: Path, parts: list[Labels], columns: list[str]) -> list[Any]:
    """(Q, F) one column a value of the data set and of each column of the table; all 0 where a question has none."""
    from roi_env.sources.outcome_tables import OutcomeTable

    rows = OutcomeTable.read(file).rows
    if missing := set(columns) - set(rows.column_names):
        raise ConfigError(f"{file} has no column {sorted(missing)[0]!r}; there are {rows.column_names}")
    known = ["dataset", *columns]
    given = {row["question"]: [row[name] for name in known] for row in rows.select(["question", *known]).to_pylist()}
    values = sorted(
        {(at, value) for row in given.values() for at, value in enumerate(row) if value is not None}, key=str
    )
    if unknown := sum(text not in given for part in parts for text in part.texts):
        raise ConfigError(f"{file} lacks {unknown} of the questions that the model was taught or is asked")
    return [
        np.array([[given[text][at] == value for at, value in values] for text in part.texts], float) for part in parts
    ]


def _tags(model: str, labels: Labels, remaining: int, tasks_left: int, dtype: str) -> Any:
    from agents.llm.decisions.policy import load_model, load_tokenizer
    from agents.llm.mcft.self_knowledge import tag_probabilities

    try:
        return tag_probabilities(load_model(model, dtype), load_tokenizer(model), labels.texts, remaining, tasks_left)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _cross_model(tags: Any, labels: Labels, theirs: Labels, costs: Any, nothing: str) -> dict[str, Any]:
    """The tags against another model's outcomes on the questions of both.

    :param nothing: said where there are none.
    """
    from agents.llm.mcft import self_knowledge as sk

    mine = {text: number for number, text in enumerate(labels.texts)}
    shared = [number for number, text in enumerate(theirs.texts) if text in mine]
    if not shared:
        raise ConfigError(f"{nothing}: record the same questions")
    theirs = theirs.take(np.array(shared))
    order = np.array([mine[text] for text in theirs.texts])
    same, weights = labels.take(order), sk.question_weights(len(order))
    gains = {
        "accuracy": sk.right(tags[order], same) - sk.right(tags[order], theirs),
        "nats": sk.nats(tags[order], theirs) - sk.nats(tags[order], same),
    }
    return {
        "questions_of_both": len(order),
        "own": sk.measure(tags[order], same, costs)._asdict(),
        "other": sk.measure(tags[order], theirs, costs)._asdict(),
        "own_gain": {name: sk.difference(values, weights)._asdict() for name, values in gains.items()},
    }


def _against(control: str, compared: list[Against]) -> list[dict[str, Any]]:
    """Print what tags know beyond a control, by kind of task."""
    beside = Table(title=f"What tags know beyond the {control}: gain [95 %, questions resampled]")
    for heading in ("task (questions)", "right:\ntags,\ncontrol", "gain", "nats:\ntags,\ncontrol", "gain"):
        beside.add_column(heading, justify="left" if not beside.columns else "right")
    found = []
    for one in compared:
        found.append(one._asdict() | {name: getattr(one, name)._asdict() for name in ("accuracy_gain", "nats_gain")})
        gains = (stacked(interval_text(gain)) for gain in (one.accuracy_gain, one.nats_gain))
        values = (f"{one.accuracy:.3f}\n{one.surface_accuracy:.3f}", f"{one.nats:.3f}\n{one.surface_nats:.3f}")
        cells = (cell for pair in zip(values, gains, strict=True) for cell in pair)
        beside.add_row(f"{one.task}\n({one.questions:,})", *map(escape, cells))
    console.print(beside)
    return found


def _write(out: Path, found: dict[str, Any], predictors: dict[str, Any], labels: Labels) -> None:
    """The figures and the reliability picture."""
    from agents.llm.mcft import self_knowledge as sk
    from experiments.report import figures

    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "self-knowledge.json") as path:
        path.write_text(json.dumps(_rounded(found), indent=1, allow_nan=False) + "\n")
    curves = {
        "likeliest level": {name: sk.confidence(p, labels) for name, p in predictors.items()},
        "refusal": {name: sk.reliability(p[:, -1], labels.shares[:, -1]) for name, p in predictors.items()},
    }
    with figures.style():
        figure = picture(curves)
        with replacing(out / "reliability.png") as path:
            figure.savefig(path, format="png", dpi=110, bbox_inches="tight")


def interval_text(interval: Any) -> str:
    """An interval, with its sign; the value alone where it did not vary."""
    value, low, high = interval.values() if isinstance(interval, dict) else interval
    if not math.isfinite(low):
        return f"{value:+.3f} (in every question)"
    return f"{value:+.3f} [{low:+.3f} {high:+.3f}]"


def picture(curves: dict[str, dict[str, Reliability]]) -> Figure:
    """Reliability diagrams: believed against actual frequency, by predictor; areas tell how many questions."""
    from matplotlib.figure import Figure

    from experiments.report.figures import DARK

    figure = Figure(figsize=(9.0, 4.3))
    for axes, (name, predictors) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.axline((0, 0), slope=1, color=DARK, lw=1)
        for who, marker, curve in zip(predictors, "osD", predictors.values(), strict=False):
            (line,) = axes.plot(curve.probability, curve.frequency, label=who)
            size = 12 + 260 * curve.questions / curve.questions.sum()
            axes.scatter(curve.probability, curve.frequency, s=size, marker=marker, color=line.get_color(), alpha=0.7)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("believed probability")
        axes.set_ylabel("frequency")
        axes.set_title(name)
    figure.axes[0].legend()
    return figure


def _rounded(value: Any) -> Any:
    """Floats to four digits; what is not a number becomes null."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
