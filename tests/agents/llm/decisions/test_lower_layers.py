"""Layers that are not trained read a question once, and a state of it once, and nothing changes by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra [llm]")

from agents.llm.decisions import lower_layers
from agents.llm.decisions.lower_layers import LowerLayers
from agents.llm.decisions.policy import LMPolicy, load_model, load_tokenizer
from agents.llm.decisions.tag_logits import Ids, PromptEncoder, joined, last_hidden
from tests.tiny_models import SIZES, tiny_model

CLOSE = {"atol": 1e-3, "rtol": 1e-3}
"""Layers that read in other batches differ in the last bits, and more after steps of learning."""


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
    # Gemma's window is shorter than a prompt: it is read whole, every time.
    assert told[-1:] == ([] if architecture == "gemma3_text" else [(4, 4)])
    expected = learnt(plain, prompts, width)
    for policy in (kept, read):
        found = learnt(policy, prompts, width)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name, **CLOSE)
        # Beside other prompts as well, and the model is whole again.
        with torch.no_grad():
            for some in (slice(0, 1), slice(1, 5)):
                ours, theirs = (one.heads(prompts[some], width)[0] for one in (policy, plain))
                torch.testing.assert_close(ours, theirs, **CLOSE)
            first = torch.tensor([prompts[0][prompts[0] >= 0].tolist()])
            torch.testing.assert_close(policy.causal(first).logits, plain.causal(first).logits, **CLOSE)


@pytest.mark.parametrize("architecture", SIZES)
def test_gradients_are_those_of_plain_passes(architecture: str, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path, architecture))
    prompts, width = encoded(model)
    policy = LMPolicy(model, 4, lora=2, layers=1)
    learnt(policy, prompts, width)  # LoRA's second factor is zero at first, and then the first one has no gradient
    policy.zero_grad()
    policy.heads(prompts, width)[0].log_softmax(1)[:, 1].sum().backward()
    found = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    policy.zero_grad()
    for prompt in prompts:
        logits = policy.causal(torch.tensor([prompt[prompt >= 0].tolist()])).logits[0, -1, policy.tags]
        logits.log_softmax(0)[1].backward()
    expected = {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name, **CLOSE)


def test_the_last_layer_feeds_forward_what_is_asked_for(tmp_path: Path) -> None:
    model, tokens = str(tiny_model(tmp_path)), list[int]()
    prompts, width = encoded(model)
    policy = LMPolicy(model, 4, lora=2, layers=1)
    policy.causal.base_model.layers[1].mlp.down_proj.register_forward_hook(
        lambda module, given, made: tokens.append(made[..., 0].numel())
    )
    policy.heads(prompts, width)
    assert sum(tokens) == len(np.unique(prompts, axis=0))


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


@pytest.mark.parametrize("architecture", SIZES)
def test_a_whole_model_reads_a_question_once_whatever_states_it_is_asked_in(architecture: str, tmp_path: Path) -> None:
    folder = str(tiny_model(tmp_path, architecture))
    model, encoder, tokens = load_model(folder), PromptEncoder(load_tokenizer(folder)), list[int]()
    texts = ["1 + 1", "a longer question " * 4]
    rng = np.random.default_rng(0)
    which = rng.integers(0, 2, 40)
    questions = encoder.questions(texts)[which]
    states = encoder.states(rng.integers(0, 2000, 40), rng.integers(1, 5, 40))
    prompts, width = joined(questions, states, (questions.shape[1], states.shape[1])), questions.shape[1]
    with torch.inference_mode():
        expected = last_hidden(model, prompts, width)
        reader = LowerLayers(model, None, encoder.shared)
        model.base_model.layers[0].mlp.register_forward_hook(
            lambda module, given, out: tokens.append(out[..., 0].numel())
        )
        for some in (np.arange(3), np.arange(2, 17), np.arange(40), np.arange(40)[::-1].copy()):
            found = reader.last_hidden(prompts[some], width)
            torch.testing.assert_close(found, expected[torch.from_numpy(some)], atol=2e-5, rtol=1e-4)
    asked = len(np.unique(prompts, axis=0))
    rest = states.shape[1] - encoder.shared
    if architecture == "gemma3_text":  # its window is shorter than a prompt: every prompt is read whole, once
        assert sum(tokens) <= asked * prompts.shape[1]
    else:
        assert sum(tokens) <= 2 * (width + encoder.shared) + asked * rest, "padding included"
    assert encoder.shared > rest, "what a model is told of the tags is read with the question"


def test_what_was_forgotten_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny_model(tmp_path))
    prompts, width = encoded(model)
    policy = LMPolicy(model, 4, lora=2, layers=1)
    with torch.no_grad():
        expected = policy.heads(prompts, width)[0]
        monkeypatch.setattr(lower_layers, "KEPT_BYTES", 0)
        for some in (slice(0, 2), slice(0, 5), slice(3, 5)):
            torch.testing.assert_close(policy.heads(prompts[some], width)[0], expected[some])


def test_policies_of_the_same_files_share_what_was_read_even_to_act(tmp_path: Path) -> None:
    model, ran = str(tiny_model(tmp_path)), list[int]()
    prompts, width = encoded(model)
    with torch.inference_mode():
        LMPolicy(model, 4, lora=2, layers=1).heads(prompts, width)
    other = LMPolicy(model, 4, lora=2, layers=1, seed=1)
    other.causal.base_model.layers[0].mlp.register_forward_hook(lambda *given: ran.append(1))
    assert learnt(other, prompts, width)
    assert not ran


def test_layers_without_lora_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers=1 says where LoRA is: give its rank"):
        LMPolicy(str(tiny_model(tmp_path)), 4, layers=1)
