"""Rewards: hand-computed cases of the five rewards, and their text form."""

from __future__ import annotations

import pytest

from roi_env.exams.rewards import parse_reward, reward_of

# A decision: action, right, overspent, level of the attempt, weight, tokens paid, some tier would have been right.
RIGHT = (2, True, False, 1, 4.0, 30, True)
RIGHT_AT_ANOTHER_LEVEL = (2, True, False, 0, 4.0, 12, True)
WRONG = (1, False, False, 0, 4.0, 20, False)
OVERSPENT = (3, False, True, 2, 4.0, 50, False)
WISE_SKIP = (0, False, False, 0, 4.0, 0, False)
COSTLY_SKIP = (0, False, False, 0, 4.0, 1, True)


@pytest.mark.parametrize(
    ("reward", "decision", "expected"),
    [
        ("score", RIGHT, 4.0),
        ("score", WRONG, 0.0),
        ("score", OVERSPENT, 0.0),
        ("score", WISE_SKIP, 0.0),
        ("rational", RIGHT, 4.0),
        ("rational", RIGHT_AT_ANOTHER_LEVEL, 0.0),
        ("rational", WRONG, 0.0),
        ("rational", WISE_SKIP, 0.0),
        ("refusal_bonus(0.25)", RIGHT, 4.0),
        ("refusal_bonus(0.25)", WISE_SKIP, 0.25),
        ("refusal_bonus(0.25)", COSTLY_SKIP, 0.0),
        ("refusal_bonus(0.25)", WRONG, 0.0),
        ("overspend_penalty(2)", RIGHT, 4.0),
        ("overspend_penalty(2)", OVERSPENT, -2.0),
        ("overspend_penalty(2)", WRONG, 0.0),
        ("cost_shaped(0.5)", RIGHT, 4.0 - 0.5 * 30 / 100),
        ("cost_shaped(0.5)", WRONG, -0.5 * 20 / 100),
        ("cost_shaped(0.5)", COSTLY_SKIP, -0.5 * 1 / 100),
    ],
)
def test_hand_computed(reward: str, decision: tuple[int, bool, bool, int, float, int, bool], expected: float) -> None:
    action, right, overspent, level, weight, paid, solvable = decision
    kind = parse_reward(reward)
    got = reward_of(kind.kind, kind.coefficient, action, right, overspent, level, weight, paid, 100, solvable)
    assert got == pytest.approx(expected, abs=0, rel=1e-15)


@pytest.mark.parametrize(
    "text", ["score", "rational", "refusal_bonus(0.1)", "overspend_penalty(1)", "cost_shaped(0.5)"]
)
def test_text_round_trip(text: str) -> None:
    assert str(parse_reward(text)) == text
    assert parse_reward(parse_reward(text)) == parse_reward(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores", "one of"),
        ("score(1)", "takes none"),
        ("cost_shaped", "needs a coefficient"),
        ("cost_shaped(x)", "cost_shaped"),
        ("cost_shaped(-1)", "finite and >= 0"),
        ("cost_shaped(nan)", "finite and >= 0"),
        ("refusal_bonus(inf)", "finite and >= 0"),
        ("", "must read like"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reward(text)
