"""From a run folder to what goes into a repository: numbers as small files, pictures as PNG, no path of this machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import figures
from experiments.analysis import Comparison, Setting, analyse, focus_of, summarise
from roi_env.files import replacing

DPI = 110


def publish(run: Path, out: Path) -> list[Path]:
    """Write a run's summary, learning curves and main pictures into a folder.

    :param run: folder that ``roi compare`` wrote.
    :param out: folder to write to: ``summary.parquet``, ``summary.json`` (with the configuration), ``learning.parquet``
        where agents learned in the environment, and for every group of settings that differ only by budget its
        ``*-score.png``, ``*-learning.png`` and ``*-improvement.png``.
    :returns: the files written.
    :raises RunError: where the run folder is incomplete.
    """
    comparison = analyse(run)
    summarise(run, comparison)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("summary.parquet", "learning.parquet"):
        if (run / name).exists():
            with replacing(out / name) as path:
                shutil.copyfile(run / name, path)
            written.append(out / name)
    document = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    document["config"] = without_folders(document["config"])
    with replacing(out / "summary.json") as path:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    written.append(out / "summary.json")
    for family in comparison.families:
        for kind, figure in _pictures(comparison, family):
            file = out / f"{_slug(family[0])}-{kind}.png"
            with replacing(file) as path, figures.style():
                figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight")
            written.append(file)
    return written


def without_folders(value: Any) -> Any:
    """A configuration whose absolute paths are cut to file names: the folders are one machine's."""
    if isinstance(value, dict):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _pictures(comparison: Comparison, family: Sequence[Setting]) -> list[tuple[str, Figure]]:
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


def _slug(setting: Setting) -> str:
    order = "" if setting.row["order"] == "random" else f"-{setting.row['order']}"
    return re.sub(r"[^a-z0-9]+", "-", f"{setting.row['variant']}{order}".lower()).strip("-")
