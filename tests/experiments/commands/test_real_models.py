"""The commands of the paper's pipeline on any causal language model: here on tiny random ones, of two architectures and in both
dialects. Single commands on more of them: tests/experiments/commands/test_dialects.py, tests/agents/llm/mcft/test_recorded.py."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("peft", reason="needs the extra [llm]")

from tests.real_path import whole_path
from tests.tiny_models import tiny_model


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dialect"), [("llama", "thinking"), ("gpt_neox", "bare")])
def test_the_whole_path(architecture: str, dialect: str, tmp_path: Path) -> None:
    whole_path(str(tiny_model(tmp_path / "model", architecture, dialect)), tmp_path, tiers=(16, 24, 32), questions=12)
