"""The live environment: the rules of the recorded one, with a solver that answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import roi_env  # noqa: F401 - registers the ids
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.envs.live import default_laws, length_groups, live_source
from roi_env.envs.single import ROIReasoningEnv

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]
QUESTIONS = [Question("sums", f"q{n}", f"{n} + {n} =" + " please" * (n % 3), str(2 * n)) for n in range(8)]


class Adder:
    """A real solver of these sums: 3 tokens at once, right below 8; 20 + n tokens of thought, always right."""

    name = "adder"

    def __init__(self, overshoot: int = 0) -> None:
        self.asked: list[Ask] = []
        self.overshoot = overshoot

    async def answer(self, ask: Ask) -> Reply:
        self.asked.append(ask)
        number = int(ask.question.text.split()[0])
        need = 3 if ask.tier.thinking == 0 else 20 + number
        right = ask.tier.thinking > 0 or number < 4
        if need > ask.cap:
            return Reply("", "hm", ask.cap + self.overshoot, None, "length", "server")
        return Reply(str(2 * number if right else -1), None, need, None, "stop", "server")

    async def close(self) -> None:
        return None


def grade(question: Question, text: str) -> bool:
    return text == question.answer


def make(solver: Any = None, **options: Any) -> Any:
    given: dict[str, Any] = {"num_tasks": 8, "budget": 100, "order": "given", **options}
    return gym.make(
        "ROIReasoning-Live-v0", questions=QUESTIONS, tiers=TIERS, solver=solver or Adder(), grader=grade, **given
    )


def play(env: Any, actions: list[int]) -> list[dict[str, Any]]:
    env.reset(seed=0)
    infos = []
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
        infos.append({**info, "reward": reward})
        if terminated:
            break
    env.close()
    return infos


def test_the_rules_hold() -> None:
    solver = Adder()
    infos = play(make(solver), [1, 2, 0, 2, 1, 2, 2, 2])
    assert [info["tokens"] for info in infos] == [3, 21, 0, 23, 3, 25, 25]
    assert [info["correct"] for info in infos] == [True, True, False, True, False, True, False]
    last = infos[-1]
    assert last["overspent"], "26 tokens do not fit into 25"
    assert (last["score"], last["spent"]) == (4.0, 100)
    assert [ask.cap for ask in solver.asked] == [10, 51, 51, 10, 50, 25], "the total is clamped to what is left"
    assert all(ask.tier.thinking in (0, 40) for ask in solver.asked), "the thought is not"


def test_cost_equal_to_the_rest_is_allowed() -> None:
    infos = play(make(budget=41), [2, 2])
    assert [info["tokens"] for info in infos] == [20, 21]
    assert infos[-1]["correct"]
    assert not infos[-1]["overspent"]


def test_an_overshoot_is_shown() -> None:
    infos = play(make(Adder(overshoot=5), budget=30), [2, 2])
    assert infos[-1]["overshoot"] == 5
    assert infos[-1]["spent"] == 30


def test_decision_cost_and_feedback() -> None:
    env = make(decision_cost=2, feedback="cost+correct")
    env.reset(seed=0)
    _, _, _, _, info = env.step(0)
    assert info["tokens"] == 2
    observation, _, _, _, info = env.step(1)
    layout = env.unwrapped.observation_layout
    assert info["tokens"] == 5
    assert observation[layout["last_tokens"]] == pytest.approx(0.05)
    assert observation[layout["last_correct"]] == 1
    assert observation[layout["remaining"]] == pytest.approx(0.93)
    env.close()


def test_it_passes_gymnasiums_check_and_renders() -> None:
    env = make(order="random", render_mode="ansi")
    check_env(env.unwrapped, skip_render_check=True)
    first, _ = env.reset(seed=3)
    assert "remaining" in str(env.unwrapped.observation_layout.parts[0].name)
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    env.step(1)
    assert isinstance(env.render(), str)
    env.close()


def test_wrong_arguments_are_named() -> None:
    for options, message in (({"reward": "refusal_bonus(1)"}, "not in live"), ({"num_tasks": 9}, "num_tasks")):
        with pytest.raises(ValueError, match=message):
            make(**options)
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must lie"):
        env.step(3)
    for options in ({"replicates": 1}, {"exam": 1}, 5):
        with pytest.raises(ValueError, match="exam_ids"):
            env.reset(options=options)


def test_default_beliefs_are_laws() -> None:
    laws = default_laws(TIERS, [0.0, 1.0])
    assert laws.offered.all()
    assert (laws.min_cost == 1).all()
    assert (np.diff(laws.success_probability, axis=1) > 0).all()
    assert (laws.success_probability[0] > laws.success_probability[1]).all()
    assert (laws.expected_cost[0] < laws.expected_cost[1]).all()
    for law in range(2):
        for k, tier in enumerate(TIERS):
            cost, prob, success = laws.cell(law, k)
            assert prob.sum() == pytest.approx(1)
            assert (success <= prob).all()
            assert cost.max() == tier.most_tokens
            assert (np.diff(cost) > 0).all()
    assert set(length_groups(QUESTIONS)) <= {0, 1, 2}


def test_beliefs_of_a_table() -> None:
    from roi_env.sources.packaged import tinylm_table

    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
    asked = [Question("prod", f"p{n}", "?", "1", {"kind": "prod 2"}) for n in range(3)]
    source = live_source(asked, tiers, table=tinylm_table(), group_by="kind")
    assert {source.group_names[g] for g in source.row_group} == {"prod 2"}
    assert 0 < source.beliefs.success_probability[source.row_group[0], 2] < 1
    with pytest.raises(ValueError, match="name them alike"):
        live_source(asked, TIERS, table=tinylm_table(), group_by="kind")
    with pytest.raises(ValueError, match="no group"):
        live_source([Question("x", "1", "?", "1", {"kind": "chess"})], tiers, table=tinylm_table(), group_by="kind")


def test_after_the_last_task_skip_alone_is_legal_and_nothing_can_be_taken() -> None:
    env = make()
    env.reset(seed=0)
    for _ in QUESTIONS:
        _, _, terminated, _, info = env.step(0)
    assert terminated
    assert env.unwrapped.action_masks().tolist() == [True, False, False] == info["action_mask"].astype(bool).tolist()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        _ = env.unwrapped.question
    env.close()


def test_what_is_seen_is_what_the_recorded_environment_shows() -> None:
    """The same groups, costs and answers through both environments: the same bytes."""
    tokens, right = np.array([[3, 20 + n] for n in range(8)]), np.array([[n < 4, True] for n in range(8)])
    options: dict[str, Any] = {"budget": 100, "order": "given", "feedback": "cost+correct", "decision_cost": 1}
    for reward in ("score", "rational", "overspend_penalty(1)", "cost_shaped(0.5)"):
        live = make(reward=reward, **options).unwrapped
        source = dataclasses.replace(
            live.exam_spec.source,
            outcomes=(tokens << 1 | right).ravel().astype(np.uint32),
            outcome_start=np.arange(16, dtype=np.int32),
            outcome_count=np.ones(16, np.int32),
        )
        recorded = ROIReasoningEnv(source, num_tasks=8, reward=reward, **options)
        for actions in ([1, 2, 0, 2, 1, 2, 2, 2], [0] * 8, [1] * 8):
            (first, info), (same, also) = live.reset(seed=0), recorded.reset(seed=0)
            assert first.tobytes() == same.tobytes()
            for action in actions:
                *seen, info = live.step(action)
                *replayed, also = recorded.step(action)
                assert seen[0].tobytes() == replayed[0].tobytes()
                assert seen[1:] == replayed[1:]
                for name, value in also.items():
                    np.testing.assert_array_equal(info[name], value)
                if seen[2]:
                    break
        live.close()
