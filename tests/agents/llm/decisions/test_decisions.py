"""Decision prompts and packed forward passes, against one plain forward pass a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra [llm]")

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from agents.llm.decisions import tag_logits as decisions
from agents.llm.decisions.tag_logits import PromptEncoder, action_tags, bucketed, joined, tag_logits
from agents.llm.prompts import LEVEL_TAGS, levels_explained, state_line
from agents.llm.small_model.tokenizer import ASSISTANT, END, USER, prompt_text
from tests.agents.llm.forms import decision_prompt
from tests.tiny_models import tiny_model

QUESTIONS = ["Solve 3 * 4.", "Rewrite the A::B program #A #B B#", "How many legs have 3 wasps and 12 shrimps?"]


def small(kind: str, vocabulary: int) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    match kind:
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=2, n_head=2)
            ).eval()
        case "llama":
            config = LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=False)
            return LlamaForCausalLM(config).eval()
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**sizes, intermediate_size=64, num_key_value_heads=2)).eval()
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["trained", "gpt2", "llama", "qwen2"])
def test_packed_prompts_get_the_logits_of_plain_ones(
    kind: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trained = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = trained if kind == "trained" else small(kind, len(tokenizer))
    # Several sequences a question, several passes, a question that is asked once.
    monkeypatch.setattr(decisions, "STATES_TOGETHER", 3)
    monkeypatch.setattr(decisions, "CHUNK_TOKENS", 100)
    rng = np.random.default_rng(0)
    which = np.append(rng.integers(0, 2, 30), 2)
    remaining, tasks_left = rng.integers(0, 130, 31), rng.integers(1, 12, 31)
    encoder = PromptEncoder(tokenizer)
    questions, states = encoder.questions(QUESTIONS)[which], encoder.states(remaining, tasks_left)
    prompts = joined(questions, states, (questions.shape[1] + 4, states.shape[1]))
    tags = action_tags(tokenizer, 4)
    with torch.no_grad():
        found = tag_logits(model, prompts, questions.shape[1] + 4, tags)
        for row, (q, left, tasks) in enumerate(zip(which, remaining, tasks_left, strict=True)):
            text = USER + decision_prompt(QUESTIONS[q], left, tasks) + END + ASSISTANT
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            torch.testing.assert_close(found[row], model(ids).logits[0, -1, tags], atol=2e-5, rtol=1e-4)
    assert found.std(0).min() > 0


def test_prompts_end_with_the_assistants_turn_and_no_think_block(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    encoder = PromptEncoder(tokenizer)
    ids = np.concatenate([encoder.questions(["1 + 1 ="])[0], encoder.states(np.array([20]), np.array([3]))[0]])
    text = tokenizer.decode(ids)
    assert text == USER + decision_prompt("1 + 1 =", 20, 3) + END + ASSISTANT
    assert prompt_text(tokenizer, decision_prompt("1 + 1 =", 20, 3)).startswith(text)


def test_tags_are_in_the_order_of_actions(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.convert_ids_to_tokens(action_tags(tokenizer, 4)) == [LEVEL_TAGS[3], *LEVEL_TAGS[:3]]
    assert tokenizer.convert_ids_to_tokens(action_tags(tokenizer, 3)) == [LEVEL_TAGS[2], *LEVEL_TAGS[:2]]
    with pytest.raises(ValueError, match="4 tiers: choose 3 of them"):
        action_tags(tokenizer, 5)


def test_a_vocabulary_without_tags_is_refused(model_folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    bare = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(ValueError, match="roi mcft"):
        action_tags(bare, 4)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox"])
@pytest.mark.parametrize("template", ["instruct", "thinking", "bare"])
def test_untaught_models_are_read_at_the_digit_of_a_tag(tmp_path: Path, architecture: str, template: str) -> None:
    folder = tiny_model(tmp_path, architecture, template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoder, tags = PromptEncoder(tokenizer, levels=4), action_tags(tokenizer, 4)
    assert tokenizer.convert_ids_to_tokens(tags) == ["3", "0", "1", "2"]
    which, remaining, tasks_left = np.array([0, 1, 0]), np.array([12, 512, 90]), np.array([1, 3, 2])
    questions, states = encoder.questions(QUESTIONS)[which], encoder.states(remaining, tasks_left)
    with torch.no_grad():
        found = tag_logits(
            model, joined(questions, states, (questions.shape[1], states.shape[1])), questions.shape[1], tags
        )
        for row, (q, left, tasks) in enumerate(zip(which, remaining, tasks_left, strict=True)):
            asked = QUESTIONS[q] + levels_explained(4) + state_line(left, tasks)
            assert all(tag in asked for tag in (LEVEL_TAGS[0], LEVEL_TAGS[2], LEVEL_TAGS[3]))
            if template == "bare":
                text = asked + "\n"
            else:
                text = tokenizer.apply_chat_template(
                    [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
                )
            parts = [QUESTIONS[q], asked[len(QUESTIONS[q]) :]]
            head, _, tail = text.partition(asked)
            pieces = [head + parts[0], parts[1] + tail + "<predicted_level>Level-"]
            ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False).input_ids]
            torch.testing.assert_close(found[row], model(torch.tensor([ids])).logits[0, -1, tags], atol=2e-4, rtol=1e-3)


@given(st.integers(0, 1 << 40), st.integers(1, 12))
def test_buckets_keep_the_leading_digits(remaining: int, bits: int) -> None:
    found = int(bucketed(np.array([remaining]), bits)[0])
    shift = max(0, remaining.bit_length() - bits)
    assert found == remaining >> shift << shift
    assert int(bucketed(np.array([remaining]), 0)[0]) == remaining
