"""Sphinx configuration: `make docs`."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ["PYTHONPATH"] = str(HERE.parent)  # the notebook's kernel

import roi_env  # noqa: E402 - after the path
from roi_env.envs.live import ROIReasoningLiveEnv  # noqa: E402 - after the path
from roi_env.envs.single import ROIReasoningEnv  # noqa: E402 - after the path

project = "ROI-Reasoning"
author = "ROI-Reasoning contributors"
project_copyright = "ROI-Reasoning contributors"
version = release = roi_env.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
apidoc_separate_modules = True
apidoc_module_first = True
apidoc_modules = [
    {"path": f"../{package}", "destination": f"_generated/api/{package}", "max_depth": 2}
    for package in ("roi_env", "agents", "experiments")
]
html_theme = "furo"
html_title = "ROI-Reasoning"
html_static_path: list[str] = []
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Links from the README to files beside the site; attribute names that several dataclasses have.
suppress_warnings = ["myst.xref_missing", "ref.python"]
nb_execution_mode = "cache"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures would fill the page; the docstrings give shapes and units
autodoc_preserve_defaults = True
# Adapters are documented without the packages that they adapt to.
autodoc_mock_imports = ["langchain", "langchain_core", "inspect_ai", "openenv", "verifiers"]
nitpicky = False

GENERATED = HERE / "_generated"


def write_environment_pages() -> None:
    """The environments' pages are their docstrings: one text, read in an editor and on the site."""
    GENERATED.mkdir(exist_ok=True)
    for name, cls in (("environment", ROIReasoningEnv), ("live-environment", ROIReasoningLiveEnv)):
        text = inspect.cleandoc(cls.__doc__ or "")
        title, _, body = text.partition("\n")
        page = f"# {cls.__name__}\n\n{title}\n{body}\n"
        file = GENERATED / f"{name}.md"
        if not file.exists() or file.read_text() != page:
            file.write_text(page)
    shutil.copy2(HERE.parent / "examples" / "quickstart.ipynb", GENERATED / "quickstart.ipynb")


def leave_out_environment_docstrings(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """They are Markdown and have pages of their own."""
    if what == "class" and obj in (ROIReasoningEnv, ROIReasoningLiveEnv):
        lines[:] = [lines[0], "", "Described on its own page."]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    write_environment_pages()
    app.connect("autodoc-process-docstring", leave_out_environment_docstrings)
