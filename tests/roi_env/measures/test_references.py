"""Reference values and the forward pass, computed from roi_env alone."""

from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import roi_env.exact.policy_tables
import roi_env.measures.references
from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact
from roi_env.exact.belief import belief_model, belief_tables
from roi_env.exact.evaluation import Decide, evaluate_markov
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.exams.rules import transition
from roi_env.measures.references import (
    in_sample_optimism,
    informed_values,
    latent_model,
    optimum_tables,
    oracle_values,
    references,
)
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source
from tests.agents.tiny_sources import tiny_spec
from tests.roi_env.exact.plain import optimum, policy_value


def mixed(batch: ExamBatch) -> Decide:
    """Probabilities that depend on group, position and tokens left; illegal actions included."""

    def decide(position: int, exam: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        base = 1 + np.arange(batch.spec.num_tiers + 1)
        raw = 1 + (base * (3 + batch.groups[exam, position, None]) + remaining[:, None] * 7 + position) % 5
        return raw / raw.sum(1, keepdims=True)

    return decide


@pytest.mark.parametrize("module", [roi_env.exact.policy_tables, roi_env.measures.references])
def test_documented_examples_hold(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 5
    assert not found.failed


@pytest.mark.parametrize("seed", range(20))
def test_forward_pass_equals_backward_pass(seed: int) -> None:
    """The value of one policy table, carried forward and backward by two implementations."""
    rng = np.random.default_rng(seed)
    spec = tiny_spec(seed)
    batch = draw_exams(spec, seed, np.arange(5))
    table = rng.integers(0, spec.num_tiers + 1, (5, spec.num_tasks, spec.budget + 1)).astype(np.int8)

    def policy(some: ExamBatch) -> Decide:
        # The forward pass evaluates equal exams once: rows are found by the exams' ids.
        return lambda n, exam, left: np.eye(spec.num_tiers + 1)[table[some.exam_ids[exam], n, left]]

    for e in range(5):
        one = batch.take(slice(e, e + 1))
        for law, laws, index in (
            ("published", spec.source.published, one.groups),
            ("true", spec.source.laws, one.law_index),
        ):
            forward = evaluate_markov(policy, one, law=law).score
            backward = policy_value(laws, index, one.weights, spec.budget, table[e : e + 1], spec.decision_cost)
            np.testing.assert_allclose(forward, backward, atol=1e-12)


def test_bad_policies_are_refused() -> None:
    batch = draw_exams(exam_spec("signal"), 0, [0])
    for bad in (np.full(4, 0.3), np.array([2.0, -1.0, 0.0, 0.0]), np.full(4, np.nan), np.full(3, 1 / 3)):
        with pytest.raises(ValueError, match="probabilities"):
            evaluate_markov(lambda _, p=bad: lambda n, exam, left: np.tile(p, (len(exam), 1)), batch)


@pytest.mark.parametrize("preview", [True, False])
def test_tables_earn_their_value(preview: bool) -> None:
    for seed in range(30):
        spec = tiny_spec(seed, preview=preview)
        # All exams there are, equally likely: blind values are expectations over the tasks to come.
        rows = np.indices((len(spec.source.row_item),) * spec.num_tasks, np.int32).reshape(spec.num_tasks, -1).T
        batch = draw_exams(spec, seed, np.arange(len(rows)))
        batch = dataclasses.replace(batch, rows=np.ascontiguousarray(rows))
        value, earned = optimum_tables(batch).value, references(batch, replicates=1).optimum
        assert value.mean() == pytest.approx(earned.mean(), abs=1e-12)
        if preview:
            np.testing.assert_allclose(value, earned, atol=1e-12)
            exact = optimum(
                spec.source.published, batch.groups, batch.weights, spec.budget, spec.decision_cost, spec.min_cost
            )
            np.testing.assert_allclose(value, exact, atol=1e-12)


def test_latent_model_needs_a_latent_state() -> None:
    spec = exam_spec("signal", num_tasks=2)
    with pytest.raises(ValueError, match="two latent states"):
        latent_model(spec)
    latent = exam_spec("latent", num_tasks=2)
    with pytest.raises(ValueError, match="latent_model"):
        optimum_tables(draw_exams(latent, 0, [0]))
    source = latent.source
    with pytest.raises(ValueError, match="points"):
        belief_model(source.published, source.group_weight, latent.min_cost, 10, 0, sees_correct=False, points=1)
    blind = exam_spec("latent", num_tasks=2, preview=False)
    tables = belief_tables(latent_model(blind), blind.arrivals)
    with pytest.raises(ValueError, match="seen"):
        tables.lookup(0, np.zeros(1, int), np.full(1, blind.budget), np.full(1, 0.5))


def test_oracle_equals_brute_force() -> None:
    def best(n: int, remaining: int, tokens: np.ndarray, correct: np.ndarray, weights: np.ndarray, dc: int) -> float:
        if n == len(tokens):
            return 0.0
        options = [0.0]
        for cost, right in [(0, False), *zip(tokens[n], correct[n], strict=True)]:
            paid, right, _, done = transition(int(cost) + dc, bool(right), remaining, n, len(tokens))
            rest = 0.0 if done else best(n + 1, remaining - paid, tokens, correct, weights, dc)
            options.append(weights[n] * right + rest)
        return max(options)

    for seed in range(200):
        spec = tiny_spec(seed)
        batch = draw_exams(spec, seed, np.arange(3))
        tokens, correct = batch.outcomes()
        expected = [best(0, spec.budget, tokens[e], correct[e], batch.weights[e], spec.decision_cost) for e in range(3)]
        np.testing.assert_allclose(oracle_values(batch), expected)


@pytest.mark.parametrize("family", ["known", "heavy", "paper-synthetic"])
def test_references_are_ordered(family: str) -> None:
    spec = exam_spec(family, num_tasks=3)
    batch = draw_exams(spec, 0, np.arange(40))
    reference = references(batch, replicates=50)
    assert reference.optimum_mode == "exact"
    np.testing.assert_array_equal(reference.optimum, reference.optimum_upper)
    assert reference.informed.mean() >= reference.optimum.mean() - 1e-9
    assert reference.oracle.mean() > reference.informed.mean()
    if family == "known":
        np.testing.assert_allclose(informed_values(batch), reference.optimum)
    score = evaluate_markov(mixed, batch).score
    assert (score <= reference.optimum + 1e-12).all()
    coarse = references(batch, replicates=2, grid=5)
    assert (coarse.optimum <= reference.optimum + 1e-12).all()
    assert (coarse.optimum_upper >= reference.optimum - 1e-12).all()


def of_mean(noise: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean over exams."""
    return float(np.sqrt((noise**2).sum()) / len(noise))


@pytest.mark.parametrize(("family", "budget"), [("latent", 0.15), ("latent", 0.3), ("signal", 0.3), ("cap", 0.15)])
def test_knowing_more_is_worth_more_within_the_stated_noise(family: str, budget: float) -> None:
    feedback = "cost+correct" if family == "latent" else "cost"
    batch = draw_exams(exam_spec(family, budget=budget, feedback=feedback), 0, np.arange(40))
    found = references(batch, replicates=40)
    # A few hundredths of a right answer: far below what information is worth.
    assert of_mean(found.informed_noise) < 0.02
    assert found.informed.mean() > found.optimum_upper.mean() + 3 * of_mean(found.informed_noise)
    both = np.hypot(of_mean(found.oracle_noise), of_mean(found.informed_noise))
    assert found.oracle.mean() > found.informed.mean() + 3 * both
    assert found.optimum.mean() < found.optimum_upper.mean() + 4 * of_mean(found.optimum_noise) + 1e-9


def test_stated_noise_is_the_spread_of_repetitions() -> None:
    """Latent states are balanced inside blocks of replicates; the standard error knows."""
    spec = exam_spec("latent", num_tasks=3, feedback="cost+correct")
    batch = draw_exams(spec, 0, np.repeat(5, 60))
    means, stated = [], []
    for start in range(60):
        one = dataclasses.replace(batch.take(slice(0, 1)), replicates=np.array([1000 * start]))
        found = references(one, replicates=10, informed_draws=10)
        means.append([found.oracle[0], found.informed[0], found.optimum[0]])
        stated.append([found.oracle_noise[0], found.informed_noise[0], found.optimum_noise[0]])
    spread, claimed = np.std(means, axis=0, ddof=1), np.sqrt(np.mean(np.square(stated), axis=0))
    np.testing.assert_allclose(claimed, spread, rtol=0.35)  # 4 standard errors of a deviation over 60


def test_nothing_hidden_nothing_redrawn() -> None:
    found = references(draw_exams(exam_spec("known", num_tasks=3), 0, np.arange(5)), replicates=2)
    np.testing.assert_array_equal(found.informed_noise, 0)
    np.testing.assert_allclose(found.informed, found.optimum)


def test_latent_references_bracket() -> None:
    spec = exam_spec("latent", num_tasks=3, feedback="cost+correct")
    batch = draw_exams(spec, 0, np.arange(20))
    found = references(batch, replicates=400)
    assert found.optimum_mode == "sampled"
    noise = of_mean(found.optimum_noise)
    assert found.optimum.mean() == pytest.approx(found.optimum_upper.mean(), abs=5 * noise)
    memoryless = evaluate_exact(make_agent("bellman", public_problem(spec)), batch)
    assert (memoryless.score <= found.optimum_upper + 1e-9).all()


def recorded_spec(num_tasks: int, questions: int = 24, **same: int) -> ExamSpec:
    rng = np.random.default_rng(4)
    names = [f"q{i}" for i in range(3 * questions)]
    tiers = ("low", "high")
    rows = [
        {
            "dataset": "ab"[i % 2], "question_id": name, "question": name, "answer": "1", "menu": "m", "tier": tier,
            "tier_order": k + 1, "tokens": same.get("tokens", int(rng.integers(1, 6)) * (k + 1)),
            "correct": bool(same["correct"]) if same else bool(rng.random() < (i % 5 + 2 * k) / 8), "sample": s,
        }
        for i, name in enumerate(names) for k, tier in enumerate(tiers) for s in range(2)
    ]  # fmt: skip
    source = recorded_source(OutcomeTable.from_arrow(pa.Table.from_pylist(rows)))
    return exam_spec(source, num_tasks=num_tasks, budget=4 * num_tasks)


@pytest.mark.parametrize("preview", [True, False])
def test_what_a_user_can_reach_is_the_train_laws_optimum_on_the_test_questions(preview: bool) -> None:
    spec = recorded_spec(4).replace(preview=preview)
    batch = draw_exams(spec, 0, np.arange(20))
    found = references(batch, replicates=1)
    agent = evaluate_exact(make_agent("bellman", public_problem(spec)), batch)
    np.testing.assert_allclose(found.reachable, agent.score, rtol=1e-12)
    assert (np.abs(found.reachable - found.optimum) > 1e-6).any()
    assert found.optimism.mean() > 0
    np.testing.assert_array_equal(found.optimism, references(batch, replicates=1).optimism)


def test_questions_that_are_all_alike_leave_no_optimism_and_synthetic_laws_none() -> None:
    batch = draw_exams(recorded_spec(3, tokens=2, correct=1), 0, np.arange(5))
    np.testing.assert_allclose(in_sample_optimism(batch), 0, atol=1e-12)
    synthetic = references(draw_exams(exam_spec("signal", num_tasks=3), 0, np.arange(5)), replicates=1)
    np.testing.assert_array_equal(synthetic.reachable, synthetic.optimum)
    np.testing.assert_array_equal(synthetic.optimism, 0)
