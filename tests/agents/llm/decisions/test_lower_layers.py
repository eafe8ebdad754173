"""Layers below the trained ones are run once a prompt, and nothing changes by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra [llm]")

from agents.llm.decisions.policy import LMPolicy, load_tokenizer
from agents.llm.decisions.tag_logits import Ids, PromptEncoder, joined
from tests.tiny_models import SIZES, tiny_model


def encoded(model: str) -> tuple[Ids, int]:
    """Questions of different lengths, one of them in two states, and one prompt twice."""
    encoder = PromptEncoder(load_tokenizer(model))
    questions = encoder.questions(["1 + 1", "a longer question " * 4, "1 + 1", "7", "7"])
    states = encoder.states(np.array([5, 77, 1024, 31, 31]), np.array([1, 2, 1, 3, 3]))
    return joined(questions, states, (questions.shape[1], states.shape[1])), questions.shape[1]


def learnt(policy: LMPolicy, prompts: Ids, width: int, steps: int = 3) -> dict[str, torch.Tensor]:
    """Gradients of the trained weights after some steps."""
    weights = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD(weights.values(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.heads(prompts, width)[0].log_softmax(1)[:, 1].mean().backward()
        optimizer.step()
    return {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}


@pytest.mark.parametrize("architecture", SIZES)
def test_what_is_kept_changes_neither_logits_nor_gradients(architecture: str, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path, architecture))
    prompts, width = encoded(model)
    plain, kept, read = (LMPolicy(model, 4, lora=2, layers=1, keep=keep) for keep in (False, True, True))
    assert plain.lower is None
    assert kept.lower is not None
    assert read.lower is not None
    told: list[tuple[int, int]] = []
    read.lower.read(prompts, width, lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    expected = learnt(plain, prompts, width)
    for policy in (kept, read):
        found = learnt(policy, prompts, width)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)
        # Beside other prompts as well, and the model is whole again.
        with torch.no_grad():
            for some in (slice(0, 1), slice(1, 5)):
                ours, theirs = (one.heads(prompts[some], width)[0] for one in (policy, plain))
                torch.testing.assert_close(ours, theirs)
            whole = policy.causal(torch.tensor([prompts[0][prompts[0] >= 0].tolist()])).logits
            torch.testing.assert_close(whole, plain.causal(torch.tensor([prompts[0][prompts[0] >= 0].tolist()])).logits)


def test_lower_layers_run_once_a_prompt(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path))
    prompts, width = encoded(model)
    policy, ran = LMPolicy(model, 4, lora=2, layers=1, keep=True), []
    lower, upper = policy.causal.base_model.layers
    lower.mlp.register_forward_hook(lambda *given: ran.append("lower"))
    upper.mlp.register_forward_hook(lambda *given: ran.append("upper"))
    assert policy.lower is not None
    policy.lower.read(prompts, width, lambda done, total: None)
    assert set(ran) == {"lower"}
    ran.clear()
    learnt(policy, prompts, width)
    assert set(ran) == {"upper"}
    # A new prompt is read in passing.
    encoder = PromptEncoder(load_tokenizer(model))
    new = joined(encoder.questions(["new"]), encoder.states(np.array([9]), np.array([1])), (width, prompts.shape[1]))
    policy.heads(new, width)
    assert "lower" in ran
    assert LMPolicy(model, 4, lora=2, keep=True).lower is None, "all layers are trained"
