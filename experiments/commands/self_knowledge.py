"""`roi llm mcft-report`: how well a model's tags tell what questions take of it, beside what their look tells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from experiments.config import ConfigError
from experiments.terminal import console
from roi_env.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agents.llm.mcft.self_knowledge import Reliability

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

    from agents.llm.decisions.policy import load_model, load_tokenizer, model_source
    from agents.llm.mcft import self_knowledge as sk
    from agents.llm.mcft.rejection import Labels, read_labels, table_labels
    from agents.llm.mcft.training import LABELS, RECIPE
    from agents.llm.small_model.tasks import FAMILIES
    from roi_env.sources.outcome_tables import SPLITS, OutcomeTable

    if split not in (*SPLITS, "all"):
        raise ConfigError(f"--split must be one of {[*SPLITS, 'all']}, got {split!r}")
    folder = Path(model_source(labels_from or model))
    if not (folder / RECIPE).exists() or not (folder / LABELS).exists():
        raise ConfigError(
            f"{folder}: not a model directory of `roi mcft` (it lacks {RECIPE} or {LABELS}); "
            "for one that was trained further name that with --labels-from"
        )
    recipe = json.loads((folder / RECIPE).read_text())["recipe"]

    def labels_of(file: Path) -> Labels:
        try:
            answered = OutcomeTable.read(file).select().split(split)  # type: ignore[arg-type]
            answered.log_notes()
            if without is not None:
                answered = answered.without(OutcomeTable.read(without))
            return table_labels(answered, recipe["keep"], recipe["sampled"])
        except ValueError as error:
            raise ConfigError(str(error)) from error

    labels, train = labels_of(table), read_labels(folder / LABELS, "train")
    torch.set_num_threads(threads)
    tokenizer: Any = load_tokenizer(model)
    network = load_model(model)
    left = remaining or recipe["budget"][1]
    tags = sk.tag_probabilities(network, tokenizer, labels.texts, left, tasks_left)
    surface = sk.SurfaceLevels(train).probabilities(labels)
    costs = sk.level_costs(train)

    found: dict[str, Any] = {
        "questions": len(labels.texts),
        "prompt": {"remaining": left, "tasks_left": tasks_left},
        "tags": sk.measure(tags, labels, costs)._asdict(),
        "surface": sk.measure(surface, labels, costs)._asdict(),
    }
    shown = Table(title=f"Levels of {len(labels.texts):,} {split} questions")
    columns = {
        "accuracy": "level\nright", "within_one": "within\none", "precision": "refusal\nprecision", "recall": "recall",
        "auc": "AUC", "nats": "nats\na label", "ece": "ECE", "refusal_ece": "ECE of\nrefusal", "cost_error": "cost error,\ntokens",
    }  # fmt: skip
    shown.add_column("predictor")
    for heading in columns.values():
        shown.add_column(heading, justify="right")

    def row(name: str, figures: dict[str, float]) -> None:
        shown.add_row(
            name, *(f"{figures[key]:.1f}" if key == "cost_error" else f"{figures[key]:.3f}" for key in columns)
        )

    row("tags", found["tags"])
    row("surface predictor", found["surface"])
    if other is not None:
        theirs = labels_of(other)
        mine = {text: number for number, text in enumerate(labels.texts)}
        if missing := set(theirs.texts) - set(mine):
            raise ConfigError(f"{other}: {len(missing)} questions are not in {table}: record the same questions")
        order = np.array([mine[text] for text in theirs.texts])
        same = Labels(labels.dataset[order], theirs.texts, labels.counts[order], labels.tokens[order])
        found["questions_of_both"] = len(order)
        found["own"] = sk.measure(tags[order], same, costs)._asdict()
        found["other"] = sk.measure(tags[order], theirs, costs)._asdict()
        weights = sk.question_weights(len(order))
        gains = {
            "accuracy": sk.right(tags[order], same) - sk.right(tags[order], theirs),
            "nats": sk.nats(tags[order], theirs) - sk.nats(tags[order], same),
        }
        found["own_gain"] = {name: sk.difference(values, weights)._asdict() for name, values in gains.items()}
        row("tags, other model's outcomes", found["other"])
    console.print(shown)

    kinds = {name: labels.dataset == name for name in dict.fromkeys(labels.dataset.tolist())}
    groups = dict(kinds)
    if hidden := [name for name in kinds if name in FAMILIES and FAMILIES[name].hidden]:
        groups[HIDDEN] = np.isin(labels.dataset, hidden)
    groups[ALL] = np.ones(len(labels.texts), bool)
    beside = Table(title="What tags know beyond the look: gain over the surface predictor [95 %, questions resampled]")
    for heading in ("task", "questions", "right: tags", "surface", "gain", "nats: tags", "surface", "gain"):
        beside.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=heading == "gain")
    found["against_surface"] = []
    for one in sk.against(tags, surface, labels, groups):
        found["against_surface"].append(
            one._asdict() | {name: getattr(one, name)._asdict() for name in ("accuracy_gain", "nats_gain")}
        )
        beside.add_row(
            one.task,
            str(one.questions),
            f"{one.accuracy:.3f}",
            f"{one.surface_accuracy:.3f}",
            interval_text(one.accuracy_gain),
            f"{one.nats:.3f}",
            f"{one.surface_nats:.3f}",
            interval_text(one.nats_gain),
        )
    console.print(beside)
    if other is not None:
        own, gain = found["own"], found["own_gain"]
        console.print(
            f"On the {found['questions_of_both']:,} questions of both models: level accuracy {own['accuracy']:.3f} on its own "
            f"outcomes, {found['other']['accuracy']:.3f} on the other's, gain {interval_text(gain['accuracy'])}; nats {own['nats']:.3f} and "
            f"{found['other']['nats']:.3f}, gain {interval_text(gain['nats'])}; AUC of refusal {own['auc']:.3f} and {found['other']['auc']:.3f}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "self-knowledge.json") as path:
            path.write_text(json.dumps(_rounded(found), indent=1, allow_nan=False) + "\n")
        curves = {
            "likeliest level": (sk.confidence(tags, labels), sk.confidence(surface, labels)),
            "refusal": tuple(sk.reliability(p[:, -1], labels.shares[:, -1]) for p in (tags, surface)),
        }
        from experiments.report import figures

        with figures.style():
            figure = picture(curves)  # type: ignore[arg-type]
            with replacing(out / "reliability.png") as path:
                figure.savefig(path, format="png", dpi=110, bbox_inches="tight")
        console.print(f"Written: [bold]{out}[/bold]")


def interval_text(interval: Any) -> str:
    """An interval, with its sign; the value alone where it did not vary."""
    value, low, high = interval.values() if isinstance(interval, dict) else interval
    if not math.isfinite(low):
        return f"{value:+.3f} (in every question)"
    return f"{value:+.3f} [{low:+.3f} {high:+.3f}]"


def picture(curves: dict[str, tuple[Reliability, Reliability]]) -> Figure:
    """Reliability diagrams: believed against actual frequency, tags and surface predictor; areas tell how many questions."""
    from matplotlib.figure import Figure

    from experiments.report.figures import DARK

    figure = Figure(figsize=(9.0, 4.3))
    for axes, (name, pair) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.axline((0, 0), slope=1, color=DARK, lw=1)
        for who, marker, curve in zip(("tags", "surface predictor"), "os", pair, strict=True):
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
