"""The local solver on a real (very small) model: caps, shared thoughts, independence of batches, and agreement with `generate`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agents.llm.prompts import END_THINK
from agents.llm.small_model.tasks import FAMILIES, as_question, distinct_tasks
from agents.llm.small_model.tokenizer import prompt_text
from roi_env.answering.base import Ask, Generation, Question, Request, ThinkingTier
from roi_env.answering.dialect import THINKING
from roi_env.answering.local import LocalLive, TransformersSolver

TIERS = (ThinkingTier("answer", 0, 10), ThinkingTier("short", 6, 10), ThinkingTier("long", 40, 10))
QUESTIONS = [
    as_question(task)
    for name in ("prod", "ab")
    for difficulty in FAMILIES[name].taught
    for task in distinct_tasks(name, difficulty, "validation", 3)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def solver(model_folder: Path) -> TransformersSolver:
    return TransformersSolver(model_folder)


def requests(samples: int = 2, questions: list[Question] = QUESTIONS) -> list[Request]:
    return [Request(question, tier, sample) for question in questions for sample in range(samples) for tier in TIERS]


@pytest.fixture(scope="module")
def answered(solver: TransformersSolver) -> dict[Request, Generation]:
    asked = requests()
    return dict(zip(asked, solver.generate(asked), strict=True))


def test_caps_hold_and_tokens_are_counted(solver: TransformersSolver, answered: dict[Request, Generation]) -> None:
    cuts = 0
    for request, made in answered.items():
        tier = request.tier
        thought, closed, _ = made.text.partition(END_THINK)
        # Text is no measure of tokens where the very small model wrote half a letter.
        length = 0 if "\ufffd" in thought else len(solver.tokenizer(thought).input_ids)
        assert 1 <= made.tokens <= tier.most_tokens
        if made.cut or tier.thinking == 0:
            assert closed
            assert made.tokens > (tier.thinking and tier.thinking + 1)
            cuts += made.cut
        assert length <= tier.thinking
    assert cuts, "nothing was cut: the test shows nothing"
    assert any(not made.cut for request, made in answered.items() if request.tier.thinking)


def test_tiers_share_one_thought(answered: dict[Request, Generation]) -> None:
    for question in QUESTIONS:
        for sample in range(2):
            _, short, long = (answered[Request(question, tier, sample)] for tier in TIERS)
            if short.cut:
                thought = long.text if long.reasoning is None else long.reasoning
                assert thought.startswith(short.text.partition(END_THINK)[0].rstrip("\ufffd"))
            else:
                assert short == long


def test_a_thought_that_never_ends_is_no_answer(solver: TransformersSolver) -> None:
    """The prompt opened the block: the text alone does not tell such a thought from an answer."""
    asked = requests(samples=8)
    made = dict(zip(asked, solver.generate(asked), strict=True))
    unfinished = [(request, one) for request, one in made.items() if one.reasoning is not None]
    assert any(one.reasoning for _, one in unfinished), "every thought ended: the test shows nothing"
    for request, one in unfinished[:20]:
        assert one.text == ""
        assert END_THINK not in str(one.reasoning)
        assert not one.cut
        live = asyncio.run(LocalLive(solver).answer(Ask(request.question, request.tier, 99, request.sample)))
        assert (live.text, live.reasoning) == ("", one.reasoning or None)
    assert all(END_THINK in one.text for one in made.values() if one.reasoning is None)


def test_samples_do_not_depend_on_batches_or_company(model_folder: Path, answered: dict[Request, Generation]) -> None:
    alone = TransformersSolver(model_folder, batch=3)
    asked = requests(questions=QUESTIONS[::3])[::-1]
    same = [made == answered[request] for request, made in zip(asked, alone.generate(asked), strict=True)]
    # Batch shapes change the last bits of logits, and a draw that falls between two tokens may then go either way.
    assert np.mean(same) > 0.95


def test_seeds_and_samples_differ(model_folder: Path, answered: dict[Request, Generation]) -> None:
    first = [answered[Request(question, TIERS[2], 0)].text for question in QUESTIONS]
    second = [answered[Request(question, TIERS[2], 1)].text for question in QUESTIONS]
    other = TransformersSolver(model_folder, seed=1).generate([Request(q, TIERS[2], 0) for q in QUESTIONS])
    assert first != second
    assert first != [made.text for made in other]


def test_greedy_answers_are_those_of_generate(model_folder: Path) -> None:
    greedy = TransformersSolver(model_folder, temperature=0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    made = greedy.generate([Request(question, TIERS[0], 0) for question in QUESTIONS])
    for question, answer in zip(QUESTIONS, made, strict=True):
        ids = tokenizer(prompt_text(tokenizer, question.text, thinking=False), return_tensors="pt").input_ids
        out = greedy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TIERS[0].answer,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        expected = tokenizer.decode(out[0, ids.shape[1] :])
        assert answer.text == END_THINK + expected.removesuffix(tokenizer.eos_token)
        assert answer.tokens == out.shape[1] - ids.shape[1]


def test_sampling_follows_the_models_distribution(solver: TransformersSolver) -> None:
    question = QUESTIONS[-1]
    ids = torch.tensor([[*solver.prompt(question.text), solver.tokenizer.convert_tokens_to_ids(END_THINK)]])
    with torch.inference_mode():
        prefix = torch.cat([ids, torch.tensor([[solver.tokenizer.convert_tokens_to_ids("<answer>")]])], dim=1)
        first = (solver.model(ids).logits[0, -1].double() / 0.7).softmax(-1)
        second = (solver.model(prefix).logits[0, -1].double() / 0.7).softmax(-1)
    n = 1500
    noise = torch.tensor(np.random.default_rng(0).random(n))
    for p in (first, second):
        drawn = solver._choose((p.log() * 0.7).float().expand(n, -1), noise)
        frequency = torch.bincount(drawn, minlength=len(p)) / n
        assert (frequency - p).abs().max() < 4 * (p * (1 - p) / n).sqrt().max() + 1e-3


def test_a_model_without_think_tokens_is_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="no single token"):
        TransformersSolver(
            model_folder, dialect=replace(THINKING, opening="<reason>", closing="</reason>", force="</reason>")
        )
