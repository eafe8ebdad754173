"""One very small model for all tests of language models, trained for seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from filelock import FileLock

from agents.llm.small_model.pretraining import PretrainingRecipe, pretrain

TINY = PretrainingRecipe(
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


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of several workers makes for all of them."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, unfinished = shared / name, shared / f"{name}.part"
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "model", lambda folder: pretrain(TINY, folder))


@pytest.fixture(scope="session")
def exam_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after a lesson in the form of exams: it refuses now and then, and answers "1" or "2" without a thought."""
    return made_once(tmp_path_factory, "exam-model", lambda folder: teach(model_folder, folder))


def teach(model_folder: Path, folder: Path) -> None:
    """Write the model that the lesson makes."""
    import torch

    from agents.llm.decisions.policy import load_model, load_tokenizer
    from agents.llm.one_pass.transcripts import exam_ids
    from agents.llm.prompts import REFUSED, Completion, Tagged
    from tests.agents.llm.exams import three_tier_spec
    from tests.agents.llm.forms import render_exam

    tokenizer, model = load_tokenizer(str(model_folder)), load_model(str(model_folder))
    texts, rng = three_tier_spec().source.texts, Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        rows, targets = [], []
        for _ in range(8):
            count = rng.randint(2, 4)
            prompt = exam_ids(tokenizer, rng.sample(texts, count), rng.randint(20, 80))
            kinds = [rng.randint(0, REFUSED) for _ in range(count)]
            parts = [Tagged(k, None if k == REFUSED else Completion("", rng.choice("12"))) for k in kinds]
            made = tokenizer(render_exam(parts) + tokenizer.eos_token, add_special_tokens=False).input_ids
            rows.append(torch.tensor(prompt + made))
            targets.append(torch.tensor([-100] * len(prompt) + made))
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
