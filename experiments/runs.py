"""Run folders: whose work one holds, and what to say where somebody else's is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from experiments.config import ConfigError

OWNERS: Final = {
    "compare.yaml": "roi compare",
    "train.yaml": "roi train",
    "rollouts.json": "roi rollouts",
    "pipeline.json": "roi llm pipeline",
    "recipe.json": "roi llm pretrain",
    "mcft.json": "roi mcft",
}
"""Commands by the file that marks their folders."""


def check_folder(folder: Path, mark: str | None) -> bool:
    """Whether a folder holds work of this command already; nothing is written.

    :param mark: the file that marks this command's folders; None: it has none.
    :raises ConfigError: where it is a file, or another command's folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: a run needs a folder, choose another with --out")
    for other, owner in OWNERS.items():
        if other != mark and (folder / other).exists():
            raise ConfigError(f"{folder} is a folder of `{owner}` ({other}): choose another with --out")
    held = mark is not None and (folder / mark).exists()
    if not held and any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} holds a model: choose another with --out")
    return held


def check_file(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before the work for it is done.

    :raises ConfigError: where its folder is not there, or it is a folder itself.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder: name a file in it")


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], go_on: str) -> None:
    """Refuse to go on in a folder with other settings than it has.

    :param go_on: the command that goes on with the folder's own.
    :raises ConfigError: naming the settings that differ.
    """
    if different := sorted(_different(found, wanted)):
        raise ConfigError(
            f"{folder} holds another run, they differ in {different}: choose another folder with --out, or go on with its "
            f"own settings ({go_on})"
        )


def _different(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in dict.fromkeys((*found, *wanted)):
        one, other = found.get(key), wanted.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += _different(one, other, f"{prefix}{key}.")
        elif one != other:
            names.append(f"{prefix}{key}")
    return names
