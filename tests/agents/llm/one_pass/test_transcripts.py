"""Transcripts: what is generated, with which probability, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra [llm]")

from agents.base import make_agent, public_problem
from agents.llm.decisions.policy import load_model, load_tokenizer
from agents.llm.decisions.tag_logits import PADDING, Ids
from agents.llm.one_pass.transcripts import Generated, Reader, exam_ids, generate, written_logp
from agents.llm.prompts import LEVEL_TAGS, REFUSED, STRATEGIES, Completion, Tagged, text_segments
from agents.llm.small_model.tokenizer import ASSISTANT, END, USER
from agents.one_pass import Papers
from agents.playing import evaluate, rollout
from roi_env.exams.exam import draw_exams
from tests.agents.llm.exams import three_tier_spec, worded_spec
from tests.agents.llm.forms import render_exam, segments
from tests.tiny_models import TEMPLATES, tiny_tokenizer

QUESTIONS = ["1 = A#", "12 = A# and B#", "Solve the following multiplication: 12 * 34."]


def wrote(
    folder: Path, budget: int = 24, temperature: float = 1.0, **options: Any
) -> tuple[list[list[int]], Generated]:
    """Three exams of different lengths, five times each."""
    tokenizer = load_tokenizer(str(folder))
    prompts = [exam_ids(tokenizer, QUESTIONS[: k + 1], budget) for k in range(3)]
    numbers = np.random.default_rng(0).random((15, budget))
    how = {"stops": [tokenizer.eos_token_id], "temperature": temperature} | options
    return prompts, generate(load_model(str(folder)), prompts, np.arange(15) % 3, numbers, **how)


def rows_of(prompts: list[list[int]], ids: Ids) -> tuple[Ids, int]:
    width = max(map(len, prompts)) + 2
    rows = np.full((len(ids), width + ids.shape[1]), PADDING, np.int32)
    for at, row in enumerate(rows):
        row[: len(prompts[at % 3])] = prompts[at % 3]
    rows[:, width:] = ids
    return rows, width


def test_a_prompt_is_the_whole_exam_with_no_thought_begun(exam_model: Path) -> None:
    tokenizer = load_tokenizer(str(exam_model))
    text = tokenizer.decode(exam_ids(tokenizer, QUESTIONS[:2], 77))
    assert text == (
        f"{USER}Tokens left: 77. Tasks left: 2.\nProblem 1: {QUESTIONS[0]}\nProblem 2: {QUESTIONS[1]}{END}{ASSISTANT}"
    )
    for strategy, more in STRATEGIES.items():
        told = tokenizer.decode(exam_ids(tokenizer, QUESTIONS[:2], 77, strategy))
        assert told == text.replace(END, "\n" + more + END if more else END)
    with pytest.raises(ValueError, match="strategy"):
        exam_ids(tokenizer, QUESTIONS, 77, "hope")


def test_what_is_written_depends_on_prompt_and_numbers_alone(exam_model: Path) -> None:
    prompts, one = wrote(exam_model)
    for batch in (1, 4):
        _, other = wrote(exam_model, batch=batch)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.logp, other.logp, atol=2e-5)
    assert one.length.min() < one.length.max()
    shorter = wrote(exam_model, budget=7)[1]
    numbers = np.random.default_rng(0).random((15, 24))
    tokenizer = load_tokenizer(str(exam_model))
    again = generate(
        load_model(str(exam_model)),
        prompts,
        np.arange(15) % 3,
        numbers[:, :7],
        stops=[tokenizer.eos_token_id],
        temperature=1.0,
    )
    np.testing.assert_array_equal(again.ids, one.ids[:, :7], "a smaller budget cuts the same text")
    assert shorter.length.max() == 7


def test_writing_ends_with_the_turn_or_at_the_budget(exam_model: Path) -> None:
    stop = load_tokenizer(str(exam_model)).eos_token_id
    for budget in (5, 24, 80):
        _, made = wrote(exam_model, budget)
        for row, length in zip(made.ids, made.length, strict=True):
            assert (row[:length] != PADDING).all()
            assert (row[length:] == PADDING).all()
            assert (row[: length - 1] != stop).all()
            assert row[length - 1] == stop or length == budget


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_learner_and_runner_agree_on_log_probabilities(exam_model: Path, temperature: float) -> None:
    """Left-padded generation with a cache, packed rows with shared prompts, and each row on its own, in float32."""
    prompts, made = wrote(exam_model, temperature=temperature)
    rows, width = rows_of(prompts, made.ids)
    model = load_model(str(exam_model))
    written = made.ids != PADDING
    with torch.no_grad():
        logp, entropy = written_logp(model, np.concatenate([rows, rows[:4]]), width, temperature=temperature)
        # Some rows twice: they are read once.
        np.testing.assert_array_equal(logp[written.sum() :], logp[: written[:4].sum()])
        logp, entropy = logp[: written.sum()], entropy[: written.sum()]
        np.testing.assert_allclose(logp, made.logp[written], atol=2e-5)
        alone, spread = [], []
        for at, ids in enumerate(made.ids):
            tokens = torch.tensor(prompts[at % 3] + ids[ids != PADDING].tolist())
            law = (model(tokens[None]).logits[0, len(prompts[at % 3]) - 1 : -1] / temperature).log_softmax(-1)
            alone.append(law.gather(1, tokens[len(prompts[at % 3]) :, None])[:, 0])
            spread.append(torch.distributions.Categorical(logits=law).entropy())
    np.testing.assert_allclose(logp, torch.cat(alone), atol=2e-5)
    np.testing.assert_allclose(entropy, torch.cat(spread), atol=2e-5)


def test_recomputing_gives_the_same_gradients(exam_model: Path) -> None:
    prompts, made = wrote(exam_model)
    rows, width = rows_of(prompts, made.ids)
    gradients = []
    for recompute in (False, True):
        model = load_model(str(exam_model))
        logp, entropy = written_logp(model, rows, width, recompute=recompute)
        (logp.square().sum() + entropy.sum()).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_without_temperature_the_most_likely_tokens_are_written(exam_model: Path) -> None:
    prompts, made = wrote(exam_model, temperature=0.0)
    model, tokenizer = load_model(str(exam_model)), load_tokenizer(str(exam_model))
    for at, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=24
        )[0, len(prompt) :].tolist()
        assert made.ids[at][made.ids[at] != PADDING].tolist() == expected
    assert tokenizer.eos_token_id in made.ids


def transcript(folder: Path, text: str, budget: int) -> Ids:
    ids = load_tokenizer(str(folder))(text, add_special_tokens=False).input_ids
    assert len(ids) <= budget
    return np.array([ids + [PADDING] * (budget - len(ids))], np.int32)


def test_every_token_counts_and_is_charged_to_one_problem(exam_model: Path) -> None:
    tokenizer = load_tokenizer(str(exam_model))
    parts = [Tagged(2, Completion("3+4=7", "7")), Tagged(REFUSED, None), Tagged(0, Completion("", "12"))]
    cost = [len(tokenizer(render_exam([part]), add_special_tokens=False).input_ids) for part in parts]
    reader = Reader(tokenizer)
    for end, budget in (("", sum(cost)), (END, sum(cost) + 1), (END, 99)):
        papers = reader.papers(transcript(exam_model, render_exam(parts) + end, budget), 4)
        # The end of the turn is a token like any other, of the last problem that was reached.
        assert papers.tokens[0].tolist() == [*cost[:2], cost[2] + bool(end), 0]
        assert papers.action[0].tolist() == [3, 0, 1, 0]
        assert papers.reached[0].tolist() == papers.announced[0].tolist() == [True, True, True, False]
        assert not papers.cut.any(), "what is finished with the last token of the budget is not cut"
        assert papers.answers[0] == ("7", None, "12", None)
        charged = reader.problem_of(transcript(exam_model, render_exam(parts) + end, budget), 4)
        assert np.bincount(charged[charged >= 0], minlength=4).tolist() == papers.tokens[0].tolist()


def test_what_the_budget_cuts_is_lost(exam_model: Path) -> None:
    tokenizer = load_tokenizer(str(exam_model))
    parts = [Tagged(1, Completion("1", "1")), Tagged(1, Completion("1", "1"))]
    whole = tokenizer(render_exam(parts) + END, add_special_tokens=False).input_ids
    half = len(whole) // 2
    for budget in range(1, len(whole) + 3):
        ids = whole[:budget] + [PADDING] * (budget - len(whole))
        papers = Reader(tokenizer).papers(np.array([ids], np.int32), 2)
        assert papers.tokens.sum() == min(budget, len(whole))
        assert papers.reached[0].tolist() == [True, budget > half]
        # 2 x half tokens, then the end of the turn.
        assert papers.cut[0].tolist() == [budget < half, half < budget < 2 * half]
        assert papers.answers[0] == ("1" if budget >= half else None, "1" if budget >= 2 * half else None)


def test_what_announces_nothing_is_an_attempt_without_an_answer(exam_model: Path) -> None:
    tokenizer = load_tokenizer(str(exam_model))
    part = render_exam([Tagged(0, Completion("", "1"))])
    papers = Reader(tokenizer).papers(transcript(exam_model, "I think" + part + END, 60), 2)
    assert papers.announced[0].tolist() == [False, False]
    assert papers.action[0].tolist() == [3, 0]
    assert papers.answers[0] == (None, None)
    assert not papers.cut.any()


@given(
    st.lists(st.sampled_from([*LEVEL_TAGS, "a", "12", "<predicted_level>Level-", " "]), max_size=20), st.integers(1, 4)
)
def test_tags_of_several_tokens_are_found_as_single_ones_are(pieces: list[str], problems: int) -> None:
    single = [LEVEL_TAGS.index(piece) if piece in LEVEL_TAGS else -1 for piece in pieces]
    expected = segments(single, range(len(LEVEL_TAGS)), problems)
    assert text_segments(pieces, problems) == expected
    letters = list("".join(pieces))
    starts = np.cumsum([0, *map(len, pieces)])
    spelled = [(int(starts[part.start]), int(starts[part.stop])) for part in expected]
    assert text_segments(letters, problems) == spelled


def test_a_model_takes_exams_by_name_and_the_same_ones_the_same_way(exam_model: Path) -> None:
    spec = three_tier_spec(budget=40)
    batch, problem = draw_exams(spec, 0, np.arange(12)), public_problem(spec)
    taker = make_agent(f"exam-taker(model={str(exam_model)!r},temperature=1.0,replicates=3)", problem)
    found, again = (evaluate(taker, some, seed=1) for some in (batch, batch.take(slice(0, 5))))
    assert found.replicates == 3
    np.testing.assert_allclose(found.value[:5], again.value)
    assert 0 < found.score.mean() < 4
    assert found.tokens.sum(1).max() <= 40
    records = rollout(taker, batch, replicates=2, seed=1)
    assert (records.tokens.sum(1) <= 40).all()
    assert ((records.tokens > 0) == records.reached).all()
    assert not (records.correct & (records.overspent | (records.action == 0))).any()
    greedy = make_agent(f"exam-taker(model={str(exam_model)!r},temperature=0)", problem)
    assert evaluate(greedy, batch).replicates == 1


@pytest.mark.parametrize("strategy", ["base", "plan-and-solve", "least-to-most"])
def test_strategies_that_explain_the_form_run(exam_model: Path, strategy: str) -> None:
    spec = three_tier_spec(budget=30)
    agent = make_agent(f"exam-{strategy}(model={str(exam_model)!r},replicates=1)", public_problem(spec))
    found = evaluate(agent, draw_exams(spec, 0, np.arange(3)))
    assert found.tokens.sum(1).max() <= 30


def test_exams_that_cannot_be_written_are_refused(exam_model: Path) -> None:
    for spec, message in ((three_tier_spec(preview=False), "question texts"), (worded_spec(), "tiers")):
        agent = make_agent(f"exam-taker(model={str(exam_model)!r})", public_problem(spec))
        with pytest.raises(ValueError, match=message):
            evaluate(agent, draw_exams(spec, 0, np.arange(2)))


def boxed_papers(text: str, problems: int = 3, room: int = 3) -> Papers:
    tokenizer = tiny_tokenizer(TEMPLATES["instruct"])
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Reader(tokenizer).papers(np.array([ids + [PADDING] * room], np.int32), problems)


@pytest.mark.parametrize(
    ("text", "answers", "actions"),
    [
        (r"a \boxed{1} b \boxed{\frac{1}{2}} c \boxed{3}<|im_end|>", ("1", r"\frac{1}{2}", "3"), [3, 3, 3]),
        (r"\boxed{1} \boxed{NA} \boxed{ 3 }", ("1", None, "3"), [3, 0, 3]),
        (r"within \boxed{}: \boxed{\text{two \boxed{2}}} and", (r"\text{two \boxed{2}}", None, None), [3, 3, 0]),
        (r"\boxed{1}\boxed{2}\boxed{3}\boxed{4} more", ("1", "2", "3"), [3, 3, 3]),
        ("nothing", (None, None, None), [3, 0, 0]),
        (r"√ \boxed{3√2}🎈🎈\boxed{90°} \boxed{x}", ("3√2", "90°", "x"), [3, 3, 3]),  # characters of several tokens
        (r"\boxed{1} then \boxed{2", ("1", None, None), [3, 3, 0]),
    ],
)
def test_boxes_answer_in_their_order(text: str, answers: tuple[str | None, ...], actions: list[int]) -> None:
    papers = boxed_papers(text)
    assert papers.answers == (answers,)
    assert papers.action[0].tolist() == actions
    assert papers.announced[0].tolist() == [action == 0 and text.count("NA") > 0 for action in actions]
    # Every token is charged to one problem: that of its box, the last of all what follows.
    tokenizer = tiny_tokenizer(TEMPLATES["instruct"])
    assert papers.tokens.sum() == len(tokenizer(text, add_special_tokens=False).input_ids)
    assert papers.reached[0].tolist() == (papers.tokens[0] > 0).tolist()
    assert not papers.cut.any(), "there was room"


def test_the_budget_cuts_what_has_no_box_yet() -> None:
    text = r"so \boxed{12} and \boxed{5}"
    tokenizer = tiny_tokenizer(TEMPLATES["instruct"])
    ids = tokenizer(text, add_special_tokens=False).input_ids
    first = len(tokenizer(r"so \boxed{12}", add_special_tokens=False).input_ids)
    for budget in range(1, len(ids) + 1):
        papers = Reader(tokenizer).papers(np.array([ids[:budget]], np.int32), 2)
        assert papers.tokens[0].tolist() == [min(budget, first), max(budget - first, 0)]
        assert papers.answers[0] == ("12" if budget >= first else None, "5" if budget == len(ids) else None)
        assert papers.cut[0].tolist() == [budget < first, first < budget < len(ids)]


@pytest.mark.parametrize("dialect", list(TEMPLATES))
def test_exams_are_asked_for_as_a_model_speaks(dialect: str) -> None:
    tokenizer = tiny_tokenizer(TEMPLATES[dialect], ("<think>", "</think>") if dialect == "thinking" else ())
    asked = {name: tokenizer.decode(exam_ids(tokenizer, QUESTIONS[:2], 77, name)) for name in STRATEGIES}
    assert len(set(asked.values())) == len(STRATEGIES)
    for name, text in asked.items():
        assert f"Problem 2: {QUESTIONS[1]}" in text
        assert not text.rstrip().endswith("<think>")
        if name != "taught":
            assert ("<answer>" in text) == ("<predicted_level>" in text) == (dialect == "thinking")
            assert (r"within \boxed{}" in text) == (dialect != "thinking")
