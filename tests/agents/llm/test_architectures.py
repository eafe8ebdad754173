"""Architectures that count places, look back, scale logits or keep states in their own ways: read as by a plain pass, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs the extra [llm]")

import transformers

from agents.base import AgentError
from agents.llm.decisions.lower_layers import LowerLayers
from agents.llm.decisions.policy import LMPolicy
from agents.llm.decisions.tag_logits import Ids, joined, tag_head, tag_logits
from agents.llm.one_pass.transcripts import generate as write
from agents.llm.one_pass.transcripts import written_logp
from roi_env.answering.branching import Branch, Text, generate
from roi_env.answering.local import choose
from roi_env.answering.models import below_head, check_read, kept
from roi_env.answering.tokenizer import ModelError
from tests.tiny_models import tiny_model

SIZE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HYBRID = ["sliding_attention", "full_attention"]
OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"layer_types": HYBRID, "sliding_window": 24, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma4_text": {
        "num_hidden_layers": 4, "layer_types": HYBRID * 2, "sliding_window": 24, "num_kv_shared_layers": 2, "final_logit_softcapping": 4.0,
        "vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8,
    },
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "mistral": {"sliding_window": 24},
    "mixtral": {"sliding_window": None, "num_local_experts": 4},
    "llama4_text": {"attention_chunk_size": 16, "num_local_experts": 4, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 12},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 24, "block_types": ["recurrent", "attention"]},
}  # fmt: skip
STATES_RUN_ON = {"lfm2", "mamba", "recurrent_gemma"}
TAGS = [20, 21, 22, 23]


def network(architecture: str) -> Any:
    known = transformers.AutoConfig.for_model(architecture).to_dict()
    sizes = {name: value for name, value in SIZE.items() if name in known}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(architecture, **sizes | OWN[architecture])
    )
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model.float().eval()


def plain(model: Any, ids: list[int]) -> torch.Tensor:
    """(L, vocabulary) logits of one text alone, read at once."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def greedy(model: Any, ids: list[int], length: int) -> list[int]:
    made: list[int] = []
    while len(made) < length and made[-1:] != [2]:
        made.append(int(plain(model, ids + made)[-1].argmax()))
    return made


def drawn(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, 300, length).tolist() for length in lengths]


def in_parts(rows: list[tuple[list[int], list[int]]]) -> tuple[Ids, int]:
    """Encoded prompts of first and second parts."""
    first, second = (
        np.array([row + [-1] * (max(map(len, part)) - len(row)) for row in part], np.int32)
        for part in zip(*rows, strict=True)
    )
    return joined(first, second, (first.shape[1], second.shape[1])), first.shape[1]


@pytest.mark.parametrize("architecture", OWN)
def test_what_is_read_together_is_as_if_read_alone(architecture: str) -> None:
    model = network(architecture)
    # Of different lengths, the longest longer than a window; states that begin alike.
    rows = [(question, [11, 12, *state]) for question in drawn(4, 30, 9) for state in drawn(3, 6)]
    prompts, width = in_parts(rows)
    expected = torch.stack([plain(model, first + second)[-1, TAGS] for first, second in rows])
    close: dict[str, Any] = {"atol": 1e-3, "rtol": 1e-3}
    with torch.no_grad():
        torch.testing.assert_close(tag_logits(model, prompts, width, TAGS), expected, **close)
        reader = LowerLayers(model, None, 2)
        for some in (slice(0, 2), slice(None)):
            torch.testing.assert_close(
                tag_head(model, reader.last_hidden(prompts[some], width), TAGS), expected[some], **close
            )
        # What layers that are not trained give the first one that is; Mamba does not count the embeddings.
        after = 0 if architecture == "mamba" else 1
        below = [
            model(input_ids=torch.tensor([a + b]), output_hidden_states=True, use_cache=False).hidden_states[after]
            for a, b in rows
        ]
        expected = torch.stack([state[0, -1] for state in below])
        torch.testing.assert_close(LowerLayers(model, 1, 2).last_hidden(prompts, width), expected, **close)
        logp = written_logp(model, prompts, width)[0]
    alone = [plain(model, a + b).log_softmax(1)[np.arange(len(a) - 1, len(a + b) - 1), b] for a, b in rows]
    torch.testing.assert_close(logp, torch.cat(alone), **close)


@pytest.mark.parametrize("architecture", OWN)
def test_what_is_written_together_is_as_if_written_alone_or_refused(architecture: str) -> None:
    model = network(architecture)
    prompts, force = drawn(5, 30, 11), [7, 8]
    row, numbers = np.array([0, 1, 2, 1]), np.zeros((4, 8))
    if architecture in STATES_RUN_ON:
        with pytest.raises(AgentError, match=rf"\({architecture}\) keep of a text is not .*--endpoint"):
            write(model, prompts, row, numbers, stops=[2], temperature=0)
        return
    written = write(model, prompts, row, numbers, stops=[2], temperature=0)
    for made, at in zip(written.ids, row, strict=True):
        assert made[made >= 0].tolist() == greedy(model, prompts[at], 8)
    # Any of several tokens ends a turn.
    stop = int(written.ids[1, 2])
    stopped = write(model, prompts, row, numbers, stops=[2, stop], temperature=0).ids[1]
    assert stopped[stopped >= 0].tolist() == written.ids[1, : written.ids[1].tolist().index(stop) + 1].tolist()
    noise = np.zeros(12)
    texts = [Text(tuple(ids), (Branch(0, 3, noise), Branch(9, 3, noise)), noise) for ids in prompts]
    made_of = dict(
        one
        for ready in generate(model, texts, force, [2], lambda logits, noise: choose(logits, noise, 0), 2)
        for one in ready
    )
    for number, ids in enumerate(prompts):
        text = greedy(model, ids, 9)
        expected = [greedy(model, ids + force, 3), greedy(model, ids + text + force, 3) if 2 not in text else None]
        assert made_of[number].answers == expected


def test_of_gpt2_the_last_layers_alone_are_trained(tmp_path: Path) -> None:
    # Its linear layers are called otherwise.
    network("gpt2").save_pretrained(tiny_model(tmp_path))
    policy = LMPolicy(str(tmp_path), 4, lora=2, layers=1)
    assert policy.weights()
    assert all(".h.1." in name for name in policy.weights())


def test_a_value_is_learned_of_states_of_any_width(tmp_path: Path) -> None:
    sizes = SIZE | {"word_embed_proj_dim": 16, "ffn_dim": 48}
    config = transformers.AutoConfig.for_model("opt", **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tiny_model(tmp_path))
    prompts, width = in_parts([(first, second) for first in drawn(4, 9) for second in drawn(3, 6)])
    logits, values = LMPolicy(str(tmp_path), 4, critic=True).heads(prompts, width)
    assert logits.shape == (4, 4)
    assert values is not None
    assert values.shape == (4,)


def test_a_text_that_a_model_cannot_read_is_refused() -> None:
    model = network("gpt2")
    model.name_or_path = "gpt2-made"
    check_read(model, 1000, 299, "a prompt", 24)
    with pytest.raises(ModelError, match="a prompt has 1,000 tokens and 25 may follow, the model reads 1,024 at most"):
        check_read(model, 1000, 299, "a prompt", 25)
    with pytest.raises(ModelError, match="token 300, and the model's vocabulary ends at 299"):
        check_read(model, 10, 300, "a prompt")
    with pytest.raises(AgentError, match="model 'gpt2-made': an exam's prompt has 1,000 tokens and 25 may follow"):
        write(model, [[5] * 1000], np.array([0]), np.zeros((1, 25)), stops=[2], temperature=0)
    with pytest.raises(AgentError, match="model 'gpt2-made': a prompt has 1,025 tokens, the model reads"):
        tag_logits(model, *in_parts([([5] * 1024, [6])]), TAGS)
    scaled = network("llama4_text")
    scaled.config.max_position_embeddings = 4096
    scaled.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 1024}
    with pytest.raises(ModelError, match="reads 1,024 at most"):
        check_read(scaled, 1025, 1, "a prompt")


@pytest.mark.parametrize("architecture", ["mamba", "gemma2"])
def test_bfloat16_is_read_as_well(architecture: str) -> None:
    prompts, width = in_parts([(first, second) for first in drawn(4, 9) for second in drawn(3, 6)])
    with torch.no_grad():
        exact, rounded = (
            tag_logits(one, prompts, width, TAGS) for one in (network(architecture), network(architecture).bfloat16())
        )
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.1 * float(exact.std()), rtol=0.1)


def test_how_far_texts_can_be_read_beside_one_another() -> None:
    assert [kept(network(name)).beside for name in ("mistral", "bloom", "mamba", "gpt2")] == [24, 0, 0, 2**31]
    llama4 = network("llama4_text")
    assert below_head(llama4) is llama4.model
