"""The parser: what was rendered is read back, everything else has no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.prompts import (
    ANSWER,
    END,
    END_ANSWER,
    END_THINK,
    LEVEL_TAGS,
    THINK,
    Completion,
    answer_of,
    decision_prompt,
    exam_prompt,
    parse,
    parse_level,
    render,
)

PIECES = (THINK, END_THINK, ANSWER, END_ANSWER, END, *LEVEL_TAGS, "<predicted_level>", "7", " ", "\n", "x=1; ")
plain = st.text(st.characters(codec="utf-8", exclude_characters="<\n\r"), max_size=30)


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


@given(st.sampled_from(LEVEL_TAGS) | st.text(max_size=50) | st.lists(st.sampled_from(LEVEL_TAGS)).map("".join))
def test_levels_are_exact(text: str) -> None:
    assert parse_level(text) == (LEVEL_TAGS.index(text) if text in LEVEL_TAGS else None)


def test_prompts_name_what_is_left() -> None:
    assert decision_prompt("1 + 1 =", 120, 3) == "1 + 1 =\nTokens left: 120. Tasks left: 3."
    assert exam_prompt(["a", "b"], 9) == "Tokens left: 9. Tasks left: 2.\nProblem 1: a\nProblem 2: b"
