"""Random numbers that are functions of their names: against SplitMix64 written with Python's own integers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from roi_env.exams import random

WORD = 2**64


def splitmix64(state: int, count: int) -> list[int]:
    """The first numbers of the published generator: the state moves by the golden ratio, then is mixed."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
        numbers.append(z ^ (z >> 31))
    return numbers


@given(st.integers(0, WORD - 1))
def test_numbers_are_splitmix64_read_at_any_place(key: int) -> None:
    expected = splitmix64(key, 5)
    assert [int(random.draw(np.uint64(key), np.uint64(i))) for i in (4, 0, 2)] == [expected[i] for i in (4, 0, 2)]


@given(st.integers(0, WORD - 1), st.integers(1, 2**31))
def test_below_stays_below(number: int, bound: int) -> None:
    value = int(random.below(np.uint64(number), np.uint64(bound)))
    assert value == (number >> 32) * bound >> 32
    assert 0 <= value < bound


def test_below_is_uniform() -> None:
    key = np.uint64(2026)
    values = [int(random.below(np.uint64(random.draw(key, np.uint64(i))), np.uint64(12))) for i in range(12_000)]
    assert stats.chisquare(np.bincount(values, minlength=12)).pvalue > 1e-3


def test_the_branches_of_the_key_tree_are_apart() -> None:
    exam = np.uint64(random.exam_key(np.uint64(7), np.int64(3)))
    keys = {int(random.draw(exam, branch)) for branch in (random.TASKS, random.ORDER, random.LATENT, random.OUTCOMES)}
    keys |= {int(random.outcome_key(np.uint64(7), np.int64(3), np.int64(r))) for r in range(50)}
    keys |= {int(random.exam_key(np.uint64(7), np.int64(e))) for e in range(50)}
    assert len(keys) == 4 + 50 + 50


def test_another_process_draws_the_same_exams() -> None:
    """The vector env in a fresh interpreter against the single env here: one exam, byte for byte."""
    import gymnasium as gym

    import roi_env  # noqa: F401

    code = """
import hashlib, gymnasium as gym, numpy as np, roi_env
env = gym.make_vec("ROIReasoning-Heavy-v0", num_envs=5, vectorization_mode="vector_entry_point", autoreset_mode="SAME_STEP")
seen, _ = env.reset(seed=11)
digest = hashlib.sha256(seen[3].tobytes())
while True:
    seen, reward, done, _, infos = env.step(np.full(5, 1))
    row = infos["final_obs"][3] if done[3] else seen[3]
    digest.update(row.tobytes() + reward[3].tobytes())
    if done[3]:
        break
print(digest.hexdigest())
"""
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    import hashlib

    env = gym.make("ROIReasoning-Heavy-v0")
    env.reset(seed=11)
    seen, _ = env.reset(options={"exam_ids": 3})
    digest = hashlib.sha256(seen.tobytes())
    done = False
    while not done:
        seen, reward, done, _, _ = env.step(1)
        digest.update(seen.tobytes() + np.float64(reward).tobytes())
    assert there == digest.hexdigest()
