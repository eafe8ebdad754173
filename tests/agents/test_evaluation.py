from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import Agent, DecisionView, ExamsView, Feedback, Probs, State, make_agent, public_problem
from agents.playing import TrainingExams, evaluate, evaluate_exact, evaluate_sampled, practice_seed, rollout
from roi_env.exact.evaluation import TooManyStates
from roi_env.exams import random
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.exams.rules import transition
from roi_env.measures.episodes import Records, redraw_hidden
from tests.agents.tiny_sources import tiny_spec


class Mixed(Agent):
    """Legal actions with probabilities that depend on group, position and remaining budget."""

    name = "mixed"

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        base = 1 + np.arange(self.problem.num_tiers + 1)
        raw = 1 + (base * (3 + view.group[:, None]) + view.remaining[:, None] * 7 + view.position[:, None]) % 5
        raw = raw * view.mask
        return raw / raw.sum(1, keepdims=True), state


class Counting(Mixed):
    """A memory: the number of right answers it was told of, per exam, moves its probabilities."""

    name = "counting"
    markov = False

    def start(self, exams: ExamsView) -> State:
        return np.zeros(len(exams), int)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        probs = super().act(view, state)[0]
        lazy = np.zeros_like(probs)
        lazy[:, 0] = 1
        return np.where((state[view.exam] > 0)[:, None], lazy, probs), state

    def observe(self, feedback: Feedback, state: State) -> State:
        if feedback.correct is None:
            return state
        state = state.copy()
        state[feedback.view.exam] += feedback.correct
        return state


def enumerate_exam(agent: Agent, batch: ExamBatch, law: str) -> tuple[float, float, float]:
    """Expected score, tokens and truncation probability of a batch of one, by enumeration with the rule itself."""
    spec, source = batch.spec, batch.spec.source
    problem = public_problem(spec)
    groups = batch.groups

    def walk(latent: int, n: int, remaining: int) -> np.ndarray:
        if n == spec.num_tasks or remaining == 0:
            return np.zeros(3)
        one = np.zeros(1, np.int64)
        view = DecisionView(problem, one, one + n, one + remaining, one, one, one.astype(bool), groups)
        probs = agent.act(view, None)[0][0]
        total = np.zeros(3)
        for action, p in enumerate(probs):
            if p == 0:
                continue
            outcomes = [(0, 1.0, 0.0)]
            if action and law == "published":
                cell = source.published.cell(latent * source.num_groups + groups[0, n], action - 1)
                outcomes = list(zip(*cell, strict=True))
            elif action:
                outcomes = list(zip(*source.laws.cell(batch.law_index[0, n], action - 1), strict=True))
                outcomes = outcomes or [(10**6, 1.0, 0.0)]
            for cost, q, s in outcomes:
                asked = int(cost) + spec.decision_cost
                paid, right, over, done = transition(asked, True, remaining, n, spec.num_tasks)
                here = np.array([s / q * batch.weights[0, n] * right, paid, float(over)])
                total += p * q * (here + (0 if done else walk(latent, n + 1, remaining - paid)))
        return total

    states = range(source.num_latent) if law == "published" else [0]
    return tuple(np.mean([walk(latent, 0, spec.budget) for latent in states], axis=0))


@pytest.mark.parametrize("num_latent", [1, 2])
@pytest.mark.parametrize("law", ["published", "true"])
def test_exact_evaluation_equals_enumeration(law: str, num_latent: int) -> None:
    for seed in range(40):
        spec = tiny_spec(seed, num_latent)
        agent = Mixed(public_problem(spec))
        batch = draw_exams(spec, seed, np.arange(4))
        result = evaluate_exact(agent, batch, law=law)
        assert result.mode == "exact"
        assert result.law == law
        for e in range(len(batch)):
            expected = enumerate_exam(agent, batch.take(slice(e, e + 1)), law)
            found = (result.score[e], result.spent[e], result.overspent[e].sum())
            np.testing.assert_allclose(found, expected, atol=1e-12)
        assert result.spend.sum() == pytest.approx(1)
        assert result.choices.sum() == pytest.approx(result.reached.sum(1).mean())
        np.testing.assert_allclose(result.calibration[:, 0], result.choices.sum((0, 1)), atol=1e-12)


@pytest.mark.parametrize("law", ["published", "true"])
@pytest.mark.parametrize("family", ["heavy", "latent", "paper"])
def test_sampled_agrees_with_exact(family: str, law: str) -> None:
    spec = exam_spec(family, num_tasks=3, decision_cost=1, preview=False)
    agent = Mixed(public_problem(spec))
    batch = draw_exams(spec, 3, np.arange(30))
    exact = evaluate_exact(agent, batch, law=law)
    sampled = evaluate_sampled(agent, batch, law=law, replicates=400)
    z = (sampled.score - exact.score) / np.maximum(sampled.noise, 1e-9)
    assert abs(z.mean()) * np.sqrt(len(z)) < 4
    assert z.std() < 1.6
    for name in ("skipped", "reached"):
        assert getattr(exact, name).mean() == pytest.approx(getattr(sampled, name).mean(), abs=0.02)
    assert exact.overspent.sum(1).mean() == pytest.approx(sampled.overspent.sum(1).mean(), abs=0.02)
    assert exact.spent.mean() == pytest.approx(sampled.spent.mean(), rel=0.02)
    np.testing.assert_allclose(exact.choices, sampled.choices, atol=0.04)
    np.testing.assert_allclose(exact.spend, sampled.spend, atol=0.03)
    np.testing.assert_allclose(exact.calibration[:, :2], sampled.calibration[:, :2], atol=0.05)
    np.testing.assert_allclose(exact.calibration[:, 3], sampled.calibration[:, 3], atol=0.05)
    np.testing.assert_allclose(exact.calibration[:, 5:], sampled.calibration[:, 5:], atol=0.05)


def assert_same(a: Records, b: Records) -> None:
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("agent_type", [Mixed, Counting])
def test_records_do_not_depend_on_chunks(agent_type: type[Agent]) -> None:
    spec = exam_spec("signal", feedback="cost+correct")
    agent = agent_type(public_problem(spec))
    batch = draw_exams(spec, 1, np.arange(9))
    whole = rollout(agent, batch, replicates=5, seed=2)
    for chunk in (1, 7, 11):
        assert_same(whole, rollout(agent, batch, replicates=5, seed=2, chunk=chunk))
    part = rollout(agent, batch.take(slice(4, 5)), replicates=5, seed=2)
    np.testing.assert_array_equal(part.action, whole.action[20:25])


@pytest.mark.parametrize("agent_type", [Mixed, Counting])
def test_episodes_equal_a_plain_loop(agent_type: type[Agent]) -> None:
    for seed in range(20):
        spec = tiny_spec(seed, 2, feedback="cost+correct")
        problem = public_problem(spec)
        agent = agent_type(problem)
        batch = draw_exams(spec, seed, np.arange(3))
        records = rollout(agent, batch, replicates=4, seed=9)
        for d in range(len(records)):
            e, r = divmod(d, 4)
            one = batch.take(slice(e, e + 1))
            tokens, correct = one.outcomes(np.array([r]))
            key = np.uint64(random.draw(np.uint64(random.exam_key(np.uint64(9), one.exam_ids[0])), random.ACTIONS))
            key = np.uint64(random.draw(key, np.uint64(r)))
            remaining, score, told = spec.budget, 0.0, 0
            zero = np.zeros(1, np.int64)
            for n in range(spec.num_tasks):
                assert records.reached[d, n]
                assert records.remaining[d, n] == remaining
                view = DecisionView(
                    problem, zero, zero + n, zero + remaining, zero, zero, zero.astype(bool), one.groups
                )
                probs = agent.act(view, np.array([told]))[0][0]
                u = int(random.draw(key, np.uint64(n)) >> np.uint64(11)) / 2**53
                action = next(a for a in range(len(probs)) if probs[a] > 0 and u < probs[: a + 1].sum())
                cost = spec.decision_cost + (int(tokens[0, n, action - 1]) if action else 0)
                right = bool(action and correct[0, n, action - 1])
                paid, right, over, done = transition(cost, right, remaining, n, spec.num_tasks)
                assert records.action[d, n] == action
                assert records.tokens[d, n] == paid
                assert records.correct[d, n] == right
                assert records.overspent[d, n] == over
                score += right * one.weights[0, n]
                told += right
                remaining -= paid
                if done:
                    assert not records.reached[d, n + 1 :].any()
                    break
            assert records.score[d] == score


def test_limit_on_states_is_an_error_and_a_fallback() -> None:
    spec = exam_spec("signal")
    agent = Mixed(public_problem(spec))
    batch = draw_exams(spec, 0, np.arange(3))
    with pytest.raises(TooManyStates, match=r"mixed.*max_states"):
        evaluate_exact(agent, batch, max_states=100)
    assert evaluate(agent, batch, max_states=100, replicates=3).mode == "sampled"
    assert evaluate(agent, batch).mode == "exact"
    with pytest.raises(ValueError, match="memory"):
        evaluate_exact(Counting(agent.problem), batch)


def test_broken_agents_are_named() -> None:
    class Broken(Mixed):
        name = "broken"

        def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
            return np.full((len(view), 4), 0.3), state

    spec = exam_spec("signal")
    batch = draw_exams(spec, 0, np.arange(3))
    with pytest.raises(ValueError, match="broken"):
        rollout(Broken(public_problem(spec)), batch)


def test_redrawn_exams_look_the_same() -> None:
    spec = exam_spec("latent")
    batch = draw_exams(spec, 0, np.arange(500))
    redrawn = redraw_hidden(batch)
    np.testing.assert_array_equal(batch.groups, redrawn.groups)
    assert (batch.items != redrawn.items).mean() > 0.5
    assert redrawn.latent.mean() == pytest.approx(0.5, abs=0.1)
    again = [redraw_hidden(dataclasses.replace(batch, replicates=batch.replicates + r)).latent for r in range(6)]
    np.testing.assert_array_equal(np.sum(again[:2], 0), 1)  # balanced in every block, in either order
    np.testing.assert_array_equal(np.sum(again[4:], 0), 1)
    assert np.mean(again[2]) == pytest.approx(0.5, abs=0.1)
    assert np.corrcoef(again[0], again[2])[0, 1] == pytest.approx(0, abs=0.2)


def test_practice_is_disjoint_and_reveals() -> None:
    spec = exam_spec("signal")
    practice = TrainingExams(spec, 0)
    assert practice_seed(0) != 0
    log = practice.attempts(540, np.zeros(practice.problem.num_groups, np.int64))
    assert len(log.group) == 540
    assert set(np.unique(log.tier)) == {0, 1, 2}
    assert practice.play(Counting(practice.problem), 20, 0, np.zeros(20, int)).sum() > 0
    agent = Mixed(practice.problem)
    exact = evaluate_exact(agent, practice.batch(20), law="published")
    assert practice.score(agent, 20) == pytest.approx(exact.score.mean())


def test_logged_attempts_are_those_of_the_exams_equally_many_a_stratum() -> None:
    for seed in range(60):
        spec = tiny_spec(seed)
        practice = TrainingExams(spec, seed)
        problem, rng = practice.problem, np.random.default_rng(seed)
        strata = rng.integers(2, size=problem.num_groups)
        offers = spec.source.published.offered
        possible = {int(s) for g, s in enumerate(strata) if offers[g].any() and problem.group_probability[0, g] > 0}
        count = int(rng.integers(1, 40))
        if not possible:
            with pytest.raises(ValueError, match="offers a tier"):
                practice.attempts(count, strata)
            continue
        log = practice.attempts(count, strata)
        assert len(log.group) == count
        shares = [int((strata[log.group] == s).sum()) for s in possible]
        assert sum(shares) == count
        assert max(shares) - min(shares) <= 1
        batch = practice.batch(400)
        tokens, correct = batch.outcomes()
        tasks = list(np.ndindex(batch.groups.shape))
        for s in possible:
            mine = strata[log.group] == s
            found = list(zip(log.group[mine], log.tier[mine], log.tokens[mine], log.correct[mine], strict=True))
            expected = (
                (g, k, tokens[task][k], correct[task][k])
                for task in tasks
                if strata[g := batch.groups[task]] == s
                for k in np.flatnonzero(offers[g])
            )
            assert found == [next(expected) for _ in found]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["bellman", "hindsight-optimisation", "bwk-ucb"]))
def test_probabilities_are_legal(seed: int, name: str) -> None:
    spec = tiny_spec(seed)
    agent = make_agent(name, public_problem(spec))
    batch = draw_exams(spec, seed, np.arange(2))
    evaluate_exact(agent, batch)  # checks shape, sums, signs and masks of every reachable state
