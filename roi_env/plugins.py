"""Parts that people bring: files that are imported because somebody named them, and entry points of installed packages.

Nothing is imported by itself: a saved agent or a configuration never brings code along.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

IMPORTED = "ROI_IMPORT"
"""Environment variable with the files imported so far: worker processes import them too."""
_PREFIX = "roi_file_"


def import_file(path: str | os.PathLike[str]) -> ModuleType:
    """Import a Python file that somebody named; once, here and in the worker processes that this process starts.

    :raises ValueError: where it cannot be imported, or another file of the same name was.
    """
    file = Path(path).resolve()
    name = _PREFIX + file.stem
    if file.suffix == ".py" and not file.exists():
        raise ValueError(f"{path}: file not found")
    if file.suffix != ".py" or not file.stem.isidentifier() or not file.is_file():
        raise ValueError(f"{path} must be a Python file whose name can stand in code, e.g. own_agent.py")
    known = sys.modules.get(name)
    if known is not None:
        if known.__file__ != str(file):
            raise ValueError(f"{file} and {known.__file__} have one name: rename one of them")
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    files = [one for one in os.environ.get(IMPORTED, "").split(os.pathsep) if one]
    if str(file) not in files:
        os.environ[IMPORTED] = os.pathsep.join([*files, str(file)])
    return module


def named_files() -> list[str]:
    """The files that were imported by the process that started this one."""
    return [file for file in os.environ.get(IMPORTED, "").split(os.pathsep) if file]


def stem_of(module: ModuleType) -> str:
    """The name of an imported file, without its ending."""
    return module.__name__.removeprefix(_PREFIX)


def announced(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group (``roi.agents``, ``roi.families``) by name."""
    return {point.name: point for point in entry_points(group=group)}
