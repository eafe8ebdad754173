"""From a run folder to what goes into a repository: numbers as small files, pictures as PNG, no path of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from experiments.config import ConfigError
from experiments.report import figures
from experiments.report.analysis import Comparison, SettingResult, analyse, focus_of, interval_text, summarise
from roi_env.files import replacing

DPI = 110
_COMPARABLE = ("exams", "exam_seed", "training_seeds", "replicates", "max_states", "steps", "tuned")
"""What runs must agree in to stand in one table."""


def publish(run: Path, out: Path) -> list[Path]:
    """Write a run's summary, learning curves and main pictures into a folder.

    A comparison that is too large for one run can be published in parts: settings that the folder has from other runs stay,
    those that this run measured are replaced.

    :param run: folder that ``roi compare`` wrote.
    :param out: folder to write to: ``summary.parquet``, ``summary.json`` (with the configurations), ``learning.parquet``
        where agents learned in the environment, ``tables.md`` (scores to read), and for every group of settings that differ only by budget its
        ``*-score.png``, ``*-learning.png`` and ``*-improvement.png``.
    :returns: the files written.
    :raises RunError: where the run folder is incomplete.
    :raises ConfigError: where the folder's settings were measured on other exams, seeds or steps.
    """
    comparison = analyse(run)
    summary = summarise(run, comparison)
    new = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    configs = [without_folders(new.pop("config"))]
    learning = pq.read_table(run / "learning.parquet") if (run / "learning.parquet").exists() else None
    measured = {setting.row["label"] for setting in comparison.settings}
    old = json.loads((out / "summary.json").read_text(encoding="utf-8")) if (out / "summary.json").exists() else None
    kept = [] if old is None else [row for row in old["settings"] if row["label"] not in measured]
    if old is not None and kept:
        _check_comparable(out, old["configs"][-1], configs[0])
        number = {row["setting"]: len(measured) + i for i, row in enumerate(kept)}
        first = {setting.row["setting"]: i for i, setting in enumerate(comparison.settings)}
        summary = _together(summary, first, pq.read_table(out / "summary.parquet"), number)
        if (file := out / "learning.parquet").exists():
            earlier = pq.read_table(file)
            learning = _together(earlier.slice(0, 0) if learning is None else learning, first, earlier, number)
        settings = [row | {"setting": first[row["setting"]]} for row in new["settings"]]
        new["settings"] = settings + [row | {"setting": number[row["setting"]]} for row in kept]
        new["results"] = summary.to_pylist()
        configs = [*old["configs"], *configs]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in (("summary.parquet", summary), ("learning.parquet", learning)):
        if table is not None:
            with replacing(out / name) as path:
                pq.write_table(table, path)
            written.append(out / name)
    with replacing(out / "summary.json") as path:
        path.write_text(json.dumps({"configs": configs} | new, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(out / "tables.md") as path:
        path.write_text(_tables(summary), encoding="utf-8")
    written += [out / "summary.json", out / "tables.md"]
    elsewhere = {row["family"] for row in kept}
    for family in comparison.families:
        name = _slug(family[0])
        if family[0].row["family"] in elsewhere:  # its pictures show the other budgets
            name += "".join(f"-t{setting.row['budget_fraction']:.2g}" for setting in family).replace(".", "")
        for kind, figure in _pictures(comparison, family):
            file = out / f"{name}-{kind}.png"
            with replacing(file) as path, figures.style():
                figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")
            written.append(file)
    return written


def rewrite_tables(out: Path) -> list[Path]:
    """Write ``tables.md`` of a published folder anew from its ``summary.parquet``, in this version's form.

    :raises ConfigError: where the folder was not published.
    """
    try:
        summary = pq.read_table(out / "summary.parquet")
        published = "configs" in json.loads((out / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(
            f"{out}: no published folder ({error}); for a run folder say where to: roi publish RUN OUT"
        ) from error
    if not published:
        raise ConfigError(f"{out} is a run folder: say where to publish it: roi publish {out} OUT")
    with replacing(out / "tables.md") as path:
        path.write_text(_tables(summary), encoding="utf-8")
    return [out / "tables.md"]


def _tables(summary: pa.Table) -> str:
    """Markdown: a table for every kind of exams, a column for every budget, the best agent (on average) first."""
    text = (
        "Share of the optimum [95 % over exams and training seeds], where the optimum is known within a bracket of its lower "
        "end; seeds: how many training seeds an interval rests on, with the worst of them where it was recorded; updates and "
        "CPU seconds of the training of agents that learn in the environment, means over seeds and budgets. On recorded "
        "sources the optimum is planned on the very questions that are scored; what a user can reach is the optimum of the "
        "train laws, in a table of its own where it was recorded.\n"
    )
    rows = summary.to_pylist()
    for variant in dict.fromkeys(row["family"] for row in rows):
        here = [row for row in rows if row["family"] == variant]
        labels = [row["label"] for row in sorted(here, key=lambda row: row["budget"])]
        columns = {label: label.removeprefix(variant).strip() or label for label in dict.fromkeys(labels)}
        seeds = {row["agent"]: row["seeds"] for row in here}
        means = summary.filter(pc.equal(summary["family"], variant)).group_by("agent")
        means = means.aggregate([(name, "mean") for name in ("normalised", "updates", "cpu_seconds")])
        ranked = means.sort_by([("normalised_mean", "descending")]).to_pylist()
        for name, title, more in (
            ("normalised", variant, ("seeds", "updates", "CPU s")),
            ("of_reachable", f"{variant}: share of the train laws' optimum", ()),
        ):
            if not any(row.get(name) is not None for row in here):
                continue
            cells = {(row["agent"], row["label"]): _cell(row, name) for row in here}
            text += f"\n## {title}\n\n| agent | {' | '.join((*columns.values(), *more))} |\n|{'---|' * (1 + len(columns) + len(more))}\n"
            for row in ranked:
                shown = [cells.get((row["agent"], label), "") for label in columns]
                effort = ["" if row[x] is None else f"{row[x]:,.0f}" for x in ("updates_mean", "cpu_seconds_mean")]
                shown += [str(seeds[row["agent"]]), *effort] if more else []
                text += f"| {row['agent']} | {' | '.join(shown)} |\n"
    return text


def _cell(row: dict[str, Any], name: str = "normalised") -> str:
    if row["normalised"] is None:
        return f"score {row['score']:.3f}"
    seeds = "" if row.get("worst_seed") is None or name != "normalised" else f"; worst {row['worst_seed']:.3f}"
    return interval_text(row, name) + seeds


def _check_comparable(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in _COMPARABLE:
        if old.get(name) != new.get(name):
            raise ConfigError(
                f"{out} holds settings measured with {name}={old.get(name)}, this run has {name}={new.get(name)}: they do "
                "not belong into one table; publish into another folder"
            )


def _together(new: pa.Table, first: dict[int, int], old: pa.Table, kept: dict[int, int]) -> pa.Table:
    """Rows of both tables whose settings have a number in ``first`` (new) and ``kept`` (old), renumbered so."""

    def renumbered(table: pa.Table, number: dict[int, int]) -> pa.Table:
        table = table.filter(pc.is_in(table["setting"], pa.array(list(number), pa.int64())))
        column = pa.array([number[value] for value in table["setting"].to_pylist()], pa.int64())
        return table.set_column(table.column_names.index("setting"), "setting", column)

    return pa.concat_tables([renumbered(new, first), renumbered(old, kept)], promote_options="default")


def without_folders(value: Any) -> Any:
    """A configuration whose absolute paths are cut to file names: the folders are one machine's."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _pictures(comparison: Comparison, family: Sequence[SettingResult]) -> list[tuple[str, Figure]]:
    focus = focus_of(family)
    with figures.style():
        look = figures.looks(comparison)
        shown = [agent for agent in focus.ranking() if look[agent].shown]
        found = [
            ("score", figures.curves(family, look) if len(family) > 1 else figures.forest(focus, look)),
            ("learning", figures.learning(comparison, figures.learning_setting(comparison, family, focus))),
            ("improvement", figures.improvement(comparison, focus, shown)),
        ]
    return [(kind, figure) for kind, figure in found if figure is not None]


def _slug(setting: SettingResult) -> str:
    order = "" if setting.row["order"] == "random" else f"-{setting.row['order']}"
    return re.sub(r"[^a-z0-9]+", "-", f"{setting.row['family']}{order}".lower()).strip("-")
