"""The native vector environment: bit-identical to the single one, in every mode."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import roi_env
from roi_env.env import ROIReasoningEnv
from roi_env.vector_env import ROIReasoningVectorEnv
from roi_env.wrappers import VectorActionMaskObservation

CASES = [
    {},
    {"source": "heavy", "preview": False, "beliefs": "none"},
    {"source": "latent", "feedback": "cost+correct", "order": "hard_first"},
    {"source": "paper", "num_tasks": 3, "budget": 1024, "order": "random", "reward": "rational"},
    {"source": "cap", "reward": "refusal_bonus(0.3)", "decision_cost": 2, "order": "easy_first"},
    {"source": "signal", "num_tasks": 1, "budget": 20, "reward": "cost_shaped(0.1)"},
]


def single_episode(env: ROIReasoningEnv, exam_id: int, actions: list[int]) -> list:
    observation, info = env.reset(options={"exam_ids": exam_id})
    rows = [(observation.tobytes(), info["action_mask"].tobytes())]
    for action in actions:
        observation, reward, terminated, _, info = env.step(action)
        rows.append(
            (
                observation.tobytes(),
                info["action_mask"].tobytes(),
                reward,
                info["tokens"],
                info["correct"],
                info["overspent"],
            )
        )
        if terminated:
            rows.append((info["score"], info["spent"], len(rows) - 1))
            break
    return rows


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("copy", [True, False])
def test_episodes_are_those_of_the_single_environment(case: dict, mode: str, width: int, copy: bool) -> None:
    seed, steps = 123, 60
    envs = ROIReasoningVectorEnv(num_envs=width, autoreset_mode=mode, copy=copy, **case)
    single = ROIReasoningEnv(**case)
    single.reset(seed=seed)
    rng = np.random.default_rng(0)
    observations, infos = envs.reset(seed=seed)
    episodes: list[list] = [[(observations[i].tobytes(), infos["action_mask"][i].tobytes())] for i in range(width)]
    played: list[list[int]] = [[] for _ in range(width)]
    exam = list(range(width))
    fresh = [False] * width
    finished = 0
    for _ in range(steps):
        actions = rng.integers(0, single.action_space.n, width)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert not truncated.any()
        assert envs.observation_space.contains(observations)
        for i in range(width):
            if fresh[i]:  # NEXT_STEP: this step only reset
                assert rewards[i] == 0
                assert not terminated[i]
                fresh[i] = False
                episodes[i] = [(observations[i].tobytes(), infos["action_mask"][i].tobytes())]
                continue
            played[i].append(int(actions[i]))
            ended = bool(terminated[i])
            same = mode == "SAME_STEP" and ended
            last = infos["final_obs"][i] if same else observations[i]
            mask = infos["final_info"]["action_mask"][i] if same else infos["action_mask"][i]
            episodes[i].append(
                (
                    last.tobytes(),
                    mask.tobytes(),
                    rewards[i],
                    infos["tokens"][i],
                    infos["correct"][i],
                    infos["overspent"][i],
                )
            )
            if ended:
                assert infos["_episode"][i]
                totals = infos["episode"]
                assert totals["r"][i] == pytest.approx(sum(row[2] for row in episodes[i][1:]))
                episodes[i].append((totals["score"][i], totals["tokens"][i], totals["l"][i]))
                assert single_episode(single, exam[i], played[i]) == episodes[i]
                finished += 1
                exam[i] += width
                played[i] = []
                fresh[i] = mode == "NEXT_STEP"
                if same:
                    episodes[i] = [(observations[i].tobytes(), infos["action_mask"][i].tobytes())]
        assert (envs.action_masks() == infos["action_mask"].astype(bool)).all()
    assert finished >= width


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_wide_environments_cross_blocks(mode: str) -> None:
    """The kernel works block by block and looks one block ahead; the last one is not full."""
    envs = ROIReasoningVectorEnv(num_envs=1100, autoreset_mode=mode, budget=150)
    single = ROIReasoningEnv(budget=150)
    single.reset(seed=3)
    plan = np.random.default_rng(2).integers(0, 4, (10, 1100))
    observations, _ = envs.reset(seed=3)
    seen = [(observations, None, None)]
    for actions in plan:
        observations, rewards, terminated, _, infos = envs.step(actions)
        if mode == "SAME_STEP":
            observations = np.where(terminated[:, None], infos["final_obs"], observations)
        seen.append((observations, rewards, terminated))
    for i in (0, 255, 256, 511, 512, 513, 1023, 1024, 1099):
        observation, _ = single.reset(options={"exam_ids": i})
        assert observation.tobytes() == seen[0][0][i].tobytes()
        for step, action in enumerate(plan[:, i]):
            observation, reward, terminated, _, _ = single.step(action)
            observations, rewards, ends = seen[step + 1]
            assert observation.tobytes() == observations[i].tobytes()
            assert (reward, terminated) == (rewards[i], ends[i])
            if terminated:
                break


def test_exam_ids_are_those_under_way_until_the_next_exam_is_seen() -> None:
    for mode, after_end in (("NEXT_STEP", 0), ("SAME_STEP", 1)):
        envs = ROIReasoningVectorEnv(num_envs=1, autoreset_mode=mode, num_tasks=2)
        envs.reset(seed=0)
        seen = []
        for _ in range(4):
            envs.step(np.zeros(1, np.int64))
            seen.append(int(envs.exam_ids[0]))
        assert seen[1] == after_end
        assert seen == ([0, 0, 1, 1] if mode == "NEXT_STEP" else [0, 1, 1, 2])
    ended = ROIReasoningVectorEnv(num_envs=1, num_tasks=1)
    ended.reset(seed=0)
    ended.step(np.zeros(1, np.int64))
    ended.reset()  # after an end that NEXT_STEP has not reset yet: the next exam, none is left out
    assert ended.exam_ids[0] == 1


def test_totals_are_zero_where_no_exam_ended() -> None:
    for kept in (True, False):
        envs = ROIReasoningVectorEnv(num_envs=64, budget=40, copy=kept)
        envs.reset(seed=0)
        partly = 0
        for step in range(12):
            *_, infos = envs.step(np.random.default_rng(step).integers(0, 4, 64))
            if "episode" in infos:
                others = ~infos["_episode"]
                partly += others.any()
                assert all((values[others] == 0).all() for values in infos["episode"].values())
                assert (infos["episode"]["l"][infos["_episode"]] > 0).all()
        assert partly


def test_any_integer_array_is_an_action() -> None:
    base = np.random.default_rng(0).integers(0, 4, (6, 8, 2))
    frozen = base[:, :, 0].copy()
    frozen.setflags(write=False)
    runs = []
    for actions in (frozen, base[:, :, 0], frozen.astype(np.uint8)):
        envs = ROIReasoningVectorEnv(num_envs=8)
        envs.reset(seed=1)
        runs.append(b"".join(envs.step(row)[0].tobytes() for row in actions))
    assert len(set(runs)) == 1


def test_environments_pickle_and_copy_mid_exam() -> None:
    envs = ROIReasoningVectorEnv(num_envs=3)
    envs.reset(seed=2)
    for _ in range(11):
        envs.step(np.array([1, 2, 3]))
    twins = [pickle.loads(pickle.dumps(envs)), copy.deepcopy(envs)]
    for _ in range(5):
        expected = envs.step(np.array([3, 1, 2]))[0].tobytes()
        assert [twin.step(np.array([3, 1, 2]))[0].tobytes() for twin in twins] == [expected] * 2


@pytest.mark.parametrize("name", [name for name in roi_env.VARIANTS if "Recorded" not in name])
def test_make_vec_and_statistics_of_gymnasium(name: str) -> None:
    """Totals of the kernel equal those of Gymnasium's wrapper around single environments."""
    native = gym.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point")
    assert native.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    reference = [gym.wrappers.RecordEpisodeStatistics(gym.make(name)) for _ in range(3)]
    native.reset(seed=6)
    for i, env in enumerate(reference):
        env.reset(seed=6, options={"exam_ids": i})
    alive = [True] * 3
    rng = np.random.default_rng(1)
    while any(alive):
        actions = rng.integers(0, native.single_action_space.n, 3)
        infos = native.step(actions)[-1]
        for i, env in enumerate(reference):
            if alive[i]:
                _, _, terminated, _, info = env.step(int(actions[i]))
                if terminated:
                    alive[i] = False
                    assert infos["episode"]["r"][i] == pytest.approx(info["episode"]["r"])
                    assert infos["episode"]["l"][i] == info["episode"]["l"]
                    assert infos["episode"]["t"][i] >= 0


def test_chosen_exams_and_replicates() -> None:
    envs = ROIReasoningVectorEnv(num_envs=4, budget=2000)
    observations, _ = envs.reset(seed=1, options={"exam_ids": 7, "replicates": np.arange(4)})
    assert (observations == observations[0]).all()  # one exam, four replicates
    tokens = np.array([envs.step(np.full(4, 3))[-1]["tokens"] for _ in range(5)])
    assert len({tuple(column) for column in tokens.T}) == 4
    single = ROIReasoningEnv(budget=2000)
    single.reset(seed=1, options={"exam_ids": 7, "replicates": 2})
    assert [single.step(3)[-1]["tokens"] for _ in range(5)] == tokens[:, 2].tolist()


def test_copies_are_kept_and_buffers_are_reused_only_on_request() -> None:
    def collect(copy: bool) -> list[np.ndarray]:
        envs = ROIReasoningVectorEnv(num_envs=2, copy=copy)
        envs.reset(seed=0)
        return [envs.step(np.array([1, 2]))[0] for _ in range(4)]

    kept = collect(True)
    assert len({array.tobytes() for array in kept}) == 4
    assert not any(np.shares_memory(a, b) for i, a in enumerate(kept) for b in kept[:i])
    views = collect(False)
    assert np.shares_memory(views[0], views[2])
    assert not np.shares_memory(views[0], views[1])


def test_reset_without_a_seed_continues_and_entropy_differs() -> None:
    envs = ROIReasoningVectorEnv(num_envs=2)
    envs.reset(seed=3)
    following, _ = envs.reset()
    named, _ = envs.reset(options={"exam_ids": np.array([2, 3])})
    assert following.tobytes() == named.tobytes()
    a, b = ROIReasoningVectorEnv(num_envs=8), ROIReasoningVectorEnv(num_envs=8)
    assert a.reset()[0].tobytes() != b.reset()[0].tobytes()


def test_sampled_actions_are_legal_and_repeatable() -> None:
    envs = ROIReasoningVectorEnv(num_envs=512, budget=60)
    envs.reset(seed=0)
    for step in range(8):
        mask = envs.action_masks()
        actions = envs.sample_actions(np.random.default_rng(step))
        assert (actions == envs.sample_actions(np.random.default_rng(step))).all()
        assert mask[np.arange(512), actions].all()
        envs.step(actions)


def test_dictionary_observations_in_both_modes() -> None:
    for mode in ("NEXT_STEP", "SAME_STEP"):
        envs = VectorActionMaskObservation(
            gym.make_vec(
                "ROIReasoning-v0", num_envs=3, vectorization_mode="vector_entry_point", autoreset_mode=mode, budget=30
            )
        )
        observations, _ = envs.reset(seed=0)
        for _ in range(12):
            assert envs.observation_space.contains(observations)
            observations, *_, infos = envs.step(np.full(3, 3))
            if "final_obs" in infos:
                assert set(infos["final_obs"]) == {"observations", "action_mask"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"autoreset_mode": "DISABLED"}, "NEXT_STEP or SAME_STEP"),
        ({"autoreset_mode": "never"}, "autoreset_mode"),
        ({"render_mode": "human"}, "render_mode"),
        ({"budget": 0}, "budget"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROIReasoningVectorEnv(**arguments)


@pytest.mark.parametrize("actions", [[0, 4], [-1, 0], [0], [0.5, 1.0], [[0, 1]]])
def test_bad_actions_change_nothing(actions: list) -> None:
    envs = ROIReasoningVectorEnv(num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions must"):
        envs.step(np.array(actions))
    twin = ROIReasoningVectorEnv(num_envs=2)
    twin.reset(seed=0)
    assert envs.step(np.array([1, 2]))[0].tobytes() == twin.step(np.array([1, 2]))[0].tobytes()
    with pytest.raises(gym.error.ResetNeeded):
        ROIReasoningVectorEnv(num_envs=2).step(np.array([0, 0]))
    with pytest.raises(ValueError, match="exam_ids"):
        envs.reset(options={"exam_ids": np.arange(3)})


def test_rendering_shows_every_environment() -> None:
    for mode in ("ansi", "rgb_array"):
        envs = gym.make_vec(
            "ROIReasoning-v0", num_envs=2, vectorization_mode="vector_entry_point", render_mode=mode, budget=60
        )
        envs.reset(seed=0)
        frames = set()
        for _ in range(5):
            envs.step(np.array([2, 3]))
            pictures = envs.render()
            assert len(pictures) == 2
            frames.add(pictures[0] if mode == "ansi" else pictures[0].tobytes())
        assert len(frames) > 1
