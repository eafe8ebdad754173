"""One very small model for all tests of language models, trained for seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from agents.llm.pretraining import Recipe, pretrain

TINY = Recipe(
    hidden=32,
    layers=2,
    heads=2,
    feed_forward=64,
    vocabulary=400,
    tokens=70_000,
    batch_tokens=512,
    chunk_batches=48,
    warmup=10,
    families=("prod", "ab"),
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pretrain(TINY, folder)
    return folder
