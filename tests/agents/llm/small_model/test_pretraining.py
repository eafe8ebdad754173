"""Pre-training: learns, goes on where it stopped with the same result, and leaves an ordinary model directory."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from agents.llm.prompts import END, END_THINK, LEVEL_TAGS, THINK
from agents.llm.small_model.pretraining import RECIPE, STATE, Training, batches, chunks, make_model, pretrain
from agents.llm.small_model.tokenizer import prompt_text
from tests.agents.llm.conftest import TINY


class Stopped(Exception):
    """Ends a training early, as Ctrl-C would."""


def stop(progress: Training) -> None:
    raise Stopped


def test_loss_falls_far_below_chance(model_folder: Path) -> None:
    record = json.loads((model_folder / RECIPE).read_text())
    vocabulary = len(AutoTokenizer.from_pretrained(model_folder))
    assert record["training"]["tokens"] >= TINY.tokens
    assert max(record["training"]["validation"].values()) < math.log(vocabulary) / 2
    assert not (model_folder / STATE).exists()


def test_a_model_directory_like_any_other(model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert model.config.model_type == "qwen3"
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    config = GenerationConfig.from_pretrained(model_folder)
    assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(END)
    ids = tokenizer(prompt_text(tokenizer, "6 * 7 ="), return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert ids.shape[1] < out.shape[1] <= ids.shape[1] + 4
    assert "roi llm pretrain" in (model_folder / "README.md").read_text()


def test_a_finished_training_is_not_repeated_and_another_recipe_is_refused(model_folder: Path) -> None:
    assert (
        pretrain(TINY, model_folder, stop).updates
        == json.loads((model_folder / RECIPE).read_text())["training"]["updates"]
    )
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(dataclasses.replace(TINY, seed=1), model_folder)


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, tokens=15_000, chunk_batches=8)
    pretrain(recipe, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Stopped):
            pretrain(recipe, tmp_path / "stopped", stop)
        assert (tmp_path / "stopped" / STATE).exists()
    pretrain(recipe, tmp_path / "stopped")
    whole, resumed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "stopped")
    )
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


def test_other_processes_prepare_the_same_chunks(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for number, (alone, prepared) in enumerate(
        zip(chunks(TINY, tokenizer, 3, 0), chunks(TINY, tokenizer, 3, 2), strict=False)
    ):
        for batch, other, own in zip(alone, prepared, batches(TINY, tokenizer, 3 + number), strict=True):
            for one, two, three in zip(batch, other, own, strict=True):
                assert torch.equal(one, two)
                assert torch.equal(one, three)
        if number == 3:
            break


def test_batches_carry_loss_on_what_the_model_must_write_alone(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    end_think, end, think = (tokenizer.convert_tokens_to_ids(t) for t in (END_THINK, END, THINK))
    forced = free = 0
    for ids, labels in batches(TINY, tokenizer, 0):
        assert ids.numel() <= TINY.batch_tokens
        for row, target in zip(ids, labels, strict=True):
            start = int((row == think).nonzero()[0])
            assert (target[: start + 1] == -100).all(), "the prompt carries none"
            wanted = target != -100
            assert (target[wanted] == row[wanted]).all()
            assert target[wanted][-1] == end
            close = int((row == end_think).nonzero()[0])
            if target[close] == -100:
                forced += 1
                assert (target[start + 1 : close] != -100).all(), "a cut thought is still the model's"
            else:
                free += 1
    assert forced > 5
    assert free > 5


def test_tokenizer_keeps_digits_and_tags_whole_and_reads_back(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert tokenizer.tokenize("4096") == list("4096")
    for tag in LEVEL_TAGS:
        assert len(tokenizer(tag).input_ids) == 1
    text = "Was kostet 12 × 3? <think>é 雪</think>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert prompt_text(tokenizer, "q").endswith(THINK)
    assert prompt_text(tokenizer, "q", thinking=False).endswith(THINK + END_THINK)


def test_other_shapes(model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    sizes = [
        sum(p.numel() for p in make_model(dataclasses.replace(TINY, layers=layers), tokenizer).parameters())
        for layers in (1, 3)
    ]
    assert sizes[0] < sizes[1]
