"""Every planner against an independent slow reference in plain Python."""

# ruff: noqa: B023 - closures over a loop variable are called inside their own iteration
from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from agents.base import (
    Attempts,
    DecisionView,
    Feedback,
    Problem,
    exams_view,
    load_agent,
    make_agent,
    public_problem,
    save_agent,
)
from agents.planners.bandits import BanditWithKnapsacks, Estimates, hull_increments, normal_numbers
from agents.planners.belief import BeliefBellman
from agents.planners.dynamic_programming import PluginBellman, empirical_laws, key_buckets
from agents.planners.hindsight_optimisation import NEVER, HindsightOptimisation
from agents.planners.online import OnlineLP
from agents.playing import TrainingExams, action_numbers, evaluate_exact, evaluate_sampled
from roi_env.exams import random
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import optimum_tables, references
from roi_env.sources.source import Laws, laws_from_cells
from tests.agents.tiny_sources import tiny_spec

Value = Callable[[int, int, int], float]
"""Value of what follows task n with b tokens left, when task n was of group g."""


def action_values(problem: Problem, laws: Laws, group: int, n: int, budget: int, follow: Value) -> np.ndarray:
    """Q of every action by the formula, -inf where masked."""
    dc = problem.decision_cost
    values = [follow(n, budget - dc, group) if budget >= dc else 0.0]
    for tier in range(problem.num_tiers):
        if problem.min_cost[group, tier] > budget:
            values.append(-np.inf)
            continue
        total = 0.0
        for cost, prob, success in zip(*laws.cell(group, tier), strict=True):
            if cost + dc <= budget:
                total += problem.group_weight[group] * success + prob * follow(n, budget - dc - cost, group)
        values.append(total)
    return np.array(values)


def bellman_value(problem: Problem, laws: Laws, groups: np.ndarray) -> Value:
    """Memoised recursion; blind problems average over the population."""
    memo: dict[tuple[int, int, int], float] = {}

    def value(n: int, budget: int, group: int) -> float:
        key = n, budget, group
        if n == problem.num_tasks:
            return 0.0
        if key not in memo:
            memo[key] = action_values(problem, laws, group, n, budget, follow).max()
        return memo[key]

    def follow(n: int, budget: int, group: int) -> float:
        if n + 1 == problem.num_tasks:
            return 0.0
        if problem.preview:
            return value(n + 1, budget, int(groups[n + 1]))
        return sum(p * value(n + 1, budget, g) for g, p in enumerate(problem.group_probability[0]))

    return follow


def played(agent, problem: Problem, batch, n: int, budget: int) -> np.ndarray:
    state = agent.start(exams_view(batch, problem))
    zero = np.zeros(1, np.int64)
    view = DecisionView(problem, zero, zero + n, zero + budget, zero, zero, zero.astype(bool), batch.groups)
    return agent.act(view, state)[0][0]


def assert_best(agent, problem: Problem, laws: Laws, batch, follow: Value) -> None:
    for n, budget in itertools.product(range(problem.num_tasks), range(1, problem.budget + 1)):
        values = action_values(problem, laws, int(batch.groups[0, n]), n, budget, follow)
        probs = played(agent, problem, batch, n, budget)
        assert values[probs.argmax()] == pytest.approx(values.max(), abs=1e-12)


def test_bellman_equals_recursion() -> None:
    for seed in range(200):
        spec = tiny_spec(seed)
        problem = public_problem(spec)
        batch = draw_exams(spec, seed, [0])
        follow = bellman_value(problem, spec.source.beliefs, batch.groups[0])
        agent = make_agent("bellman", problem)
        assert_best(agent, problem, spec.source.beliefs, batch, follow)
        if problem.preview:
            first = action_values(problem, spec.source.beliefs, int(batch.groups[0, 0]), 0, problem.budget, follow)
            assert evaluate_exact(agent, batch).score[0] == pytest.approx(first.max(), abs=1e-12)


def test_optimum_equals_recursion_on_its_own_laws() -> None:
    """The optimum plans with the evaluated source's laws, not with the published beliefs, and earns what they promise."""
    for seed in range(200):
        spec = tiny_spec(seed)
        problem, groups, tiers = public_problem(spec), spec.source.num_groups, spec.source.num_tiers
        batch = draw_exams(spec, seed, [0])
        # Other laws than the beliefs: those of the groups in reverse.
        cells = [spec.source.beliefs.cell(groups - 1 - g, k) for g in range(groups) for k in range(tiers)]
        laws = laws_from_cells(cells, tiers)
        follow = bellman_value(problem, laws, batch.groups[0])
        assert_best(make_agent("optimum", problem, laws=laws), problem, laws, batch, follow)
        published = spec.source.published
        follow = bellman_value(problem, published, batch.groups[0])
        first = action_values(problem, published, int(batch.groups[0, 0]), 0, problem.budget, follow).max()
        assert optimum_tables(batch).value[0] == pytest.approx(first, abs=1e-12)
        if problem.preview:  # blind, the exam's own tasks are not the expectation that was planned for
            assert references(batch, replicates=2, informed_draws=1).optimum[0] == pytest.approx(first, abs=1e-12)


def test_roi_training_finds_the_best_threshold() -> None:
    """No threshold between the population's returns scores more on the training exams, by recursion."""
    for seed in range(200):
        spec = tiny_spec(seed)
        problem, laws = public_problem(spec), spec.source.beliefs
        practice = TrainingExams(spec, seed)
        agent = make_agent("roi", problem, exams=2)
        agent.train(practice, 0)
        returns = np.zeros((problem.num_groups, problem.num_tiers))
        value = np.zeros_like(returns)
        for g, k in np.ndindex(*returns.shape):
            cost, prob, success = laws.cell(g, k)
            value[g, k] = problem.group_weight[g] * success.sum()
            if value[g, k] > 0:
                returns[g, k] = value[g, k] / ((cost * prob).sum() + problem.decision_cost)

        def score(threshold: float, groups: np.ndarray, n: int, budget: int) -> float:
            if n == problem.num_tasks:
                return 0.0
            g, best, tier = int(groups[n]), 0.0, -1
            for k in range(problem.num_tiers):
                legal = problem.min_cost[g, k] <= budget
                if legal and returns[g, k] >= threshold - 1e-12 and value[g, k] > best + 1e-12:
                    best, tier = value[g, k], k
            budget -= problem.decision_cost
            if tier < 0:
                return score(threshold, groups, n + 1, budget) if budget >= 0 else 0.0
            return sum(
                problem.group_weight[g] * s + p * score(threshold, groups, n + 1, budget - c)
                for c, p, s in zip(*laws.cell(g, tier), strict=True)
                if c <= budget
            )

        exams = practice.batch(2).groups
        scores = {t: sum(score(t, groups, 0, problem.budget) for groups in exams) for t in {0.0, *returns.ravel()}}
        found = sum(score(agent.threshold, groups, 0, problem.budget) for groups in exams)
        assert found == pytest.approx(max(scores.values()), abs=1e-9)


def test_plugin_equals_recursion_on_counts() -> None:
    compared = 0
    for seed in range(220):
        spec = tiny_spec(seed, beliefs="none")
        problem = public_problem(spec)
        batch = draw_exams(spec, seed, [0])
        agent = PluginBellman(problem, attempts=12, buckets=2)
        practice = TrainingExams(spec, seed)
        try:
            agent.train(practice, 0)
        except ValueError:  # no tier offered anywhere
            continue
        bucket = key_buckets(problem, 2)
        log = practice.attempts(12, bucket)
        cells = []
        for group in range(problem.num_groups):
            for tier in range(problem.num_tiers):
                at_tier = [i for i in range(len(log.group)) if log.tier[i] == tier]
                mine = [i for i in at_tier if bucket[log.group[i]] == bucket[group]] or at_tier
                law: dict[int, list[int]] = defaultdict(list)
                for i in mine:
                    law[int(log.tokens[i])].append(bool(log.correct[i]))
                cells.append([(c, len(law[c]) / len(mine), sum(law[c]) / len(mine)) for c in sorted(law)])
        learned = agent.laws()
        for index, cell in enumerate(cells):
            found = list(zip(*learned.cell(*divmod(index, problem.num_tiers)), strict=True))
            np.testing.assert_allclose(np.array(found).reshape(-1, 3), np.array(cell).reshape(-1, 3), atol=1e-12)
        assert_best(agent, problem, learned, batch, bellman_value(problem, learned, batch.groups[0]))
        compared += 1
    assert compared >= 200


def test_empty_cells_pool_their_tier() -> None:
    log = Attempts(
        np.array([0, 0, 1], np.int32), np.array([0, 0, 1]), np.array([3, 5, 7]), np.array([True, False, True])
    )
    laws = empirical_laws(log, np.array([0, 1]), 3)
    np.testing.assert_array_equal(laws.cell(1, 0)[0], [3, 5])
    np.testing.assert_array_equal(laws.cell(0, 1)[0], [7])
    assert not laws.offered[:, 2].any()


def test_hindsight_optimisation_equals_brute_force() -> None:
    """Shown or hidden tasks, either coupling; scenarios drawn by inverse distribution functions in plain Python."""
    for seed in range(200):
        spec = tiny_spec(seed)
        problem, laws = public_problem(spec), spec.source.beliefs
        batch = draw_exams(spec, seed, [0])
        coupling = ("common", "independent")[seed % 2]
        agent = HindsightOptimisation(problem, scenarios=5, coupling=coupling, seed=seed)
        dc = problem.decision_cost

        def unit(key: np.uint64, counter: int) -> float:
            return (int(random.draw(np.uint64(key), np.uint64(counter))) >> 11) / 2**53

        def cheapest(scenario: int, n: int, group: int) -> int:
            key, found = random.outcome_key(np.uint64(seed), np.int64(scenario), np.int64(n)), [NEVER]
            for k in range(problem.num_tiers):
                u, below = unit(key, 0 if coupling == "common" else k), 0.0
                for cost, prob, success in zip(*laws.cell(group, k), strict=True):
                    if problem.min_cost[group, k] <= problem.budget and below <= u < below + success:
                        found.append(int(cost))
                    below += prob
            return min(found)

        def group(scenario: int, n: int) -> int:
            """The task itself where it is shown, else a draw from the population."""
            if problem.preview:
                return int(batch.groups[0, n])
            u = unit(random.exam_key(np.uint64(seed), np.int64(scenario)), n)
            return int(np.searchsorted(np.cumsum(problem.group_probability[0]), u, side="right"))

        drawn = [[group(m, n) for n in range(problem.num_tasks)] for m in range(5)]
        costs = [[cheapest(m, n, g) for n, g in enumerate(row)] for m, row in enumerate(drawn)]

        def follow(n: int, budget: int, group: int) -> float:
            total = 0.0
            for groups, cost in zip(drawn, costs, strict=True):
                best = 0.0
                rest = range(n + 1, problem.num_tasks)
                for size in range(len(rest) + 1):
                    for chosen in itertools.combinations(rest, size):
                        spent = [cost[i] for i in chosen]
                        until = dc * (chosen[-1] - n) if chosen else 0
                        if NEVER not in spent and sum(spent) + until <= budget:
                            best = max(best, sum(problem.group_weight[groups[i]] for i in chosen))
                total += best
            return total / 5

        assert_best(agent, problem, laws, batch, follow)


def test_scenarios_follow_the_beliefs() -> None:
    spec = tiny_spec(4, num_tasks=1, budget=12)
    problem = public_problem(spec)
    cheapest = HindsightOptimisation(problem, scenarios=4000, coupling="independent")._cheapest[:, 0]
    never = np.prod(1 - spec.source.beliefs.success_probability, axis=1)
    np.testing.assert_allclose((cheapest == NEVER).mean(0), never, atol=0.03)


def solve_lp(gain: np.ndarray, cost: np.ndarray, capacity: float, first: np.ndarray | None = None) -> float:
    tasks, tiers = gain.shape
    rows = [cost.ravel(), *(np.kron(np.eye(tasks)[t], np.ones(tiers)) for t in range(tasks))]
    bounds = [(0.0, None)] * gain.size
    if first is not None:
        bounds[:tiers] = [(x, x) for x in first]
    result = linprog(-gain.ravel(), np.array(rows), [capacity + 1e-9] + [1 + 1e-9] * tasks, bounds=bounds)
    assert result.success
    return -result.fun


def test_relaxation_equals_linprog() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        gain, cost = rng.random((4, 3)), rng.integers(1, 9, (4, 3)).astype(float)
        capacity = float(rng.integers(0, 20))
        left, total, holds = capacity, 0.0, [-1] * 4
        for _, task, before, after in hull_increments(gain, cost):
            t, old, new = int(task), int(before), int(after)
            assert holds[t] == old
            holds[t] = new
            size, more = (
                cost[t, new] - (cost[t, old] if old >= 0 else 0),
                gain[t, new] - (gain[t, old] if old >= 0 else 0),
            )
            share = min(1.0, left / size)
            left, total = left - share * size, total + share * more
        assert total == pytest.approx(solve_lp(gain, cost, capacity), abs=1e-6)


def test_bandit_plays_the_relaxation() -> None:
    rng = np.random.default_rng(1)
    for seed in range(200):
        spec = tiny_spec(seed, beliefs="none")
        problem = public_problem(spec)
        batch = draw_exams(spec, seed, [0])
        agent = BanditWithKnapsacks(problem)
        shape = agent._estimates.count.shape
        count = rng.integers(0, 5, shape).astype(float)
        right = np.minimum(rng.integers(0, 5, shape), count).astype(float)
        tokens = count * rng.integers(1, 6, shape)
        agent.restore({"count": count, "right": right, "tokens": tokens, "square": tokens * 3})
        success, cost = (a[agent._bucket] for a in (agent._estimates.success, agent._estimates.cost))
        n, budget = int(rng.integers(problem.num_tasks)), int(rng.integers(1, problem.budget + 1))
        probs = played(agent, problem, batch, n, budget)
        groups, left = batch.groups[0], problem.num_tasks - 1 - n
        offered = problem.min_cost < 10**6
        gains = [
            np.where(problem.min_cost[groups[n]] <= budget, problem.group_weight[groups[n]] * success[groups[n]], 0)
        ]
        costs = [cost[groups[n]]]
        kinds = [(g, 1.0) for g in groups[n + 1 :]]
        if not problem.preview and left:
            kinds = [(g, left * p) for g, p in enumerate(problem.group_probability[0])]
        for g, many in kinds:
            gains.append(
                np.where(offered[g] & (problem.min_cost[g] <= problem.budget), success[g], 0)
                * many
                * problem.group_weight[g]
            )
            costs.append(cost[g] * many)
        capacity = max(budget - problem.decision_cost * (left + 1), 0)
        gain, price = np.array(gains, float), np.array(costs, float)
        best = solve_lp(gain, price, capacity)
        assert solve_lp(gain, price, capacity, probs[1:]) == pytest.approx(best, abs=1e-6)


def test_online_lp_plays_the_relaxation_of_its_posterior() -> None:
    """Attempts fed one by one, fading and not; beliefs by the docstring's formulas cell by cell, the relaxation by HiGHS."""
    rng = np.random.default_rng(2)
    for seed in range(200):
        spec = tiny_spec(seed, feedback=["cost", "cost+correct"][seed % 2])
        problem = public_problem(spec)
        batch = draw_exams(spec, seed, [0])
        memory = [0.0, 2.0][seed // 2 % 2]
        agent, s = OnlineLP(problem, strength=3.0, memory=memory), 3.0
        state = agent.start(exams_view(batch, problem))
        groups, zero = batch.groups[0], np.zeros(1, np.int64)
        size = problem.num_groups, problem.num_tiers
        laws = problem.beliefs
        assert laws is not None
        believed = [[max(float(laws.expected_cost[g, k]), 1.0) for k in range(size[1])] for g in range(size[0])]
        tries: list[tuple[int, int, float, bool]] = []
        for n in range(problem.num_tasks - 1):
            action, paid = int(rng.integers(0, size[1] + 1)), int(rng.integers(problem.decision_cost, 9))
            right, cut = bool(rng.integers(2)), bool(rng.integers(4) == 0)
            view = DecisionView(
                problem, zero, zero + n, zero + problem.budget, zero, zero, zero.astype(bool), batch.groups
            )
            told = np.array([right]) if spec.feedback == "cost+correct" else None
            state = agent.observe(Feedback(view, zero + action, zero + paid, told, np.array([cut])), state)
            if action and not cut:
                g = int(groups[n])
                tries.append((g, action - 1, (paid - problem.decision_cost) / believed[g][action - 1], right))
        # What the i-th attempt from the end weighs.
        weight = [math.exp(-i / memory) if memory else 1.0 for i in reversed(range(len(tries)))]
        success, cost = np.zeros(size), np.ones(size)
        for g, k in itertools.product(range(size[0]), range(size[1])):
            tier = [(w, t) for w, t in zip(weight, tries, strict=True) if t[1] == k]
            own = [(w, t) for w, t in tier if t[0] == g]
            all_, mine = (sum(w for w, _ in some) for some in (tier, own))
            factor = (s + sum(w * t[2] for w, t in tier)) / (s + all_)
            cost[g, k] = believed[g][k] * (s * factor + sum(w * t[2] for w, t in own)) / (s + mine)
            prior = float(laws.success_probability[g, k])
            success[g, k] = prior
            if spec.feedback == "cost+correct":
                surprise = sum(w * (t[3] - laws.success_probability[t[0], k]) for w, t in tier) / (s + all_)
                around = min(max(prior + surprise, 0.0), 1.0)
                success[g, k] = (s * around + sum(w * t[3] for w, t in own)) / (s + mine)
        np.testing.assert_allclose([a[0] for a in agent.believed(state, zero)], (success, cost), err_msg=str(seed))
        n, budget = (
            problem.num_tasks - 1 - int(rng.integers(problem.num_tasks)),
            int(rng.integers(1, problem.budget + 1)),
        )
        view = DecisionView(problem, zero, zero + n, zero + budget, zero, zero, zero.astype(bool), batch.groups)
        probs = agent.act(view, state)[0][0]
        left, offered = problem.num_tasks - 1 - n, problem.min_cost <= budget
        gain = [
            np.where(problem.min_cost[groups[n]] <= budget, problem.group_weight[groups[n]] * success[groups[n]], 0)
        ]
        price = [cost[groups[n]]]
        kinds = [(int(g), 1.0) for g in groups[n + 1 :]]
        if not problem.preview and left:
            kinds = [(g, left * p) for g, p in enumerate(problem.group_probability.mean(0))]
        for g, many in kinds:
            gain.append(np.where(offered[g], success[g], 0) * many * problem.group_weight[g])
            price.append(cost[g] * many)
        capacity = max(budget - problem.decision_cost * (left + 1), 0)
        best = solve_lp(np.array(gain, float), np.array(price, float), capacity)
        mine = solve_lp(np.array(gain, float), np.array(price, float), capacity, probs[1:])
        assert mine == pytest.approx(best, abs=1e-6), seed


def test_fading_online_lp_believes_what_came_after_a_change() -> None:
    """A price that quadruples and a model that fails half-way: only where answers fade is the change believed."""
    spec = tiny_spec(4, num_tasks=1, budget=12, feedback="cost+correct")
    problem, batch = public_problem(spec), draw_exams(spec, 0, [0])
    agents = [make_agent(name, problem) for name in ("online-lp-fading", "online-lp(strength=16)")]
    states = [agent.start(exams_view(batch, problem)) for agent in agents]
    zero, group = np.zeros(1, np.int64), int(batch.groups[0, 0])
    k = int(problem.min_cost[group].argmin())
    view = DecisionView(problem, zero, zero, zero + 12, zero, zero, zero.astype(bool), batch.groups)

    def answers(count: int, tokens: int, right: bool) -> list[tuple[float, float]]:
        told = Feedback(view, zero + k + 1, zero + tokens, np.array([right]), np.array([False]))
        for _ in range(count):
            states[:] = [agent.observe(told, state) for agent, state in zip(agents, states, strict=True)]
        found = [agent.believed(state, zero) for agent, state in zip(agents, states, strict=True)]
        return [(float(success[0, group, k]), float(cost[0, group, k])) for success, cost in found]

    before = answers(1000, 10, True)
    assert before[0] == pytest.approx(before[1], rel=0.1)
    fading, keeping = answers(1000, 40, False)
    assert fading[0] < 0.1 < 0.4 < keeping[0]
    assert keeping[1] < 27 < 36 < fading[1]


def as_lists(known: Estimates, names: tuple[str, ...] = ("count", "right", "tokens", "square")) -> list[np.ndarray]:
    return [getattr(known, name) for name in names]


def explored(kind: str, counts: list[np.ndarray], width: float, seed: int, exam: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates that a bandit practises with, cell by cell from the docstring's formulas."""
    count, right, tokens, square = counts
    success, cost = np.ones(count.shape), np.ones(count.shape)
    noise = normal_numbers(seed, exam, 2 * count.size)
    level = int(count.sum() + 2).bit_length()
    for i, (b, k) in enumerate(np.ndindex(*count.shape)):
        n = count[b, k]
        p = (right[b, k] + 1) / (n + 2)
        pooled = tokens[:, k].sum() / count[:, k].sum() if count[:, k].sum() else 1.0
        mean = max(tokens[b, k] / n if n else pooled, 1.0)
        deviation = np.sqrt(max(square[b, k] / n - (tokens[b, k] / n) ** 2, 0.0)) if n > 1 else mean
        if kind == "thompson":
            p += np.sqrt(p * (1 - p) / (n + 3)) * noise[i]
            mean += deviation / np.sqrt(max(n, 1)) * noise[count.size + i]
        elif n:
            p += np.sqrt(width * level * p * (1 - p) / n) + width * level / n
            mean -= np.sqrt(width * level / n) * deviation
        else:
            p, mean = 1.0, 1.0
        success[b, k], cost[b, k] = min(max(p, 0.0), 1.0), max(mean, 1.0)
    return success, cost


@pytest.mark.parametrize("kind", ["ucb", "thompson"])
def test_bandit_learns_what_a_slow_replay_learns(kind: str) -> None:
    """Training exams one by one: estimates by formula, actions by the stated numbers, the exam's rules in plain Python."""
    for seed in range(200):
        spec = tiny_spec(seed, beliefs="none")
        problem, practice = public_problem(spec), TrainingExams(spec, seed)
        agent = BanditWithKnapsacks(problem, kind=kind, training_exams=3, buckets=2)
        agent.train(practice, seed)
        reference, bucket = BanditWithKnapsacks(problem, kind=kind, buckets=2), key_buckets(problem, 2)
        counts = [np.zeros((int(bucket.max()) + 1, problem.num_tiers)) for _ in range(4)]
        for exam in range(3):
            success, cost = explored(kind, counts, agent.width, seed, exam)
            batch = practice.batch(1, exam)
            tokens, correct = (a[0] for a in batch.outcomes())
            numbers = action_numbers(np.uint64(practice.seed), batch.exam_ids, batch.replicates, problem.num_tasks)[0]
            remaining, zero = problem.budget, np.zeros(1, np.int64)
            for n in range(problem.num_tasks):
                view = DecisionView(
                    problem, zero, zero + n, zero + remaining, zero, zero, zero.astype(bool), batch.groups
                )
                # What it plays given estimates is compared with HiGHS in test_bandit_plays_the_relaxation.
                probs = reference.act(view, Estimates(*counts, success, cost))[0][0]
                action = int(np.flatnonzero((np.cumsum(probs) > numbers[n]) & (probs > 0))[0])
                k, due = action - 1, problem.decision_cost + (int(tokens[n, action - 1]) if action else 0)
                paid = min(due, remaining)
                if action:
                    spent, cell = paid - problem.decision_cost, (bucket[batch.groups[0, n]], k)
                    for total, more in zip(
                        counts, (1, bool(correct[n, k]) and due <= remaining, spent, spent**2), strict=True
                    ):
                        total[cell] += more
                remaining -= paid
                if remaining == 0:
                    break
        for found, wanted in zip(as_lists(agent._estimates), counts, strict=True):
            np.testing.assert_allclose(found, wanted, err_msg=str(seed))


def test_belief_planner_brackets_the_optimum() -> None:
    for seed in range(200):
        spec = tiny_spec(seed, 2, preview=True, feedback=["cost", "cost+correct"][seed % 2])
        problem, source = public_problem(spec), spec.source
        batch = draw_exams(spec, seed, [0])
        groups, dc = batch.groups[0], spec.decision_cost
        size = source.num_groups

        def outcomes(latent: int, group: int, tier: int) -> dict[tuple[int, bool], tuple[float, float]]:
            found: dict[tuple[int, bool], tuple[float, float]] = {}
            for cost, prob, success in zip(*source.published.cell(latent * size + group, tier), strict=True):
                if spec.feedback == "cost":
                    found[int(cost), False] = prob, success
                else:
                    found[int(cost), True], found[int(cost), False] = (success, success), (prob - success, 0.0)
            return found

        def value(n: int, budget: int, weights: tuple[float, float]) -> float:
            """Value times the probability of what was seen; ``weights``: joint probability with each latent state."""
            if n == len(groups) or sum(weights) <= 0:
                return 0.0
            options = [value(n + 1, budget - dc, weights) if budget >= dc else 0.0]
            for tier in range(problem.num_tiers):
                if problem.min_cost[groups[n], tier] > budget:
                    continue
                low, high = (outcomes(latent, int(groups[n]), tier) for latent in range(2))
                total = 0.0
                for seen in set(low) | set(high):
                    if seen[0] + dc > budget:
                        continue
                    pairs = low.get(seen, (0.0, 0.0)), high.get(seen, (0.0, 0.0))
                    total += problem.group_weight[groups[n]] * sum(
                        w * p[1] for w, p in zip(weights, pairs, strict=True)
                    )
                    joint = tuple(w * p[0] for w, p in zip(weights, pairs, strict=True))
                    total += value(n + 1, budget - dc - seen[0], joint)
                options.append(total)
            return max(options)

        exact = value(0, spec.budget, (0.5, 0.5))
        coarse, fine = (BeliefBellman(problem, points=points) for points in (5, 301))
        view = exams_view(batch, problem)
        assert coarse.start(view).tables.bound[0] >= exact - 1e-12
        assert fine.start(view).tables.bound[0] == pytest.approx(exact, abs=2e-3)
        # With a latent state, "optimum" is the same policy on the source's own laws.
        player = fine if seed % 2 else make_agent("optimum", problem, laws=source.published)
        played = evaluate_sampled(player, batch, replicates=2000 if seed < 20 else 400)
        assert played.score[0] == pytest.approx(exact, abs=5 * played.noise[0] + 5e-3)


def test_normal_numbers() -> None:
    numbers = normal_numbers(3, 7, 20_000)
    assert numbers.mean() == pytest.approx(0, abs=0.03)
    assert numbers.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "bellman",
        "plugin-bellman(attempts=60)",
        "hindsight-optimisation(scenarios=8)",
        "bwk-ucb(training_exams=10)",
        "bwk-thompson(training_exams=10)",
    ],
)
@pytest.mark.parametrize("preview", [True, False])
def test_saved_agents_come_back(name: str, preview: bool, tmp_path: Path) -> None:
    spec = exam_spec("heavy", num_tasks=3, decision_cost=1, preview=preview)
    problem = public_problem(spec)
    practice = TrainingExams(spec, 0)
    agents = [make_agent(name, problem) for _ in range(2)]
    for agent in agents:
        agent.train(practice, 5)
    save_agent(agents[0], tmp_path / "agent.npz")
    agents.append(load_agent(tmp_path / "agent.npz", problem))
    batch = draw_exams(spec, 0, np.arange(5))
    first, again, loaded = (evaluate_exact(agent, batch).value for agent in agents)
    np.testing.assert_array_equal(first, again)  # training is deterministic in its seed
    np.testing.assert_array_equal(first, loaded)


def test_optimum_is_not_savable_and_untrained_is_an_error(tmp_path: Path) -> None:
    spec = exam_spec("signal", num_tasks=3)
    problem = public_problem(spec)
    optimum = make_agent("optimum", problem, laws=spec.source.published)
    with pytest.raises(ValueError, match="cannot be saved"):
        save_agent(optimum, tmp_path / "agent.npz")
    batch = draw_exams(spec, 0, np.arange(5))
    with pytest.raises(ValueError, match="train"):
        evaluate_exact(make_agent("plugin-bellman", problem), batch)
    with pytest.raises(ValueError, match="latent"):
        make_agent("belief-bellman", problem)
    with pytest.raises(ValueError, match="beliefs"):
        evaluate_exact(make_agent("bellman", public_problem(spec.replace(beliefs="none"))), batch)


@pytest.mark.slow
def test_learners_reach_their_known_level() -> None:
    """Shares of the optimum measured independently before (signal, N = 10, t = .3): plug-in .982, UCB .93, TS .92."""
    spec = exam_spec("signal", beliefs="none")
    problem = public_problem(spec)
    batch = draw_exams(spec, 0, np.arange(40))
    best = references(batch, replicates=2, informed_draws=1).optimum.mean()
    for name, least in (("plugin-bellman", 0.94), ("bwk-ucb", 0.88), ("bwk-thompson", 0.88)):
        shares = []
        for seed in range(3):
            agent = make_agent(name, problem)
            agent.train(TrainingExams(spec, seed), seed)
            shares.append(evaluate_exact(agent, batch).score.mean() / best)
        assert least < np.mean(shares) < 1
