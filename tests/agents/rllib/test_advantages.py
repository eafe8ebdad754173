"""Advantages against hand-computed cases and against sums written out one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.rllib.advantages import ADVANTAGES, EPSILON, advantages, returns_to_go

# Two groups of exams of up to three tasks; the second member of group 5 runs out of budget after its first task.
REWARDS = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 9.0, 9.0]])
REACHED = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)
GROUP = np.array([7, 7, 5, 5])


def test_returns_to_go_ignore_what_was_not_reached():
    assert returns_to_go(REWARDS, REACHED).tolist() == [[3, 2, 2], [0, 0, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dr", [[1.5, 1.5, 1.5], [-1.5, -1.5, -1.5], [0, 0, 0], [0, 0, 0]]),
        ("rloo", [[3, 3, 3], [-3, -3, -3], [0, 0, 0], [0, 0, 0]]),
        ("grpo", [[1.5 / (1.5 + EPSILON)] * 3, [-1.5 / (1.5 + EPSILON)] * 3, [0, 0, 0], [0, 0, 0]]),
        # Group 5: returns-to-go (1, 1, 0) and (1, 0, 0): the first decision is even, the second one apart.
        ("rtg", [[3, 2, 2], [-3, -2, -2], [0, 1, 0], [0, 0, 0]]),
    ],
)
def test_hand_computed(kind, expected):
    assert advantages(kind, REWARDS, REACHED, GROUP) == pytest.approx(np.array(expected, float))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dr", [[1, 1, 1], [-2, -2, -2], [0.5, 0.5, 0.5], [0.5, 0, 0]]),
        ("rloo", [[1, 1, 1], [-2, -2, -2], [0.5, 0.5, 0.5], [0.5, 0, 0]]),
        # Group 7 earned (0, .5, .5) on average before each task: 2, 1.5, 1.5 are expected to remain.
        ("rtg", [[1, 0.5, 0.5], [-2, -1.5, -1.5], [0.5, 1, 0.5], [0.5, 0, 0]]),
    ],
)
def test_exam_values_as_baseline(kind, expected):
    baseline = np.array([2.0, 2.0, 0.5, 0.5])
    assert advantages(kind, REWARDS, REACHED, GROUP, baseline) == pytest.approx(np.array(expected, float))


@st.composite
def batches(draw):
    groups, size, num_tasks = draw(st.integers(1, 4)), draw(st.integers(2, 5)), draw(st.integers(1, 6))
    exams = groups * size
    rewards = np.array(draw(st.lists(st.integers(0, 8), min_size=exams * num_tasks, max_size=exams * num_tasks)))
    lengths = np.array(draw(st.lists(st.integers(1, num_tasks), min_size=exams, max_size=exams)))
    reached = np.arange(num_tasks) < lengths[:, None]
    group = np.array(draw(st.permutations(list(np.repeat(np.arange(groups) * 3 + 1, size)))))
    return rewards.reshape(exams, num_tasks).astype(float), reached, group


@given(batches())
@settings(max_examples=100, deadline=None)
def test_against_sums_written_out(batch):
    rewards, reached, group = batch
    total = [
        sum(r for r, there in zip(row, ok, strict=True) if there) for row, ok in zip(rewards, reached, strict=True)
    ]
    rtg = advantages("rtg", rewards, reached, group)
    rloo = advantages("rloo", rewards, reached, group)
    for e in range(len(group)):
        others = [i for i in range(len(group)) if group[i] == group[e] and i != e]
        for n in range(rewards.shape[1]):
            if not reached[e, n]:
                assert rtg[e, n] == rloo[e, n] == 0
                continue
            assert rloo[e, n] == pytest.approx(total[e] - np.mean([total[i] for i in others]))
            later = [sum(rewards[i, m] for m in range(n, rewards.shape[1]) if reached[i, m]) for i in [e, *others]]
            assert rtg[e, n] == pytest.approx(later[0] - np.mean(later[1:]))


@given(batches(), st.sampled_from(ADVANTAGES), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_rows_and_constant_shifts_change_nothing(batch, kind, random):
    rewards, reached, group = batch
    value = advantages(kind, rewards, reached, group)
    order = list(range(len(group)))
    random.shuffle(order)
    assert advantages(kind, rewards[order], reached[order], group[order]) == pytest.approx(value[order])
    # The first task is reached by all: a bonus on it changes no comparison.
    shifted = rewards.copy()
    shifted[:, 0] += 2.0
    assert advantages(kind, shifted, reached, group) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gae"}, "must be one of"),
        ({"group": np.array([7, 7, 5, 6])}, "at least two members"),
        ({"group": np.array([7, 7])}, "group"),
        ({"rewards": np.full((4, 3), np.nan)}, "finite"),
        ({"baseline": np.zeros(3)}, "baseline"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"kind": "dr", "rewards": REWARDS, "reached": REACHED, "group": GROUP} | change
    with pytest.raises(ValueError, match=message):
        advantages(**arguments)
