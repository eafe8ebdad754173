"""Predictors that read texts by a language model: their files name the model."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra [predict]")
pytest.importorskip("transformers", reason="needs the extra [llm]")

from tests.agents.predictors.tables import check_file


@pytest.mark.parametrize("name", ["embedding:tinylm", "hidden:tinylm", "levels:tinylm-mcft"])
def test_files_hold_the_same_predictor_without_pickle(name: str, tmp_path: Path) -> None:
    check_file(name, tmp_path / "p.npz")
