"""The native vector environment: bit-identical to the single one, in every mode."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.vector import AutoresetMode

import roi_env
from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.envs.vector_kernels import reset_all, step_all
from roi_env.envs.wrappers import VectorActionMaskObservation
from roi_env.exams.exam import _draw_batch, _draw_outcomes
from roi_env.exams.observation import observe
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source
from roi_env.sources.source import Source

CASES = [
    {},
    {"family": "heavy", "preview": False, "beliefs": "none"},
    {"family": "latent", "feedback": "cost+correct", "order": "hard_first"},
    {"family": "paper", "num_tasks": 3, "budget": 1024, "order": "random", "reward": "rational"},
    {"family": "cap", "reward": "refusal_bonus(0.3)", "decision_cost": 2, "order": "easy_first"},
    {"family": "signal", "num_tasks": 1, "budget": 20, "reward": "cost_shaped(0.1)"},
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
                assert infos["_score"][i]
                assert infos["_spent"][i]
                totals = envs.episodes
                assert totals["r"][i] == pytest.approx(sum(row[2] for row in episodes[i][1:]))
                episodes[i].append((infos["score"][i], infos["spent"][i], totals["l"][i]))
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
            if "score" in infos:
                others = ~infos["_score"]
                partly += others.any()
                totals = [infos["score"], infos["spent"], *envs.episodes.values()]
                assert all((values[others] == 0).all() for values in totals)
                assert (envs.episodes["l"][infos["_score"]] > 0).all()
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


@pytest.mark.parametrize("name", [name for name in roi_env.IDS if "Recorded" not in name])
def test_make_vec_and_statistics_of_gymnasium(name: str) -> None:
    """Totals of the kernel equal those of Gymnasium's wrapper around single environments."""
    native = gym.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(native, ROIReasoningVectorEnv)
    assert native.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    reference = [gym.wrappers.RecordEpisodeStatistics(gym.make(name)) for _ in range(3)]
    native.reset(seed=6)
    for i, env in enumerate(reference):
        env.reset(seed=6, options={"exam_ids": i})
    alive = [True] * 3
    rng = np.random.default_rng(1)
    while any(alive):
        actions = rng.integers(0, native.single_action_space.n, 3)
        native.step(actions)
        for i, env in enumerate(reference):
            if alive[i]:
                _, _, terminated, _, info = env.step(int(actions[i]))
                if terminated:
                    alive[i] = False
                    assert native.episodes["r"][i] == pytest.approx(info["episode"]["r"])
                    assert native.episodes["l"][i] == info["episode"]["l"]
                    assert native.episodes["t"][i] >= 0


class Strided(gym.Wrapper):
    """Takes the exams of one sub-environment of the native vector environment."""

    def __init__(self, env: gym.Env, seed: int, first: int, step: int) -> None:
        super().__init__(env)
        env.reset(seed=seed)
        self.following, self.stride = first, step

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        del seed, options
        self.following += self.stride
        return self.env.reset(options={"exam_ids": self.following - self.stride})


def told(infos: dict) -> dict:
    """What infos say of every sub-environment: (path of keys, i) -> value."""
    found: dict = {}
    everywhere = np.ones(3, bool)
    for key, value in infos.items():
        if not key.startswith("_"):
            inner = told(value) if isinstance(value, dict) else dict(enumerate(value))
            for place, one in inner.items():
                path, i = place if isinstance(place, tuple) else ((), place)
                if infos.get(f"_{key}", everywhere)[i] and path != ("t",):
                    found[(key, *path), i] = np.asarray(one).tolist()
    return found


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2], ids=str)
def test_infos_and_statistics_are_those_of_gymnasiums_own_vector_environment(mode: AutoresetMode) -> None:
    assert mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    case = {"budget": 150, "num_tasks": 4, "reward": "cost_shaped(0.5)"}
    wrapper = gym.wrappers.vector.RecordEpisodeStatistics
    native = wrapper(gym.make_vec("ROIReasoning-v0", num_envs=3, autoreset_mode=mode, **case))
    makers = [lambda i=i: Strided(ROIReasoningEnv(**case), 5, i, 3) for i in range(3)]
    stock = wrapper(gym.vector.SyncVectorEnv(makers, autoreset_mode=mode))
    rng = np.random.default_rng(0)
    seen, _ = native.reset(seed=5)
    expected, expected_infos = stock.reset(seed=5)
    finals = 0
    for step in range(60):
        assert seen.tobytes() == expected.tobytes()
        actions = rng.integers(0, 4, 3)
        seen, *results, infos = native.step(actions)
        expected, *expected_results, expected_infos = stock.step(actions)
        assert [array.tolist() for array in results] == [array.tolist() for array in expected_results], step
        ours, theirs = told(infos), told(expected_infos)
        assert theirs.items() <= ours.items()
        finals += sum(path[-1] == "score" for path, _ in theirs)
        done = np.flatnonzero(results[1]).tolist()
        if mode == AutoresetMode.NEXT_STEP:
            assert ours == theirs
        else:  # The native one also leaves what the last action did, and the totals, in their usual places.
            extra = {"tokens", "correct", "overspent", "score", "spent"}
            assert {(path[0], i) for path, i in ours.keys() - theirs.keys()} == {
                (key, i) for key in extra for i in done
            }
    assert finals >= 9
    kept = native.unwrapped.episodes
    before = {name: values.tolist() for name, values in kept.items()}
    native.reset()
    assert all((values == 0).all() for values in native.unwrapped.episodes.values())
    assert {name: values.tolist() for name, values in kept.items()} == before


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_wrappers_of_gymnasium_for_vector_environments(mode: str) -> None:
    """All that apply; those of observations refuse SAME_STEP themselves."""
    wrappers = gym.wrappers.vector
    stack = gym.make_vec("ROIReasoning-v0", num_envs=3, autoreset_mode=mode, budget=60)
    stack = wrappers.NormalizeReward(wrappers.ClipReward(wrappers.RecordEpisodeStatistics(stack), 0, 1))
    if mode == "NEXT_STEP":
        stack = wrappers.NormalizeObservation(wrappers.FlattenObservation(stack))
    stack = wrappers.DictInfoToList(stack)
    _, rows = stack.reset(seed=0)
    assert [set(row) for row in rows] == [{"action_mask"}] * 3
    over = [False] * 3
    ended = 0
    for _ in range(20):
        _, _, terminated, _, rows = stack.step(np.array([0, 1, 3]))
        for i, row in enumerate(rows):
            acted = {"action_mask", "tokens", "correct", "overspent"} if not over[i] else {"action_mask"}
            final = {"score", "spent", "episode"} if terminated[i] else set()
            if mode == "SAME_STEP" and terminated[i]:
                assert set(row["final_info"]) == {"action_mask", "tokens", "correct", "overspent", "score", "spent"}
                final |= {"final_obs", "final_info"}
            assert set(row) == acted | final
            over[i] = mode == "NEXT_STEP" and bool(terminated[i])
            ended += bool(terminated[i])
    assert ended >= 6


def test_kernels_are_compiled_once_for_all_kinds_of_exams() -> None:
    """Sizes, beliefs, preview and feedback are numbers for them: nothing is compiled after the first step."""
    kinds: list[dict] = [
        {"num_tasks": n, "family": s} for n in (1, 5, 33) for s in ("signal", "heavy", "latent", "cap")
    ]
    kinds += [
        {"num_tasks": 7, "preview": False},
        {"beliefs": "none"},
        {"feedback": "cost+correct"},
        {"family": "heavy", "num_tasks": 20, "feedback": "cost+correct"},
    ]
    kinds += [{"family": "tinylm", "num_tasks": 9, "group_by": "kind"}, {"family": "paper"}, {"reward": "rational"}]
    kinds += [{"family": wide_source(tiers), "num_tasks": 3, "budget": 50} for tiers in (2, 9, 20)]
    signal = ROIReasoningEnv().exam_spec.source
    arrays = {
        name: frozen(value)
        for name in signal.__dataclass_fields__
        if isinstance(value := getattr(signal, name), np.ndarray)
    }
    kinds += [{"family": dataclasses.replace(signal, **arrays)}]  # as Ray hands it to a worker
    kernels = (step_all, reset_all, observe, _draw_batch, _draw_outcomes)
    before = {kernel: list(kernel.signatures) for kernel in kernels}
    for kind in kinds:
        for mode, actions in (("NEXT_STEP", frozen(np.zeros(2, np.int64))), ("SAME_STEP", [0, 1])):
            envs = ROIReasoningVectorEnv(num_envs=2, autoreset_mode=mode, **kind)
            envs.reset(seed=0)
            envs.step(actions)
        ROIReasoningEnv(**kind).reset(seed=0)
    for kernel in kernels:
        assert len(kernel.signatures) == 1, kernel
        assert set(before[kernel]) <= set(kernel.signatures)


def frozen(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.setflags(write=False)
    return array


def wide_source(tiers: int) -> Source:
    """Questions with any number of tiers: right or wrong, two costs each."""
    rng = np.random.default_rng(tiers)
    rows = [
        {
            "menu": "model",
            "dataset": "sums",
            "question_id": f"q{q}",
            "question": f"question {q}",
            "answer": "1",
            "tier": f"t{k:02}",
            "sample": s,
            "tokens": int(rng.integers(1, 9)) + 2 * k,
            "correct": bool(rng.random() < 0.5),
            "tier_order": k + 1,
        }
        for q in range(60)
        for k in range(tiers)
        for s in range(2)
    ]
    return recorded_source(OutcomeTable.from_arrow(pa.Table.from_pylist(rows)))


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


@pytest.mark.parametrize(
    "actions",
    [
        np.array([0, 4]),
        np.array([-1, 0]),
        np.array([0]),
        np.array([]),
        np.array([[0, 1]]),
        np.array([0.5, 1.0]),
        np.array([1.0, 2.0]),
        np.array([True, False]),
        np.array(["1", "2"]),
        np.array([1, 2], object),
        np.array([2**64 - 1, 0], np.uint64),
        np.array(1),
        [0, 4],
        [[0], [1, 2]],
        [True, 1],
        ["1", "2"],
        [1.0, 2.0],
        [float("nan"), 1],
        [None, 1],
        [2**70, 0],
        [2**63, 0],
        [],
        None,
        1,
        "11",
    ],
    ids=repr,
)
def test_bad_actions_change_nothing(actions: Any) -> None:
    envs = ROIReasoningVectorEnv(num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must .*0\.\.3, got"):
        envs.step(actions)
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


def test_the_mask_of_all_environments_cannot_be_changed() -> None:
    envs = ROIReasoningVectorEnv(num_envs=3)
    for infos in (envs.reset(seed=0)[1], envs.step([1, 1, 1])[4]):
        assert infos["_action_mask"].all()
        with pytest.raises(ValueError, match="read-only"):
            infos["_action_mask"][0] = False
