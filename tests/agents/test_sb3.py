"""SB3's VecEnv contract against DummyVecEnv of single environments; SB3's algorithms behind the agents' interface."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv, VecMonitor, VecNormalize

import roi_env  # noqa: F401 - registers
from agents.base import Agent, DecisionView, ExamsView, exams_view, load_agent, make_agent, public_problem, save_agent
from agents.neural import Progress
from agents.playing import TrainingExams, evaluate_exact
from agents.sb3.algorithms import SB3Agent, reward_scale
from agents.sb3.vec_env import NativeVecEnv
from roi_env.envs.single import ROIReasoningEnv
from roi_env.envs.vector import ROIReasoningVectorEnv
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import draw_exams

NAMES = ("sb3-ppo", "sb3-maskable-ppo", "sb3-a2c", "sb3-dqn")
SMALL: dict[str, dict[str, Any]] = {
    "sb3-ppo": {"steps": 640, "num_envs": 8, "n_steps": 20, "batch_size": 80, "epochs": 2, "width": 8},
    "sb3-maskable-ppo": {"steps": 640, "num_envs": 8, "n_steps": 20, "batch_size": 80, "epochs": 2, "width": 8},
    "sb3-a2c": {"steps": 640, "num_envs": 8, "width": 8},
    "sb3-dqn": {
        "steps": 640,
        "num_envs": 8,
        "width": 8,
        "batch_size": 16,
        "buffer_size": 400,
        "learning_starts": 100,
        "target_update_interval": 80,
    },
}
"""Runs of a fraction of a second."""


def native(num_envs: int, reward_scale: float = 1.0, **arguments: Any) -> NativeVecEnv:
    return NativeVecEnv(ROIReasoningVectorEnv(num_envs, autoreset_mode="SAME_STEP", **arguments), reward_scale)


class OneOf(gym.Wrapper):
    """A single environment that takes exams i, i + n, i + 2n, ... of one seed, as sub-environment i of n does."""

    def __init__(self, i: int, n: int, seed: int, **arguments: Any) -> None:
        super().__init__(ROIReasoningEnv(**arguments))
        self.next, self.stride, self.exam_seed = i, n, seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = self.env.reset(seed=self.exam_seed, options={"exam_ids": self.next})
        self.next += self.stride
        return result


def dummy(num_envs: int, seed: int, **arguments: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda i=i: OneOf(i, num_envs, seed, **arguments) for i in range(num_envs)])


def policy_of(model: BaseAlgorithm) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.policy.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------------------
# The adapter


def test_refuses_next_step() -> None:
    with pytest.raises(ValueError, match="autoreset_mode='SAME_STEP'"):
        NativeVecEnv(ROIReasoningVectorEnv(2))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"family": "heavy", "budget": 0.15, "reward": "overspend_penalty(0.5)"},
        {"family": "latent", "feedback": "cost+correct", "preview": False},
        {"family": "paper", "num_tasks": 3, "order": "hard_first", "reward": "rational"},
    ],
)
def test_returns_what_dummy_vec_env_returns(arguments: dict[str, Any]) -> None:
    n, seed = 5, 11
    ours, theirs = native(n, **arguments), dummy(n, seed, **arguments)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    ours.seed(seed)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(80):
        for a, b in zip(ours.reset_infos, theirs.reset_infos, strict=True):
            assert a.keys() == b.keys() == {"action_mask"}
        masks = ours.env_method("action_masks")
        np.testing.assert_array_equal(masks, theirs.env_method("action_masks"))
        actions = rng.integers(0, ours.action_space.n, n)  # illegal ones too
        a, b = ours.step(actions), theirs.step(actions)
        for x, y in zip(a[:3], b[:3], strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            np.testing.assert_array_equal(x, y)
        for done, x, y in zip(a[2], a[3], b[3], strict=True):
            assert ("episode" in x) == done
            x.pop("episode", None)
            assert x.keys() == y.keys()
            ended += done
            for key in x:
                np.testing.assert_array_equal(x[key], y[key], err_msg=key)
                assert type(x[key]) is type(y[key])
    assert ended > 2 * n


def test_episode_infos_are_those_of_a_monitor_and_unscaled() -> None:
    n, seed = 3, 2
    ours = native(n, reward_scale=0.25, reward="cost_shaped(0.3)")
    theirs = DummyVecEnv([lambda i=i: Monitor(OneOf(i, n, seed, reward="cost_shaped(0.3)")) for i in range(n)])
    ours.seed(seed)
    ours.reset()
    theirs.reset()
    rng = np.random.default_rng(0)
    ended, last = 0, 0.0
    for _ in range(60):
        actions = rng.integers(0, 4, n)
        _, rewards, dones, infos = ours.step(actions)
        _, whole, _, monitored = theirs.step(actions)
        np.testing.assert_allclose(rewards, 0.25 * whole, rtol=1e-6)
        for i in np.flatnonzero(dones):
            episode, expected = infos[i]["episode"], monitored[i]["episode"]
            assert episode.keys() == expected.keys()
            assert episode["r"] == pytest.approx(expected["r"], abs=1e-6)
            assert episode["l"] == expected["l"]
            assert episode["t"] >= last
            last = episode["t"]
            ended += 1
    assert ended > n


def test_infos_and_arrays_belong_to_the_caller() -> None:
    env = native(4)
    env.seed(0)
    first = env.reset()
    copies = [first.copy()]
    kept = [first]
    seen: set[int] = set()
    held: list[Any] = []
    for _ in range(15):
        observations, _, _, infos = env.step(np.zeros(4, np.int64))
        held += infos
        seen |= {id(info) for info in infos}
        for info in infos:
            info.clear()
            info["mine"] = True
        kept.append(observations)
        copies.append(observations.copy())
    assert len(seen) == 60  # all alive, all distinct
    assert all(info == {"mine": True} for info in held)
    np.testing.assert_array_equal(kept, copies)


def test_seed_and_reset() -> None:
    env = native(3)
    assert env.seed(5) == [5, 5, 5]
    first = env.reset()
    second = env.reset()  # a seed counts once: the next exams follow
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.env.exam_ids, [3, 4, 5])
    env.seed(5)
    np.testing.assert_array_equal(env.reset(), first)
    env.set_options([{"exam_ids": 3 + i} for i in range(3)])
    np.testing.assert_array_equal(env.reset(), second)
    env.set_options({"exam_ids": 4})
    assert len(np.unique(env.reset(), axis=0)) == 1
    env.set_options([{"exam_ids": 1}, {}, {}])
    with pytest.raises(ValueError, match="same reset options"):
        env.reset()
    env.set_options()
    random_seed = env.seed()
    assert len(set(random_seed)) == 1
    env.reset()
    env.step_async(np.zeros(3, np.int64))
    env.reset()  # cancels what was under way
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()


def test_attributes_and_methods() -> None:
    env = native(3)
    env.seed(0)
    env.reset()
    assert env.get_attr("observation_space") == [env.observation_space] * 3
    assert env.get_attr("exam_spec", 1) == [env.env.exam_spec]
    assert not env.has_attr("no_such_thing")
    assert not env.has_attr("step")  # of the batch
    env.set_attr("note", "hello")
    assert env.get_attr("note", [0, 2]) == ["hello"] * 2
    with pytest.raises(ValueError, match="without indices"):
        env.set_attr("note", "bye", indices=[0])
    assert is_masking_supported(env)
    masks = get_action_masks(env)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, env.env.action_masks())
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    np.testing.assert_array_equal(env.get_attr("action_masks")[1](), masks[1])
    with pytest.raises(AttributeError, match="action_masks"):
        env.env_method("reset")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    env.close()


def test_render() -> None:
    env = native(4, render_mode="rgb_array")
    env.seed(0)
    env.reset()
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    height, width, _ = env.get_images()[0].shape
    assert frame.shape == (2 * height, 2 * width, 3)
    assert native(2).get_images() == [None, None]


def test_sb3_wrappers_and_evaluation() -> None:
    env = native(6)
    with pytest.warns(UserWarning, match="already wrapped"):
        monitored = VecMonitor(env)
    model = PPO("MlpPolicy", env, n_steps=10, batch_size=60, n_epochs=1, seed=0, device="cpu")
    env.seed(4)
    returns, lengths = evaluate_policy(
        model, VecCheckNan(monitored, raise_exception=True), 30, return_episode_rewards=True
    )
    assert len(returns) == 30
    # The same by hand: episodes of the single environment.
    single, expected = ROIReasoningEnv(), []
    for exam in range(30):
        observation, _ = single.reset(seed=4, options={"exam_ids": exam})
        total, length, over = 0.0, 0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, over, _, _ = single.step(action)
            total, length = total + reward, length + 1
        expected.append((total, length))
    assert sorted(zip(returns, lengths, strict=True)) == sorted(expected)
    normalised = VecNormalize(native(6), gamma=1.0)
    PPO("MlpPolicy", normalised, n_steps=10, batch_size=60, n_epochs=1, seed=0, device="cpu").learn(120)
    assert normalised.obs_rms.count > 100
    masked = MaskablePPO("MlpPolicy", env, n_steps=10, batch_size=60, n_epochs=1, seed=0, device="cpu").learn(120)
    mean, _ = evaluate_masked(masked, env, 12)
    assert 0 <= mean <= 10


MODELS: dict[str, Callable[[VecEnv, int], BaseAlgorithm]] = {
    "ppo": lambda env, seed: PPO("MlpPolicy", env, n_steps=20, batch_size=80, n_epochs=2, seed=seed, device="cpu"),
    "maskable": lambda env, seed: MaskablePPO(
        "MlpPolicy", env, n_steps=20, batch_size=80, n_epochs=2, seed=seed, device="cpu"
    ),
    "a2c": lambda env, seed: A2C("MlpPolicy", env, seed=seed, device="cpu"),
    "dqn": lambda env, seed: DQN(
        "MlpPolicy",
        env,
        learning_starts=80,
        buffer_size=400,
        batch_size=16,
        target_update_interval=80,
        seed=seed,
        device="cpu",
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_the_same_weights_as_through_dummy_vec_env(name: str, seed: int) -> None:
    weights = []
    for env in (native(8), dummy(8, 77)):
        model = MODELS[name](env, seed)
        model.set_logger(Logger(folder=None, output_formats=[]))
        env.seed(77)
        before = policy_of(model)
        model.learn(960)
        weights.append(policy_of(model))
        assert any(not np.array_equal(before[key], weights[-1][key]) for key in before)
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key], err_msg=key)


# ---------------------------------------------------------------------------------------------------------------------
# The agents


def spec_of(source: str = "signal", budget: float = 0.3, **arguments: Any) -> ExamSpec:
    return exam_spec(source, budget=budget, **arguments)


def trained(name: str, spec: ExamSpec, seed: int = 0, report: Any = None, **arguments: Any) -> SB3Agent:
    agent = make_agent(name, public_problem(spec), **SMALL[name] | arguments)
    assert isinstance(agent, SB3Agent)
    agent.train(TrainingExams(spec, 3), seed, report)
    return agent


def decisions(spec: ExamSpec, budget: int) -> tuple[ExamsView, DecisionView]:
    """All positions of 20 exams with ``budget`` tokens left."""
    problem, batch = public_problem(spec), draw_exams(spec, 9, np.arange(20))
    view = exams_view(batch, problem)
    exam, position = (axis.ravel() for axis in np.indices(batch.rows.shape))
    none = np.zeros(len(exam), np.int64)
    return view, DecisionView(problem, exam, position, none + budget, none, none, none.astype(bool), view.groups)


def probabilities(agent: Agent, spec: ExamSpec, budget: int) -> tuple[np.ndarray, np.ndarray]:
    exams, view = decisions(spec, budget)
    return agent.act(view, agent.start(exams))[0], view.mask


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_and_nobody_elses_random_numbers(name: str) -> None:
    spec = spec_of("heavy", 0.15)
    np.random.seed(1)  # noqa: NPY002 - the global generators are what is tested
    torch.manual_seed(1)
    random.seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
    first = trained(name, spec).learned()
    after = np.random.get_state()[1], torch.get_rng_state(), random.getstate(), torch.get_num_threads()  # noqa: NPY002
    assert np.array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2:] == after[2:]
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    second = trained(name, spec).learned()
    other = trained(name, spec, seed=1).learned()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_save_load_and_legal_actions(name: str, tmp_path: Path) -> None:
    spec = spec_of("heavy", 0.15)
    stochastic = {} if name == "sb3-dqn" else {"greedy": False}
    agent = trained(name, spec, **stochastic)
    save_agent(agent, tmp_path / "agent.npz")
    loaded = load_agent(tmp_path / "agent.npz", public_problem(spec))
    assert loaded.name == name
    assert loaded.params() == agent.params()
    lowest = int(spec.min_cost.min())
    partly = 0
    for budget in (1, lowest, lowest + 5, lowest + 20, spec.budget):
        probs, mask = probabilities(agent, spec, budget)
        np.testing.assert_array_equal(probs, probabilities(loaded, spec, budget)[0])
        assert (probs[~mask] == 0).all()
        np.testing.assert_allclose(probs.sum(1), 1)
        partly += int((~mask).any(1).sum())
        if stochastic:
            assert (probs[mask] > 0).all()
    assert partly
    with pytest.raises(ValueError, match="do not fit"):
        load_agent(tmp_path / "agent.npz", public_problem(spec_of(num_tasks=3)))


def test_probabilities_are_the_policys_given_that_the_action_is_legal() -> None:
    spec = spec_of("heavy", 0.15)
    agent = trained("sb3-ppo", spec, greedy=False)
    budget = int(np.median(spec.min_cost))
    probs, mask = probabilities(agent, spec, budget)
    assert not mask.all()
    seen = decisions(spec, budget)[1].observations
    with torch.no_grad():
        free = agent.policy.get_distribution(torch.from_numpy(seen)).distribution.probs.double().numpy()
    expected = np.where(mask, free, 0)
    np.testing.assert_allclose(probs, expected / expected.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_progress(name: str) -> None:
    reports: list[Progress] = []

    def report(progress: Progress) -> None:
        reports.append(progress)
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass

    begin = time.process_time()
    agent = trained(name, spec_of(), report=report)
    whole = time.process_time() - begin
    steps = [progress.steps for progress in reports]
    assert steps == sorted(set(steps))
    assert steps[-1] == agent.settings.steps == reports[-1].total_steps
    assert all(a.updates <= b.updates and a.cpu_seconds < b.cpu_seconds for a, b in zip(reports, reports[1:]))  # noqa: B905, RUF007
    assert reports[-1].cpu_seconds <= whole - 0.01 * len(reports)
    expected = {"sb3-ppo": 4 * 2 * 2, "sb3-maskable-ppo": 4 * 2 * 2, "sb3-a2c": 640 // 40}
    if name in expected:
        assert reports[-1].updates == expected[name]
    scores = [progress.score for progress in reports if not np.isnan(progress.score)]
    assert scores
    assert all(0 <= score <= 10 for score in scores)


@pytest.mark.parametrize("name", NAMES)
def test_continues_with_exams_not_taken_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[set[tuple[int, int]]] = []
    seen_seeds: set[int | None] = set()
    step_wait = NativeVecEnv.step_wait

    def spy(self: NativeVecEnv) -> Any:
        seen_seeds.add(self.env._seed)
        taken[-1].update((i, int(exam)) for i, exam in enumerate(self.env.exam_ids))
        return step_wait(self)

    monkeypatch.setattr(NativeVecEnv, "step_wait", spy)
    spec, path = spec_of(), tmp_path / "run.pt"
    problem, practice = public_problem(spec), TrainingExams(spec_of(), 3)
    reports: list[Progress] = []

    def go(steps: int, seed: int = 0) -> SB3Agent:
        taken.append(set())
        agent = make_agent(name, problem, **SMALL[name] | {"steps": steps})
        assert isinstance(agent, SB3Agent)
        agent.train(practice, seed, reports.append, checkpoint=path)
        return agent

    first = go(640)
    half = reports[-1]
    second = go(1280)
    assert not taken[0] & taken[1]
    for i in range(first.settings.num_envs):  # in order, none left out but the one that was under way
        mine = np.array(sorted(exam for sub, exam in taken[0] | taken[1] if sub == i))
        assert mine[0] == i
        assert set(np.diff(mine)) <= {first.settings.num_envs, 2 * first.settings.num_envs}
        assert (np.diff(mine) == 2 * first.settings.num_envs).sum() <= 1
    assert seen_seeds == {practice.seed}
    assert reports[-1].steps == 1280
    assert reports[-1].updates > half.updates
    assert reports[-1].cpu_seconds > half.cpu_seconds
    again = go(1280)  # nothing left to do: the saved weights
    assert not taken[-1]
    for key, value in second.learned().items():
        np.testing.assert_array_equal(value, again.learned()[key])
    with pytest.raises(ValueError, match=r"another run \(seed differ"):
        go(1280, seed=1)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a checkpoint"):
        go(1280)


def test_a_stopped_run_leaves_a_checkpoint(tmp_path: Path) -> None:
    spec, path = spec_of(), tmp_path / "run.pt"

    def stop(progress: Progress) -> None:
        if progress.steps > 300:
            raise KeyboardInterrupt

    agent = make_agent("sb3-ppo", public_problem(spec), **SMALL["sb3-ppo"])
    assert isinstance(agent, SB3Agent)
    with pytest.raises(KeyboardInterrupt):
        agent.train(TrainingExams(spec, 3), 0, stop, checkpoint=path)
    reports: list[Progress] = []
    agent.train(TrainingExams(spec, 3), 0, reports.append, checkpoint=path)
    assert reports[0].steps > 320
    assert reports[-1].steps == 640


@pytest.mark.parametrize(("source", "budget", "tasks"), [("signal", 0.3, 10), ("heavy", 0.15, 10), ("heavy", 0.6, 3)])
def test_reward_scale_is_of_the_order_of_an_exams_spread(source: str, budget: float, tasks: int) -> None:
    spec = spec_of(source, budget, num_tasks=tasks)
    weights = draw_exams(spec, 0, np.arange(20_000)).weights
    # Were every answer a fair coin, scaled scores would have standard deviation 1/2.
    coins = np.random.default_rng(0).integers(0, 2, weights.shape)
    centred = (weights * (coins - 0.5)).sum(1)
    assert reward_scale(public_problem(spec)) * centred.std() == pytest.approx(0.5, rel=0.03)


def test_errors_name_the_argument() -> None:
    problem = public_problem(spec_of())
    with pytest.raises(ValueError, match="batch_size must divide"):
        make_agent("sb3-ppo(batch_size=7)", problem)
    with pytest.raises(ValueError, match="width"):
        make_agent("sb3-dqn(width=0)", problem)
    with pytest.raises(ValueError, match="no parameter"):
        make_agent("sb3-dqn(greedy=False)", problem)


def test_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from agents.base import AGENTS\nimport agents\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)\n"
        "AGENTS['sb3-ppo'].load()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'roi-reasoning[sb3]'" in run.stderr


def test_ppo_learns_a_small_exam() -> None:
    spec = spec_of(num_tasks=3)
    batch = TrainingExams(spec, 50).batch(200)
    agent = make_agent("sb3-ppo", public_problem(spec), steps=40_000, num_envs=64, batch_size=320, width=32)
    assert isinstance(agent, SB3Agent)
    agent.train(TrainingExams(spec, 3), 0)

    def worth(name: str) -> float:
        return float(evaluate_exact(make_agent(name, agent.problem), batch).score.mean())

    best = worth("bellman")  # the optimum: beliefs are published
    assert max(map(worth, ("fixed-1", "fixed-2", "fixed-3", "resolve", "remaining-share"))) < 0.94 * best
    assert evaluate_exact(agent, batch).score.mean() > 0.95 * best
