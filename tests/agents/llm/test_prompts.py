"""The parser: what was rendered is read back, everything else has no answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.prompts import (
    AMPLE,
    ANSWER,
    END,
    END_ANSWER,
    END_THINK,
    LEVEL_TAGS,
    REFUSAL,
    REFUSED,
    THINK,
    Completion,
    Tagged,
    ample,
    ample_states,
    answer_of,
    exam_prompt,
    parse,
    parse_exam,
    parse_tagged,
    render,
    render_tagged,
)
from tests.agents.llm.forms import decision_prompt, render_exam, segments

PIECES = (THINK, END_THINK, ANSWER, END_ANSWER, END, REFUSAL, *LEVEL_TAGS, "<predicted_level>", "7", " ", "\n", "x=1; ")
plain = st.text(st.characters(codec="utf-8", exclude_characters="<\n\r"), max_size=30)
completions = st.builds(Completion, plain, plain.map(str.strip))
tagged = st.builds(Tagged, st.integers(0, REFUSED - 1), completions) | st.just(Tagged(REFUSED, None))
garbage = st.lists(st.sampled_from(PIECES), max_size=20).map("".join) | st.text(max_size=60)


@given(thought=plain, answer=plain)
def test_what_was_rendered_is_read_back(thought: str, answer: str) -> None:
    for text in (render(Completion(thought, answer)), THINK + render(Completion(thought, answer)) + END):
        assert parse(text) == Completion(thought, answer.strip())


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=60))
def test_garbage_has_an_answer_only_if_it_is_a_completion(text: str) -> None:
    found = parse(text)
    if found is not None:
        body = text.removeprefix(THINK)
        assert body.count(END_THINK) == body.count(ANSWER) == body.count(END_ANSWER) == 1
        assert THINK not in body
        assert "predicted_level" not in text
        assert body.index(END_THINK) < body.index(ANSWER) < body.index(END_ANSWER)
        assert "\n" not in found.answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "<answer>42</answer>",
        "1+1</think>42",
        "1+1</think><answer>42",
        "1+1</think><answer>4\n2</answer>",
        "1+1</think><answer>4</answer><answer>2</answer>",
        "1+1</think></think><answer>42</answer>",
        "1+1</think><answer>42</answer> or so",
        "1<answer>1</answer></think><answer>42</answer>",
        "1</think><answer>42</answer><|end|><|end|>",
        "1</think><answer><|user|>42</answer>",
        "<think><think>1</think><answer>42</answer>",
    ],
)
def test_near_misses_have_no_answer(text: str) -> None:
    assert answer_of(text) is None


def test_an_empty_answer_is_an_answer() -> None:
    assert answer_of("</think><answer></answer>") == ""


def test_prompts_name_what_is_left() -> None:
    assert decision_prompt("1 + 1 =", 120, 3) == "1 + 1 =\nTokens left: 120. Tasks left: 3."
    assert exam_prompt(["a", "b"], 9) == "Tokens left: 9. Tasks left: 2.\nProblem 1: a\nProblem 2: b"


@given(tagged, st.sampled_from(["", END, "\n", END + "\n"]))
def test_a_tagged_completion_is_read_back(one: Tagged, end: str) -> None:
    assert parse_tagged(render_tagged(one) + end) == one


@given(garbage)
def test_garbage_is_tagged_only_if_it_is_what_was_rendered(text: str) -> None:
    found = parse_tagged(text)
    if found is not None:
        # Whitespace around the parts and one end of turn are all that may differ.
        assert "".join(text.removesuffix("\n").split()).removesuffix(END) == "".join(render_tagged(found).split())
        assert (found.completion is None) == (found.level == REFUSED)


@pytest.mark.parametrize(
    "text",
    [
        LEVEL_TAGS[0],
        LEVEL_TAGS[0] + "1</think><answer>1</answer>",
        LEVEL_TAGS[0] + REFUSAL,
        LEVEL_TAGS[REFUSED],
        LEVEL_TAGS[REFUSED] + REFUSAL + REFUSAL,
        LEVEL_TAGS[REFUSED] + REFUSAL + END + END,
        LEVEL_TAGS[REFUSED] + "<think>1</think><answer>1</answer>",
        LEVEL_TAGS[0] * 2 + "<think>1</think><answer>1</answer>",
        " " + LEVEL_TAGS[REFUSED] + REFUSAL,
        "<predicted_level>Level-4</predicted_level><think>1</think><answer>1</answer>",
    ],
)
def test_near_misses_are_not_tagged(text: str) -> None:
    assert parse_tagged(text) is None


def test_a_refusal_with_a_completion_cannot_be_rendered() -> None:
    with pytest.raises(ValueError, match="must not have"):
        render_tagged(Tagged(REFUSED, Completion("", "1")))
    with pytest.raises(ValueError, match="must have"):
        render_tagged(Tagged(0, None))


@given(st.lists(tagged, min_size=1, max_size=5), st.integers(0, 2), st.sampled_from(["", END]))
def test_an_exam_is_read_back_and_unreached_problems_are_unanswered(parts: list[Tagged], more: int, end: str) -> None:
    assert parse_exam(render_exam(parts) + end, len(parts) + more) == parts + [None] * more


@given(st.lists(tagged, min_size=2, max_size=5), st.data())
def test_a_cut_exam_keeps_whole_problems_only(parts: list[Tagged], data: st.DataObject) -> None:
    text = render_exam(parts)
    # Tags are single tokens: no cut falls inside one.
    pieces = re.split(f"({'|'.join(map(re.escape, LEVEL_TAGS))})", text)
    ends = [
        len("".join(pieces[:i])) + j for i, piece in enumerate(pieces) for j in range(len(piece)) if i % 2 == 0 or not j
    ]
    cut = data.draw(st.sampled_from(ends))
    found = parse_exam(text[:cut], len(parts))
    whole = sum(len(render_exam(parts[: i + 1])) <= cut for i in range(len(parts)))
    assert found == parts[:whole] + [None] * (len(parts) - whole)


@given(st.lists(tagged, min_size=2, max_size=5), tagged, garbage)
def test_surplus_spoils_the_last_problem_alone(parts: list[Tagged], surplus: Tagged, text: str) -> None:
    expected = [*parts[:-1], None]
    assert parse_exam(render_exam([*parts, surplus]), len(parts)) == expected
    if text.strip() and not text.startswith(END):
        assert parse_exam(render_exam(parts) + text, len(parts)) == expected


def test_an_early_end_of_turn_spoils_its_problem() -> None:
    part = Tagged(0, Completion("1", "1"))
    assert parse_exam(render_tagged(part) + END + render_tagged(part), 2) == [None, part]
    assert parse_exam(render_tagged(part) + END, 3) == [part, None, None]


@given(garbage, st.integers(1, 4))
def test_garbage_exams_fail_closed(text: str, problems: int) -> None:
    found = parse_exam(text, problems)
    assert len(found) == problems
    if not text.lstrip().startswith(LEVEL_TAGS):
        assert found == [None] * problems
    answered = [part for part in found if part is not None]
    assert sum(text.count(tag) for tag in LEVEL_TAGS) >= len(answered)
    # Every problem that counts is in the text, word for word but for whitespace.
    squeezed = "".join(text.split())
    assert all("".join(render_tagged(part).split()) in squeezed for part in answered)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5))
def test_every_token_is_charged_to_one_problem(ids: list[int], problems: int) -> None:
    tags = (0, 1)
    found = segments(ids, tags, problems)
    assert len(found) == problems
    assert found[0].start == 0
    assert [token for part in found for token in ids[part.start : part.stop]] == ids
    assert all(ids[part.start] in tags for part in found[1:] if part.stop > part.start)
    inner = [token for part in found[:-1] for token in ids[part.start + 1 : part.stop]]
    first_tag = next((place for place, token in enumerate(ids) if token in tags), len(ids))
    assert sum(token in tags for token in inner) <= (0 < first_tag < len(ids))


def test_what_is_ample_follows_the_levels() -> None:
    assert ample(185) == AMPLE
    assert ample_states(185) == [(320, 1), (352, 1), (384, 1), (416, 1), (448, 1)]
    assert ample(1024) == (1024, 1)
    assert ample(1024) in ample_states(1024)
    assert len(set(ample_states(1024))) == 5
