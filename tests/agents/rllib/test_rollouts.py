"""Exams taken by a network: what the runner records against the environment itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import exams_view, public_problem
from agents.rllib.losses import masked_log_softmax
from agents.rllib.networks import PolicyNetwork, observation_statistics
from agents.rllib.rollouts import Job, Rollout, concatenate, generalised_advantages, take_exams, task_reward_scale
from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import draw_exams
from tests.agents.problems import random_spec


def network_for(spec: ExamSpec, *, critic: bool = True, memory: int = 0, seed: int = 0) -> PolicyNetwork:
    problem = public_problem(spec)
    network = PolicyNetwork(
        problem.observation_size, problem.num_tiers + 1, (8, 8), critic=critic, memory=memory, seed=seed
    )
    with torch.no_grad():  # far from uniform, so that actions differ between states
        network.actor[-1].weight.mul_(200)
    return network


def job_of(exam_ids: list[int], replicates: list[int], members: list[int] | None = None) -> Job:
    return Job(0, np.array(exam_ids), np.array(replicates), np.array(members or replicates))


def take(spec: ExamSpec, job: Job, network: PolicyNetwork, rows: int | None = None) -> Rollout:
    return take_exams(network, spec, job, exam_seed=5, action_seed=7, rows=rows or len(job))


def equal(a: Rollout, b: Rollout) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_a_rollout_is_what_the_environment_says(seed: int) -> None:
    spec = random_spec(np.random.default_rng(seed), feedback=("cost", "cost+correct")[seed % 2])
    rollout = take(spec, job_of([3, 4, 4, 9], [0, 0, 2, 1]), network_for(spec, seed=seed))
    env = ROIReasoningEnv(family=spec)
    start = 0
    for exam, replicate, length in zip(rollout.exam_ids, rollout.replicates, rollout.length, strict=True):
        observation, info = env.reset(seed=5, options={"exam_ids": int(exam), "replicates": int(replicate)})
        for t in range(start, start + length):
            assert np.array_equal(rollout.observations[t], observation)
            assert np.array_equal(rollout.mask[t], info["action_mask"].astype(bool))
            assert rollout.mask[t, rollout.actions[t]]
            observation, reward, terminated, _, info = env.step(rollout.actions[t])
            assert reward == rollout.rewards[t]
            assert terminated == (t == start + length - 1)
        start += length
    assert start == rollout.steps


@pytest.mark.parametrize("memory", [0, 4])
def test_an_exam_does_not_depend_on_the_exams_beside_it(memory: int) -> None:
    spec = exam_spec("heavy", num_tasks=5, budget=0.15)
    network = network_for(spec, memory=memory)
    ids = list(range(40))
    together = take(spec, job_of(ids, [0] * 40), network, rows=64)
    apart = concatenate(
        [take(spec, job_of(ids[i : i + 7], [0] * len(ids[i : i + 7])), network, rows=64) for i in range(0, 40, 7)]
    )
    assert len(set(together.length)) > 1, "exams of several lengths"
    for name in ("exam_ids", "length", "observations", "mask", "actions", "rewards", "tokens"):
        assert np.array_equal(getattr(together, name), getattr(apart, name))
    np.testing.assert_allclose(together.logp, apart.logp, atol=1e-6)
    assert equal(together, take(spec, job_of(ids, [0] * 40), network, rows=64))


def test_members_that_share_outcomes_differ_by_their_actions_alone() -> None:
    spec = exam_spec("signal", num_tasks=6)
    rollout = take(spec, job_of([1] * 64, [0] * 64, list(range(64))), network_for(spec))
    actions, tokens, scores = (rollout.by_exam(getattr(rollout, name), 6) for name in ("actions", "tokens", "scores"))
    first = {}
    for action, paid, score in zip(actions[:, 0], tokens[:, 0], scores[:, 0], strict=True):
        assert first.setdefault(action, (paid, score)) == (paid, score)
    assert len(first) > 1
    replicated = take(spec, job_of([1] * 64, list(range(64))), network_for(spec))
    drawn = {
        (a, t)
        for a, t in zip(
            replicated.by_exam(replicated.actions, 6)[:, 0], replicated.by_exam(replicated.tokens, 6)[:, 0], strict=True
        )
    }
    assert len(drawn) > len({a for a, _ in drawn}), "replicates redraw outcomes"


def test_actions_follow_the_recorded_distribution() -> None:
    spec = exam_spec("signal", num_tasks=2)
    rollout = take(spec, job_of([0] * 4000, list(range(4000))), network_for(spec, seed=3))
    first = np.concatenate([[0], np.cumsum(rollout.length)[:-1]])
    share = np.bincount(rollout.actions[first], minlength=4) / 4000
    expected = np.exp(rollout.logits[0])
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9).all()
    assert ((expected > 0.02) & (expected < 0.98)).sum() > 1
    np.testing.assert_array_equal(rollout.logp, rollout.logits[np.arange(rollout.steps), rollout.actions])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), lambda_=st.sampled_from([0.0, 0.4, 1.0]))
def test_generalised_advantages_against_their_definition(seed: int, lambda_: float) -> None:
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    reached = np.arange(4) < rng.integers(1, 5, size=(3, 1))
    out = generalised_advantages(rewards, values, reached, lambda_)
    for e in range(3):
        length = reached[e].sum()
        v = np.append(values[e, :length], 0.0)
        delta = rewards[e, :length] + v[1:] - v[:-1]
        for n in range(length):
            expected = sum(lambda_ ** (m - n) * delta[m] for m in range(n, length))
            assert out[e, n] == pytest.approx(expected)
        assert not out[e, length:].any()


@pytest.mark.parametrize("critic", [True, False])
def test_memory_sees_whole_exams_as_step_by_step(critic: bool) -> None:
    spec = exam_spec("latent", num_tasks=6, budget=0.15, feedback="cost+correct")
    network = network_for(spec, critic=critic, memory=5)
    rollout = take(spec, job_of(list(range(20)), [0] * 20), network)
    assert len(set(rollout.length)) > 1
    logits, values = network.whole(torch.from_numpy(rollout.observations), torch.from_numpy(rollout.sequence))
    logp = masked_log_softmax(logits, torch.from_numpy(rollout.mask))
    np.testing.assert_allclose(logp.detach().numpy(), rollout.logits, rtol=1e-5, atol=1e-5)
    if critic:
        np.testing.assert_allclose(values.detach().numpy(), rollout.values, rtol=1e-5, atol=1e-5)
    else:
        assert values is None


def test_memory_reads_the_past() -> None:
    spec = exam_spec("latent", num_tasks=3, feedback="cost+correct")
    network = network_for(spec, memory=5)
    size = public_problem(spec).observation_size
    past, now = torch.rand(2, size), torch.rand(1, size).expand(2, size)
    _, _, state = network(past, network.start(2))
    logits, _, _ = network(now, state)
    assert not torch.allclose(logits[0], logits[1])


def test_observation_statistics_are_those_of_exams() -> None:
    for spec in (exam_spec("heavy"), exam_spec("latent", feedback="cost+correct"), exam_spec("signal", preview=False)):
        problem = public_problem(spec)
        centre, spread = observation_statistics(problem)
        assert centre.shape == spread.shape == (problem.observation_size,)
        batch = draw_exams(spec, 0, np.arange(4000))
        view = exams_view(batch, problem)
        from agents.base import DecisionView

        zero = np.zeros(4000, np.int64)
        seen = DecisionView(
            problem,
            np.arange(4000),
            zero,
            zero + spec.budget,
            zero,
            zero,
            zero.astype(bool),
            view.groups if spec.preview else batch.groups,
        ).observations
        shown = slice(2 + 3 * (spec.feedback == "cost+correct"), None)
        standardised = (seen[:, shown] - centre[shown]) / spread[shown]
        assert np.abs(standardised.mean(0)).max() < 0.1
        assert np.abs(standardised.std(0) - 1).max() < 0.1


def test_reward_scale_undoes_weights() -> None:
    spec = exam_spec("heavy")
    batch = draw_exams(spec, 0, np.arange(2000))
    assert task_reward_scale(spec) * batch.weights.mean() == pytest.approx(1.0, rel=0.02)


def test_initial_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = PolicyNetwork(4, 3, (8,), critic=True, seed=11)
    assert torch.equal(torch.rand(1), expected)
    second = PolicyNetwork(4, 3, (8,), critic=True, seed=11)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_job_must_fit() -> None:
    spec = exam_spec("signal", num_tasks=2)
    with pytest.raises(ValueError, match="does not fit"):
        take(spec, job_of([0, 1, 2], [0, 0, 0]), network_for(spec), rows=2)
