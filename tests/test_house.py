"""Imports run one way, and no room needs the one that is built on it."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "roi_env": set(),
    "agents": {"roi_env"},
    "experiments": {"roi_env", "agents"},
    "roi_env.sources": {"roi_env.files", "roi_env.plugins"},
    "roi_env.exams": {"roi_env.sources"},
    "roi_env.exact": {"roi_env.exams", "roi_env.sources"},
    "roi_env.measures": {"roi_env.exact", "roi_env.exams", "roi_env.sources"},
    "roi_env.answering": {"roi_env.sources", "roi_env.files"},
    "roi_env.envs": {"roi_env.exams", "roi_env.sources", "roi_env.answering"},
    "roi_env.integrations": {"roi_env.envs", "roi_env.exams", "roi_env.sources", "roi_env.answering"},
}
"""What each room may import of this project beside itself."""


def imported(file: Path) -> set[str]:
    """Modules of this project that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] in ("roi_env", "agents", "experiments")}


@pytest.mark.parametrize("room", BELOW)
def test_imports_run_one_way(room: str) -> None:
    allowed = {room, *BELOW[room]}
    for file in (ROOT / room.replace(".", "/")).rglob("*.py"):
        for name in imported(file) - {"roi_env"}:  # the package itself holds the version alone
            assert any(name == one or name.startswith(f"{one}.") for one in allowed), f"{file} imports {name}"


def test_no_imports_run_in_a_circle() -> None:
    files = [file for room in ("roi_env", "agents", "experiments") for file in (ROOT / room).rglob("*.py")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    needs = {name: {*imported(file)} & modules.keys() - {name} for name, file in modules.items()}
    # `from package import module` names the package too, which needs none of its modules for that.
    packages = {name for name, file in modules.items() if file.name == "__init__.py"}
    graphlib.TopologicalSorter({name: found - packages for name, found in needs.items()}).prepare()


def test_private_names_of_ray_are_in_one_file() -> None:
    private = re.compile(
        r"\b_(worker_manager|get_local_state|filter_calls_by_tag|learner_index|weights_seq_no)\b|gcs_pb2"
    )
    found = {file.name for file in (ROOT / "agents").rglob("*.py") if private.search(file.read_text())}
    assert found == {"_ray_private.py"}
    admitted = re.search(r"ray\[rllib\]==([\d.]+)\.\*", (ROOT / "pyproject.toml").read_text())
    assert admitted is not None
    assert f'CHECKED: Final = "{admitted[1]}"' in (ROOT / "agents/rllib/_ray_private.py").read_text()


def test_every_folder_of_code_says_what_it_is() -> None:
    for package in ("roi_env", "agents", "experiments"):
        for file in (ROOT / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"
