"""Every rule against a slow reference in plain Python: dual enumeration for LPs, recursion for dynamic programs."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import agents.planners
from agents.base import (
    AGENTS,
    DecisionView,
    ExamsView,
    Problem,
    exams_view,
    find_agent,
    load_agent,
    make_agent,
    public_problem,
    save_agent,
)
from agents.planners.lp import fill_curve, make_plan
from agents.planners.menu import make_menu, position_law
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.source import NOT_OFFERED
from tests.agents import test_learners
from tests.agents.problems import random_spec

# The planners without a table or training; test_learners.py has the others.
TABLES = ("hindsight_optimisation", "bandits", "dynamic_programming", "belief")
NAMES = [name for name, target, *_ in agents.planners._ENTRIES if not target.startswith(TABLES)]
BELIEFLESS = ["random", "skip", "fixed", "fixed-1", "fixed-2", "fixed-3"]
GAP = 1e-9


def decisions(problem: Problem, batch: ExamBatch, exam: Any, position: Any, remaining: Any) -> DecisionView:
    none = np.zeros(len(exam), np.int64)
    columns = (np.asarray(column, np.int64) for column in (exam, position, remaining))
    return DecisionView(problem, *columns, none, none, none.astype(bool), batch.groups)


def every_state(problem: Problem, batch: ExamBatch, rng: np.random.Generator, budgets: int = 4) -> DecisionView:
    """All (exam, position) with a few remaining budgets each."""
    rows = [
        (e, n, b)
        for e in range(len(batch))
        for n in range(problem.num_tasks)
        for b in sorted({problem.budget, *rng.integers(1, problem.budget + 1, budgets).tolist()})
    ]
    return decisions(problem, batch, *np.array(rows).T)


@lru_cache(maxsize=1)
def cases() -> list[tuple[Problem, ExamBatch, ExamsView, DecisionView]]:
    """50 random problems with 4 exams each: 200 exams."""
    out = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        spec = random_spec(rng, max_tiers=8 if seed % 10 == 0 else 4)
        batch, problem = draw_exams(spec, seed, np.arange(4)), public_problem(spec)
        out.append((problem, batch, exams_view(batch, problem), every_state(problem, batch, rng)))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The reference


class Reference:
    """Slow answers to one problem's questions, from its beliefs and nothing else."""

    def __init__(self, problem: Problem, groups: np.ndarray) -> None:
        self.problem, self.groups = problem, groups.tolist()
        self.tiers: list[list[tuple[int, float, float]]] = []  # per group: (tier, value, expected tokens)
        assert problem.beliefs is not None
        for g in range(problem.num_groups):
            row = []
            for k in range(problem.num_tiers):
                if problem.min_cost[g, k] < NOT_OFFERED:
                    entries = self.cell(g, k)
                    value = problem.group_weight[g] * sum(s for _, _, s in entries)
                    row.append((k, value, sum(c * p for c, p, _ in entries)))
            self.tiers.append(row)
        self.value = {(g, k): v for g, row in enumerate(self.tiers) for k, v, _ in row}
        self.tokens = {(g, k): c for g, row in enumerate(self.tiers) for k, _, c in row}
        share = np.mean(
            [problem.group_probability[n % len(problem.group_probability)] for n in range(problem.num_tasks)], 0
        )
        self.share = share.tolist()
        self.law = self.positions()
        self.solve = cache(self._solve)
        self.mean_value = cache(self._mean_value)

    def cell(self, g: int, k: int) -> list[tuple[int, float, float]]:
        assert self.problem.beliefs is not None
        return list(zip(*(a.tolist() for a in self.problem.beliefs.cell(g, k)), strict=True))

    def positions(self) -> list[list[float]]:
        """Group law of every position, by enumeration of all exams."""
        p = self.problem
        slots = [p.group_probability[n % len(p.group_probability)] for n in range(p.num_tasks)]
        if p.order == "given":
            return [slot.tolist() for slot in slots]
        if p.order == "random":
            return [self.share] * p.num_tasks
        law = np.zeros((p.num_tasks, p.num_groups))
        sign = 1 if p.order == "easy_first" else -1
        for exam in itertools.product(range(p.num_groups), repeat=p.num_tasks):
            for n, g in enumerate(sorted(exam, key=lambda g: sign * p.group_key[g])):
                law[n, g] += np.prod([slot[g] for slot, g in zip(slots, exam, strict=True)])
        return law.tolist()

    def tasks(self, exam: int, first: int, extra: int = -1) -> tuple[tuple[float, int], ...]:
        """(mass, group) of tasks ``first``.. as the planner sees them, besides a known one."""
        mass: defaultdict[int, float] = defaultdict(float)
        if extra >= 0:
            mass[extra] += 1
        for n in range(first, self.problem.num_tasks):
            if self.problem.preview:
                mass[self.groups[exam][n]] += 1
            else:
                for g, share in enumerate(self.law[n]):
                    mass[g] += share
        return tuple(sorted((m, g) for g, m in mass.items() if m > 0))

    def room(self, first: int, remaining: int) -> int:
        """Tokens for attempts at tasks ``first``.. when every decision is paid."""
        return max(remaining - self.problem.decision_cost * (self.problem.num_tasks - first), 0)

    def _solve(self, tasks: tuple[tuple[float, int], ...], budget: float) -> tuple[float, float]:
        """(value, price) of the fluid LP: its Lagrangian dual, minimised over every possible breakpoint."""
        lines = [(m, [(0.0, 0.0), *((v, c) for _, v, c in self.tiers[g])]) for m, g in tasks]
        slopes = {0.0}
        for _, points in lines:
            for (v0, c0), (v1, c1) in itertools.combinations(points, 2):
                if c1 != c0:
                    slopes.add(max((v1 - v0) / (c1 - c0), 0.0))
        dual = {x: x * budget + sum(m * max(v - x * c for v, c in points) for m, points in lines) for x in slopes}
        best = min(dual.values())
        return best, min(x for x, d in dual.items() if d < best + 1e-11)

    def surplus(self, g: int, price: float, remaining: int | None = None) -> dict[int, float]:
        """Action -> value - price x tokens; guarded by a remaining budget where one is given."""
        scores = {0: 0.0}
        for k, v, c in self.tiers[g]:
            if remaining is not None:
                b = remaining - self.problem.decision_cost
                v = self.problem.group_weight[g] * sum(s for t, _, s in self.cell(g, k) if t <= b)
                c = sum(p * min(t, b) for t, p, _ in self.cell(g, k))
            scores[k + 1] = v - price * c
        return scores

    def bought(self, tasks: tuple[tuple[float, int], ...], price: float) -> float:
        """Tokens of everything that is better than the price."""
        total = 0.0
        for m, g in tasks:
            scores = self.surplus(g, price)
            best = max(scores.values())
            total += m * min(self.tokens.get((g, a - 1), 0.0) for a, s in scores.items() if s > best - GAP)
        return total

    def _mean_value(self, exam: int, n: int, b: int) -> float:
        """Value of the dynamic program on mean costs."""
        if n == self.problem.num_tasks or b < 0:
            return 0.0
        if self.problem.preview:
            return max(self.mean_scores(exam, n, self.groups[exam][n], b).values())
        return sum(p * max(self.mean_scores(exam, n, g, b).values()) for g, p in enumerate(self.law[n]) if p > 0)

    def mean_scores(self, exam: int, n: int, g: int, b: int) -> dict[int, float]:
        b -= self.problem.decision_cost
        scores = {0: self.mean_value(exam, n + 1, b)}
        for k, v, c in self.tiers[g]:
            tokens = max(1, int(c + 0.5 + 1e-9))
            if tokens <= b:
                scores[k + 1] = v + self.mean_value(exam, n + 1, b - tokens)
        return scores


@lru_cache(maxsize=1)
def references() -> list[Reference]:
    return [Reference(problem, batch.groups) for problem, batch, _, _ in cases()]


Score = Callable[[Reference, int, int, int, int], dict[int, float]]


def asked(
    name: str, **params: Any
) -> Iterator[tuple[Reference, Any, list[tuple[int, int, int, int, int]], np.ndarray]]:
    """Per problem: reference, agent, decisions (exam, position, group, remaining, action) and mask."""
    for (problem, _, exams, view), reference in zip(cases(), references(), strict=True):
        agent = make_agent(name, problem, **params)
        probs, _ = agent.act(view, agent.start(exams))
        assert ((probs == 0) | (probs == 1)).all()
        columns = (view.exam, view.position, view.group, view.remaining, probs.argmax(1))
        yield reference, agent, list(zip(*(c.tolist() for c in columns), strict=True)), view.mask


def check(name: str, score: Score, **params: Any) -> None:
    """The agent's action is legal and as good as any legal one, up to rounding."""
    for reference, _, rows, mask in asked(name, **params):
        for (e, n, g, b, action), legal in zip(rows, mask, strict=True):
            scores = score(reference, e, n, g, b)
            best = max(s for a, s in scores.items() if legal[a])
            assert legal[action], (name, e, n, b)
            assert scores[action] > best - GAP, (name, e, n, g, b, action, scores)


# ---------------------------------------------------------------------------------------------------------------------
# Agreement


def test_random_and_skip() -> None:
    for problem, _, exams, view in cases():
        probs, _ = make_agent("random", problem).act(view, make_agent("random", problem).start(exams))
        skips, _ = make_agent("skip", problem).act(view, None)
        for row, skip, g, b in zip(probs, skips, view.group, view.remaining, strict=True):
            legal = [True, *(problem.min_cost[g, k] <= b for k in range(problem.num_tiers))]
            assert row.tolist() == pytest.approx([ok / sum(legal) for ok in legal], abs=1e-15)
            assert skip.tolist() == [1.0] + [0.0] * problem.num_tiers


@pytest.mark.parametrize(("name", "tier"), [("fixed-1", 1), ("fixed-2", 2), ("fixed-3", 3), ("fixed", 99)])
def test_fixed(name: str, tier: int) -> None:
    for reference, _, rows, mask in asked(name):
        for (*_, action), legal in zip(rows, mask, strict=True):
            wanted = min(tier, reference.problem.num_tiers)
            assert action == (wanted if legal[wanted] else 0)


def test_every_tier_has_its_fixed_agent(tmp_path: Path) -> None:
    wide = dataclasses.replace(cases()[0][0], tier_names=tuple("abcdefghijkl"))
    for tier in (1, 4, 5, 12):
        agent = make_agent(f"fixed-{tier}", wide)
        assert (agent.name, agent.params(), agent.action) == (f"fixed-{tier}", {"tier": tier}, tier)  # type: ignore[attr-defined]
        save_agent(agent, tmp_path / "a.npz")
        assert load_agent(tmp_path / "a.npz", wide).params() == {"tier": tier}
    for bad in ("fixed-0", "fixed-05", "fixed-x", "fixed--1", "fixed-"):
        with pytest.raises(ValueError, match=f"unknown agent '{bad}'.*fixed-K for every tier"):
            make_agent(bad, wide)


def test_fixed_by_name_and_errors() -> None:
    problem = cases()[0][0]
    assert make_agent("fixed", problem, tier="t0").action == 1  # type: ignore[attr-defined]
    for bad in ("nope", 0, True):
        with pytest.raises(ValueError, match="tier must be"):
            make_agent("fixed", problem, tier=bad)


@pytest.mark.parametrize("name", ["uniform-share", "remaining-share"])
def test_shares(name: str) -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        p = r.problem
        share = p.budget / p.num_tasks if name == "uniform-share" else b / (p.num_tasks - n)
        fits = {k + 1: v for k, v, c in r.tiers[g] if c + p.decision_cost <= share + GAP}
        return {a: fits.get(a, -1.0) for a in range(p.num_tiers + 1)} | {0: 0.0}

    check(name, score)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3])
def test_roi(threshold: float) -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        fits = {k + 1: v for k, v, c in r.tiers[g] if v / (c + r.problem.decision_cost) >= threshold}
        return {a: fits.get(a, -1.0) for a in range(r.problem.num_tiers + 1)} | {0: 0.0}

    check("roi", score, threshold=threshold)


def test_roi_training_keeps_the_best_threshold() -> None:
    problem = public_problem(random_spec(np.random.default_rng(3), max_tiers=4, num_tasks=4))
    tried: list[float] = []

    class Stub:
        def score(self, agent: Any, count: int, start: int = 0) -> float:
            tried.append(agent.threshold)
            return -abs(len(tried) - 4)

    agent: Any = make_agent("roi", problem)
    agent.train(Stub(), 0)
    assert agent.threshold == tried[min(3, len(tried) - 1)]
    assert tried == sorted(set(tried))
    fixed: Any = make_agent("roi", problem, threshold=0.25)
    fixed.train(Stub(), 0)
    assert fixed.threshold == 0.25


def frontier_slopes(r: Reference, g: int) -> list[float]:
    """Incremental efficiencies: where the best choice changes as the price falls, by brute force over prices."""
    slopes, cost, value = [], 0.0, 0.0
    while True:
        steps = [((v - value) / (c - cost), -c, v) for _, v, c in r.tiers[g] if c > cost + GAP and v > value + GAP]
        if not steps:
            return slopes
        best = max(s for s, _, _ in steps)
        slope, cost, value = min(
            (s, -c, v)
            for s, c, v in steps
            if s > best - 1e-12 and c == min(c2 for s2, c2, _ in steps if s2 > best - 1e-12)
        )
        slopes.append(slope)


def population_price(r: Reference, budget: float) -> float:
    tasks = tuple((m, g) for g, m in enumerate(r.share) if m > 0)
    return r.solve(tasks, max(budget, 0.0))[1]


def test_zcl() -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        weighted = sorted(
            (s, r.share[j]) for j in range(r.problem.num_groups) for s in frontier_slopes(r, j) if r.share[j]
        )
        if not weighted:
            return r.surplus(g, 0.0)
        below, total = 0.0, sum(m for _, m in weighted)
        low = high = -1.0
        for s, m in weighted:
            below += m
            low = s if low < 0 and below >= 0.05 * total - 1e-12 else low
            high = s if high < 0 and below >= 0.95 * total - 1e-12 else high
        z = 1 - b / r.problem.budget
        return r.surplus(g, (high * np.e / low) ** z * low / np.e)

    check("zcl", score)


def test_population_bid_price() -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        price = population_price(r, b / (r.problem.num_tasks - n) - r.problem.decision_cost)
        return r.surplus(g, price, b)

    check("population-bid-price", score)


def test_dual_descent() -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        p = r.problem
        rho, price = p.budget / p.num_tasks, population_price(r, p.budget / p.num_tasks - p.decision_cost)
        price *= np.exp(0.1 * (p.budget - b) / rho)  # any split of what was spent over the tasks gives the same
        for _ in range(n):
            price *= np.exp(-0.1)
        return r.surplus(g, price)

    check("dual-descent", score)


def rest(r: Reference, e: int, n: int, g: int, b: int) -> tuple[tuple[tuple[float, int], ...], int]:
    """Tasks and room of the LP of the current and all later tasks."""
    return r.tasks(e, n) if r.problem.preview else r.tasks(e, n + 1, g), r.room(n, b)


def test_bid_price() -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        p = r.problem
        if not p.preview:
            return r.surplus(g, population_price(r, p.budget / p.num_tasks - p.decision_cost))
        return r.surplus(g, r.solve(r.tasks(e, 0), r.room(0, p.budget))[1])

    check("bid-price", score)


@pytest.mark.parametrize("name", ["resolve", "resolve-guarded"])
def test_resolve(name: str) -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        return r.surplus(g, r.solve(*rest(r, e, n, g, b))[1], b if name == "resolve-guarded" else None)

    check(name, score)


def test_rounding_of_the_increment_bought_in_part() -> None:
    """Where the price leaves a tie between two choices, the dearer one is played if half of the step is paid for."""
    ties = 0
    for name in ("resolve", "bid-price"):
        for r, _, rows, mask in asked(name):
            p = r.problem
            if name == "bid-price" and not p.preview:
                continue
            for (e, n, g, b, action), legal in zip(rows, mask, strict=True):
                first, budget = (n, b) if name == "resolve" else (0, p.budget)
                tasks, room = (r.tasks(e, first) if p.preview else r.tasks(e, n + 1, g)), r.room(first, budget)
                price = r.solve(tasks, room)[1]
                scores = r.surplus(g, price)
                best = max(scores.values())
                tied = sorted((r.tokens.get((g, a - 1), 0.0), a) for a, s in scores.items() if s > best - GAP)
                if len(tied) != 2 or not all(legal[a] for _, a in tied) or price == 0:
                    continue
                step = tied[1][0] - tied[0][0]
                left = room - r.bought(tasks, price) - step * sum(r.groups[e][m] == g for m in range(first, n))
                if abs(2 * left - step) > GAP and step > GAP:
                    ties += 1
                    assert action == tied[2 * left > step][1], (name, e, n, g, b)
    assert ties > 200


def test_resolve_few_keeps_prices_between_solutions() -> None:
    for (problem, batch, exams, _), r in zip(cases(), references(), strict=True):
        agent = make_agent("resolve-few", problem, times=2)
        state, size = agent.start(exams), len(batch)
        last: list[float] = [0.0] * size
        remaining = np.full(size, problem.budget)
        for n in range(problem.num_tasks):
            view = decisions(problem, batch, np.arange(size), np.full(size, n), remaining)
            probs, state = agent.act(view, state)
            for e, (g, b, action) in enumerate(zip(view.group.tolist(), remaining, probs.argmax(1), strict=True)):
                if n in (0, problem.num_tasks // 2):
                    last[e] = r.solve(*rest(r, e, n, g, int(b)))[1]
                scores = r.surplus(g, last[e])
                assert view.mask[e, action]
                assert scores[action] > max(s for a, s in scores.items() if view.mask[e, a]) - GAP
            remaining = np.maximum(remaining - 2, 1)


def test_lp_lookahead() -> None:
    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        tasks, b = r.tasks(e, n + 1), b - r.problem.decision_cost

        def later(left: int) -> float:
            return r.solve(tasks, r.room(n + 1, left))[0]

        scores = {0: later(b) if b >= 0 else 0.0}
        for k, _, _ in r.tiers[g]:
            w = r.problem.group_weight[g]
            scores[k + 1] = sum(w * s + p * later(b - c) for c, p, s in r.cell(g, k) if c <= b)
        return scores

    check("lp-lookahead", score)


@pytest.mark.parametrize("limit", [1 << 29, 0])
def test_mean_cost_dp(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.planners.mean_dp.TABLE_BYTES", limit)

    def score(r: Reference, e: int, n: int, g: int, b: int) -> dict[int, float]:
        scores = r.mean_scores(e, n, g, b)
        return {a: scores.get(a, -1.0) for a in range(r.problem.num_tiers + 1)}

    check("ce-dp", score)


def test_greedy_knapsack() -> None:
    for r, _, rows, mask in asked("greedy-knapsack"):
        p = r.problem
        edges = [0, *p.level_edges.tolist()]
        level: list[int] = []
        for g in range(p.num_groups):
            success = {k: round(v / p.group_weight[g], 12) for k, v, _ in r.tiers[g]}
            enough = [k for k, s in success.items() if s >= 0.5]
            top = max(success.values(), default=0.0)
            if not success or top < 0.1:
                level.append(-1)
            else:
                level.append(enough[0] if enough else next(k for k, s in success.items() if s == top))
        centroid = [(edges[k] + edges[k + 1]) / 2 if k >= 0 else 0.0 for k in level]
        room = p.budget - p.num_tasks * p.decision_cost
        for (e, n, g, _, action), legal in zip(rows, mask, strict=True):
            if p.preview:
                kept, total = set(), 0.0
                for c, m in sorted((centroid[r.groups[e][m]], m) for m in range(p.num_tasks)):
                    total += c
                    if total > room:
                        break
                    kept.add(m)
                keep = n in kept
            else:
                total = centroid[g]
                for m in range(p.num_tasks):
                    for h, share in enumerate(r.law[m]):
                        if (m != n and centroid[h] < centroid[g]) or (m < n and centroid[h] == centroid[g]):
                            total += share * centroid[h]
                if abs(total - room) < GAP:
                    continue
                keep = total <= room
            wanted = level[g] + 1
            assert action == (wanted if keep and legal[wanted] else 0), (e, n, g)


def test_paper_centroids() -> None:
    from roi_env.exams.config import exam_spec

    agent: Any = make_agent("greedy-knapsack", public_problem(exam_spec("paper", budget=1024)))
    assert set((agent.centroid2 / 2).tolist()) <= {0.0, 128.0, 384.0, 768.0}
    assert agent.action[2] == 0  # AIME is refused


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def test_fluid_lp_equals_highs() -> None:
    """Values of the sorted list and of the reference's dual equal HiGHS's primal, prices its dual."""
    for (problem, _, exams, _), r in list(zip(cases(), references(), strict=True))[:30]:
        menu = make_menu(problem, problem.require_beliefs("test"))
        plan = make_plan(exams, menu)
        room = problem.num_groups * problem.num_tiers + problem.num_tasks * problem.num_tiers + 2
        tokens, gain, slope = (np.zeros(room) for _ in range(3))
        count = fill_curve(menu, plan, 0, 0, -1, tokens, gain, slope, np.zeros(room, np.int64))
        tasks = r.tasks(0, 0)
        columns = [(m, i, v, c) for i, (m, g) in enumerate(tasks) for _, v, c in r.tiers[g]]
        if not columns:
            assert count == 0
            continue
        once = np.array([[float(i == j) for _, j, _, _ in columns] for i in range(len(tasks))])
        rows = np.vstack([[c for _, _, _, c in columns], once])
        for budget in (0.0, problem.budget / 3, float(problem.budget)):
            limits = [budget, *(m for m, _ in tasks)]
            result = linprog([-v for _, _, v, _ in columns], A_ub=rows, b_ub=limits, method="highs")
            j = int(np.searchsorted(tokens[1 : count + 1], budget, side="right"))
            assert gain[j] + (budget - tokens[j]) * slope[j] == pytest.approx(-result.fun, abs=1e-9)
            value, price = r.solve(tasks, budget)
            assert value == pytest.approx(-result.fun, abs=1e-9)
            assert slope[j] == pytest.approx(price, abs=1e-9)
            inside = count and all(abs(t - budget) > 1e-6 for t in tokens[: count + 1])
            if inside:
                assert slope[j] == pytest.approx(-result.ineqlin.marginals[0], abs=1e-9)


def test_position_law_equals_enumeration() -> None:
    for (problem, *_), r in zip(cases(), references(), strict=True):
        np.testing.assert_allclose(position_law(problem), r.law, atol=1e-12)


@pytest.mark.parametrize("name", ["zcl", "dual-descent"])
@pytest.mark.parametrize("family", ["known", "signal", "heavy", "cap", "latent"])
def test_no_action_hangs_on_the_last_bits_of_a_price(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp and log differ between machines by about 1e-16 of their value; exp(0) is 1 everywhere."""
    problem = public_problem(exam_spec(family))
    remaining = np.tile(np.arange(1, problem.budget + 1), problem.num_groups)
    group = np.repeat(np.arange(problem.num_groups), problem.budget)
    groups = np.arange(problem.num_groups, dtype=np.int32)[:, None].repeat(problem.num_tasks, 1)
    none = np.zeros(len(group), np.int64)
    exact = np.exp
    for position in range(0, problem.num_tasks, 3):
        view = DecisionView(problem, group, none + position, remaining, none, none, none.astype(bool), groups)
        found = []
        for error in (0.0, 1e-13, -1e-13):
            with monkeypatch.context() as patched:
                patched.setattr(np, "exp", lambda x, error=error: exact(x) * np.where(x == 0, 1.0, 1.0 + error))
                found.append(make_agent(name, problem).act(view, None)[0])
        assert (found[0] == found[1]).all()
        assert (found[0] == found[2]).all()
        assert 0 < found[0][:, 0].mean() < 1


# ---------------------------------------------------------------------------------------------------------------------
# The interface


@settings(max_examples=25, deadline=None)
@given(st.integers(1000, 1_000_000))
def test_probabilities_respect_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = random_spec(rng, max_tiers=8)
    problem, batch = public_problem(spec), draw_exams(spec, seed, np.arange(3))
    view = every_state(problem, batch, rng)
    for name in NAMES:
        agent = make_agent(name, problem)
        probs, _ = agent.act(view, agent.start(exams_view(batch, problem)))
        assert probs.shape == (len(view), problem.num_tiers + 1)
        np.testing.assert_allclose(probs.sum(1), 1.0, atol=1e-12)
        assert (probs >= 0).all()
        assert (probs[~view.mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_change_answers(name: str) -> None:
    for problem, batch, exams, view in cases()[:12]:
        agent = make_agent(name, problem)
        if not agent.markov:  # one decision per exam and call, at its first position
            first = np.flatnonzero((view.position == 0) & (view.remaining == problem.budget))
            view = decisions(problem, batch, view.exam[first], view.position[first], view.remaining[first])
        together, _ = agent.act(view, agent.start(exams))
        order = np.random.default_rng(0).permutation(len(view))
        shuffled = decisions(problem, batch, view.exam[order], view.position[order], view.remaining[order])
        np.testing.assert_array_equal(agent.act(shuffled, agent.start(exams))[0], together[order])
        for e in range(len(batch)):
            alone, rows = batch.take(slice(e, e + 1)), np.flatnonzero(view.exam == e)[:3]
            part = decisions(problem, alone, np.zeros(len(rows)), view.position[rows], view.remaining[rows])
            got, _ = agent.act(part, agent.start(exams_view(alone, problem)))
            np.testing.assert_array_equal(got, together[rows])


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    problem, _, exams, view = cases()[3]
    agent: Any = make_agent(name, problem)
    if name == "roi":
        agent.threshold = 0.17
    save_agent(agent, tmp_path / "agent.npz")
    loaded: Any = load_agent(tmp_path / "agent.npz", problem)
    assert (loaded.name, loaded.params()) == (agent.name, agent.params())
    np.testing.assert_array_equal(loaded.act(view, loaded.start(exams))[0], agent.act(view, agent.start(exams))[0])
    if name == "roi":
        assert loaded.threshold == 0.17


@pytest.mark.parametrize("name", NAMES)
def test_without_beliefs(name: str) -> None:
    rng = np.random.default_rng(5)
    spec = random_spec(rng, beliefs="none")
    problem, batch = public_problem(spec), draw_exams(spec, 0, np.arange(2))
    if name not in BELIEFLESS:
        entry = find_agent(name)
        assert entry is not None
        with pytest.raises(ValueError, match=f"'{getattr(entry.load(), 'name', name)}'.*beliefs"):
            make_agent(name, problem)
        return
    agent = make_agent(name, problem)
    probs, _ = agent.act(every_state(problem, batch, rng), agent.start(exams_view(batch, problem)))
    np.testing.assert_allclose(probs.sum(1), 1.0)


REFERENCE_TESTS = {
    "random": "test_random_and_skip",
    "skip": "test_random_and_skip",
    "fixed": "test_fixed",
    "fixed-1": "test_fixed",
    "fixed-2": "test_fixed",
    "fixed-3": "test_fixed",
    "uniform-share": "test_shares",
    "remaining-share": "test_shares",
    "roi": "test_roi_training_finds_the_best_threshold",
    "zcl": "test_zcl",
    "bid-price": "test_bid_price",
    "population-bid-price": "test_population_bid_price",
    "dual-descent": "test_dual_descent",
    "resolve": "test_resolve",
    "resolve-few": "test_resolve_few_keeps_prices_between_solutions",
    "resolve-guarded": "test_resolve",
    "lp-lookahead": "test_lp_lookahead",
    "ce-dp": "test_mean_cost_dp",
    "greedy-knapsack": "test_greedy_knapsack",
    "hindsight-optimisation": "test_hindsight_optimisation_equals_brute_force",
    "bwk-ucb": "test_bandit_learns_what_a_slow_replay_learns",
    "bwk-thompson": "test_bandit_learns_what_a_slow_replay_learns",
    "plugin-bellman": "test_plugin_equals_recursion_on_counts",
    "bellman": "test_bellman_equals_recursion",
    "online-lp": "test_online_lp_plays_the_relaxation_of_its_posterior",
    "online-lp-fading": "test_online_lp_plays_the_relaxation_of_its_posterior",
    "belief-bellman": "test_belief_planner_brackets_the_optimum",
    "optimum": "test_optimum_equals_recursion_on_its_own_laws",
}
"""The test of every planner against an independent slow reference, on 200 random small exams."""


def test_every_planner_has_a_slow_reference() -> None:
    assert set(REFERENCE_TESTS) == {name for name, *_ in agents.planners._ENTRIES}
    for test in REFERENCE_TESTS.values():
        assert callable(globals().get(test) or getattr(test_learners, test))
    assert sum(len(batch) for _, batch, _, _ in cases()) >= 200


def test_registry_lists_the_planners() -> None:
    for name in NAMES:
        assert AGENTS[name].summary
        assert not AGENTS[name].privileged
