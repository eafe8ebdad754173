"""Language models on a GPU: the numbers of the CPU, and no Ray where none is asked for. CI has no GPU: `make test-cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra [llm]")
pytest.importorskip("ray", reason="needs the extra [rllib]")

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from agents.llm.decisions.policy import MODELS, load_model, load_tokenizer
from agents.llm.decisions.tag_logits import PADDING, PromptEncoder, action_tags, joined, tag_logits
from agents.llm.one_pass.transcripts import exam_ids, generate, written_logp
from agents.llm.small_model.pretraining import Training, pretrain
from agents.rllib.algorithm import module_weights
from agents.rllib.named import build_algorithm, make_config
from agents.rllib.training import LocalRun, train_rllib
from roi_env.answering.base import Question, Request, ThinkingTier
from roi_env.answering.local import TransformersSolver
from roi_env.exams.config import exam_spec
from roi_env.sources.packaged import tinylm_table
from tests.agents.llm.conftest import TINY

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that it may see: make test-cuda"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

MODEL = "tinylm-mcft"
SPEC = exam_spec("tinylm", num_tasks=3, group_by="kind", budget=0.3, split="train")
SMALL: dict[str, Any] = {"model": MODEL, "exams": 32, "minibatch": 16, "lr": 3e-4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("llm-grpo", {"anchor": 1.0, "kl_coeff": 0.1}),
    "ppo": ("llm-ppo", {}),
    "lora": ("llm-grpo", {"lora": 4, "anchor": 1.0}),
    "bfloat16": ("llm-grpo", {"dtype": "bfloat16", "recompute": True}),
    "rarl": ("rarl", {"kl_coeff": 0.1, "entropy": 0.05}),
}


@contextmanager
def no_gpu() -> Iterator[None]:
    """What is built inside is on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


def texts(count: int) -> list[str]:
    return list(dict.fromkeys(tinylm_table().split("test").rows["question"].to_pylist()))[:: 1000 // count][:count]


def run_of(kind: str) -> LocalRun:
    name, params = KINDS[kind]
    return LocalRun(make_config(name, SPEC, seed=1, exam_seed=2, params=SMALL | params))


def test_tier_decisions() -> None:
    gpu = load_model(MODEL)
    with no_gpu():
        cpu = load_model(MODEL)
    assert (gpu.device.type, cpu.device.type) == ("cuda", "cpu")
    tokenizer, rng = load_tokenizer(MODEL), np.random.default_rng(0)
    encoder, tags = PromptEncoder(tokenizer), action_tags(tokenizer, 4)
    questions = encoder.questions(texts(50))[rng.integers(0, 50, 400)]
    states = encoder.states(rng.integers(1, 400, 400), rng.integers(1, 9, 400))
    prompts, width = joined(questions, states, (questions.shape[1], states.shape[1])), questions.shape[1]
    with torch.no_grad():
        found, expected = (tag_logits(model, prompts, width, tags).cpu() for model in (gpu, cpu))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_transcripts() -> None:
    tokenizer = load_tokenizer(MODEL)
    questions = texts(30)
    prompts = [exam_ids(tokenizer, questions[at : at + 3], 80) for at in range(0, 30, 3)]
    rows, numbers = np.arange(60) % 10, np.random.default_rng(0).random((60, 80))
    how = {"stop": int(tokenizer.eos_token_id), "temperature": 1.0}
    gpu = load_model(MODEL)
    found = generate(gpu, prompts, rows, numbers, **how)
    with no_gpu():
        expected = generate(load_model(MODEL), prompts, rows, numbers, **how)
    # A number between two cumulative sums that differ in their last bits is rare.
    same = (found.ids == expected.ids).all(1)
    assert same.mean() > 0.9
    np.testing.assert_allclose(found.logp[same], expected.logp[same], atol=1e-3)
    width = max(map(len, prompts))
    encoded = np.full((60, width + 80), PADDING, np.int32)
    for row, at in enumerate(rows):
        encoded[row, : len(prompts[at])] = prompts[at]
    encoded[:, width:] = found.ids
    with torch.no_grad():
        logp, _ = written_logp(gpu, encoded, width)
    np.testing.assert_allclose(logp.cpu().numpy(), found.logp[found.ids != PADDING], atol=1e-3)


def test_answers() -> None:
    tier = ThinkingTier("long", 160, 24)
    requests = [Request(Question("q", str(i), text, ""), tier, 0) for i, text in enumerate(texts(100))]
    answers = [
        TransformersSolver(MODELS / "tinylm", temperature=0, device=device).generate(requests)
        for device in ("cuda", "cpu")
    ]
    same = np.mean([one.text == other.text for one, other in zip(*answers, strict=True)])
    assert same > 0.7, "bfloat16 on the GPU, float32 on the CPU"


@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_is_that_of_the_cpu(kind: str) -> None:
    runs = [run_of(kind)]
    assert not ray.is_initialized()
    with no_gpu():
        runs.append(run_of(kind))
        expected = runs[1].sample()
    found = runs[0].sample()
    assert [next(run.runner.module.parameters()).device.type for run in runs] == ["cuda", "cpu"]
    learner = runs[0].learner_group._learner
    assert learner is not None
    assert learner.module[DEFAULT_MODULE_ID].unwrapped() is runs[0].runner.module
    assert found.steps == pytest.approx(expected.steps, rel=0.05)
    if kind == "rarl":
        assert (found.rows == expected.rows).all(1).mean() > 0.7
    elif found.steps == expected.steps:
        assert (found.actions == expected.actions).mean() > 0.9
    before = module_weights(runs[1].learner_group)
    runs[0].train()
    with no_gpu():
        runs[1].train()
    after = [module_weights(run.learner_group) for run in runs]
    if kind == "bfloat16":
        return  # rounds too coarsely for small steps
    moved = sum(np.abs(value - before[name]).sum() for name, value in after[1].items())
    apart = sum(np.abs(value - after[0][name]).sum() for name, value in after[1].items())
    print(f"{kind}: apart {apart / moved:.4f} of the way")
    assert 0 < apart < 0.5 * moved


def test_a_continued_run(tmp_path: Path) -> None:
    name, params = KINDS["grpo"]

    def train(steps: int, checkpoint: Path) -> Any:
        config = make_config(name, SPEC, seed=1, exam_seed=2, params=SMALL | params | {"steps": 300})
        *_, (weights, _) = train_rllib(config, steps, checkpoint=checkpoint)
        return weights

    whole = train(300, tmp_path / "whole")
    train(100, tmp_path / "parts")
    parts = train(300, tmp_path / "parts")
    assert not ray.is_initialized()
    print("largest difference", max(float(np.abs(value - parts[key]).max()) for key, value in whole.items()))
    for key, value in whole.items():
        np.testing.assert_allclose(value, parts[key], atol=1e-3)


def test_a_remote_learner_has_the_gpu() -> None:
    name, params = KINDS["grpo"]
    how: dict[str, Any] = {"seed": 1, "exam_seed": 2, "params": SMALL | params}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(ValueError, match="a GPU each"):
            build_algorithm(name, SPEC, **how, learners=torch.cuda.device_count() + 1)
        algorithm = build_algorithm(name, SPEC, **how, learners=1)
        algorithm.train()
        assert [r.get().type for r in algorithm.learner_group.foreach_learner(lambda one: one._device)] == ["cuda"]
        algorithm.stop()
    finally:
        ray.shutdown()


def test_pretraining(tmp_path: Path) -> None:
    def stop(progress: Training) -> None:
        raise KeyboardInterrupt

    gpu = pretrain(TINY, tmp_path / "gpu")
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "parts", stop)
    parts = pretrain(TINY, tmp_path / "parts")
    with no_gpu():
        cpu = pretrain(TINY, tmp_path / "cpu")
    print(gpu, cpu)
    assert gpu.device != cpu.device == "CPU"
    for name, loss in cpu.validation.items():
        assert gpu.validation[name] == pytest.approx(loss, abs=0.2)
        assert parts.validation[name] == pytest.approx(gpu.validation[name], abs=0.02)
