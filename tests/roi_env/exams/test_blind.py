"""The blind optimum against expectimax over every observable history, written without any state but the history."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from math import factorial, prod

import numpy as np
import pytest

from agents.base import exams_view, public_problem
from agents.planners.dynamic_programming import TrueBellman
from agents.planners.menu import position_law
from agents.playing import evaluate_exact
from roi_env.exams.arrivals import arrivals, order_key
from roi_env.exams.config import ORDERS, ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.source import Source, Tier, laws_from_outcomes, published_laws

LAYOUTS = ("one", "equal", "disjoint", "shared", "one group each")


def small_source(rng: np.random.Generator, layout: str) -> Source:
    """2-4 groups, 1-3 strata of up to 5 rows, 1-2 tiers, up to 3 outcomes of 1-4 tokens; keys may tie."""
    strata = 1 if layout == "one" else int(rng.integers(2, 4))
    groups = strata if layout == "one group each" else int(rng.integers(max(2, strata), 5))
    tiers = int(rng.integers(1, 3))
    rows: list[np.ndarray] = []
    for s in range(strata):
        size = int(rng.integers(2, 6))
        if layout == "equal" and s:
            rows.append(rows[0])
        elif layout == "disjoint":
            rows.append(rng.choice(np.arange(s, groups, strata), size))
        elif layout == "one group each":
            rows.append(np.full(size, s))
        else:
            rows.append(rng.integers(groups, size=size))
    row_group = np.concatenate(rows).astype(np.int32)
    groups = int(row_group.max()) + 1
    missing = np.setdiff1d(np.arange(groups), row_group)
    row_group = (row_group - np.searchsorted(missing, row_group)).astype(np.int32)
    groups -= len(missing)
    count = rng.integers(1, 4, groups * tiers).astype(np.int32)
    start = (np.cumsum(count) - count).astype(np.int32)
    outcomes = (rng.integers(1, 5, count.sum()) << 1 | rng.integers(2, size=count.sum())).astype(np.uint32)
    laws = laws_from_outcomes(start, count, outcomes, tiers)
    published = published_laws(laws, row_group, row_group, groups, 1)
    given = np.zeros(groups, np.int32) if rng.random() < 0.5 else rng.integers(3, size=groups).astype(np.int32)
    return Source(
        name=layout,
        tiers=tuple(Tier(f"t{k}", 4) for k in range(tiers)),
        row_item=row_group,
        row_group=row_group,
        row_given=given[row_group],
        strata=np.cumsum([0, *map(len, rows)]).astype(np.int32),
        replacement=True,
        outcome_start=start,
        outcome_count=count,
        outcomes=outcomes,
        num_latent=1,
        coupling="independent",
        group_features=np.eye(groups, dtype=np.float32),
        feature_names=tuple(f"g{g}" for g in range(groups)),
        group_weight=rng.integers(1, 4, groups).astype(float),
        group_key=rng.integers(groups, size=groups).astype(np.int32),
        group_names=tuple(f"g{g}" for g in range(groups)),
        published=published,
        beliefs=published,
        paired=False,
        synthetic=True,
    )


def sequences(spec: ExamSpec) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of rows in presentation order, by drawing every slot and ordering the slots."""
    source, num_tasks = spec.source, spec.num_tasks
    slots = [range(*source.strata[n % source.num_strata :][:2]) for n in range(num_tasks)]
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for rows in itertools.product(*slots):
        p = prod(1 / len(slot) for slot in slots)
        if spec.order == "random":
            for order in itertools.permutations(rows):
                found[order] += p / factorial(num_tasks)
        else:
            rank = {
                "easy_first": lambda row: source.group_key[source.row_group[row]],
                "hard_first": lambda row: -source.group_key[source.row_group[row]],
                "given": lambda row: source.row_given[row],
            }[spec.order]
            found[tuple(sorted(rows, key=rank))] += p
    return found


def expectimax(spec: ExamSpec) -> float:
    """Value of the best policy of everything seen: all groups so far and the remaining budget."""
    source, law = spec.source, sequences(spec)
    mass: dict[tuple[int, ...], float] = defaultdict(float)
    for rows, p in law.items():
        seen = tuple(int(source.row_group[row]) for row in rows)
        for n in range(spec.num_tasks + 1):
            mass[seen[:n]] += p

    def before(seen: tuple[int, ...], budget: int) -> float:
        if len(seen) == spec.num_tasks:
            return 0.0
        total = 0.0
        for g in range(source.num_groups):
            longer = (*seen, g)
            if mass.get(longer, 0.0) > 0:
                total += mass[longer] / mass[seen] * decide(longer, budget)
        return total

    def decide(seen: tuple[int, ...], budget: int) -> float:
        group, dc = seen[-1], spec.decision_cost
        options = [before(seen, budget - dc) if budget >= dc else 0.0]
        for k in range(source.num_tiers):
            total = 0.0
            for cost, q, s in zip(*source.published.cell(group, k), strict=True):
                if cost + dc <= budget:
                    total += source.group_weight[group] * s + q * before(seen, budget - dc - int(cost))
            options.append(total)
        return max(options)

    return before((), spec.budget)


def random_blind_spec(rng: np.random.Generator, order: str, layout: str) -> ExamSpec:
    return exam_spec(
        small_source(rng, layout),
        num_tasks=int(rng.integers(2, 4)),
        budget=int(rng.integers(2, 9)),
        order=order,
        preview=False,
        decision_cost=int(rng.integers(2)),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_blind_optimum_equals_expectimax_over_histories(order: str, layout: str) -> None:
    """Planned value, and the exactly evaluated policy over all exams, weighted by their probability."""
    rng = np.random.default_rng([ORDERS.index(order), LAYOUTS.index(layout)])
    for _ in range(15):
        spec = random_blind_spec(rng, order, layout)
        problem, law = public_problem(spec), sequences(spec)
        assert problem.arrivals.exact
        expected = expectimax(spec)
        agent = TrueBellman(problem, spec.source.published)
        rows = np.array(list(law), np.int32)
        ids = np.arange(len(rows))
        batch = ExamBatch(spec, 0, ids, 0 * ids, rows, np.zeros_like(rows), np.zeros(len(rows), np.int32))
        played = np.array(list(law.values())) @ evaluate_exact(agent, batch, law="published").score
        assert played == pytest.approx(expected, abs=1e-12)
        start = problem.arrivals.laws[0]
        first = problem.arrivals.groups[0][start.node]
        planned = start.prob @ agent.start(exams_view(draw_exams(spec, 0, [0]), agent.problem)).value[first]
        assert planned == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_sequences_have_their_probability(order: str, layout: str) -> None:
    """Longer exams than expectimax can take: products of the laws against the drawn slots."""
    rng = np.random.default_rng([7, ORDERS.index(order), LAYOUTS.index(layout)])
    for _ in range(3):
        spec = exam_spec(small_source(rng, layout), num_tasks=5, budget=5, order=order, preview=False)
        if prod(np.diff(spec.source.strata)[np.arange(5) % spec.source.num_strata]) > 1200:
            continue
        counted: dict[tuple[int, ...], float] = defaultdict(float)
        for rows, p in sequences(spec).items():
            counted[tuple(int(spec.source.row_group[row]) for row in rows)] += p
        law = public_problem(spec).arrivals
        for seen, p in counted.items():
            state, found = 0, 1.0
            for n in range(5):
                node = int(law.walk(np.array([seen[: n + 1]]))[0])
                mixture = law.laws[n]
                span = slice(*mixture.start[state : state + 2])
                found *= mixture.prob[span][mixture.node[span] == node].sum()
                state = int(law.states[n][node])
            assert found == pytest.approx(p, abs=1e-13)


def test_drawn_exams_follow_the_law() -> None:
    """Frequencies of the environment's own exams: ranks, strata and ties as it draws them."""
    rng = np.random.default_rng(5)
    for order in ORDERS:
        spec = exam_spec(small_source(rng, "shared"), num_tasks=4, budget=5, order=order, preview=False)
        groups = draw_exams(spec, 0, np.arange(40_000)).groups
        law = public_problem(spec).arrivals
        expected = np.ones(1)
        for n in range(4):
            mixture = law.laws[n]
            source = np.repeat(np.arange(len(mixture.start) - 1), np.diff(mixture.start))
            reached = np.bincount(mixture.node, expected[source] * mixture.prob, len(law.groups[n]))
            node = law.walk(groups[:, : n + 1])
            assert (node >= 0).all()
            counted = np.bincount(node, minlength=len(reached)) / len(groups)
            np.testing.assert_allclose(counted, reached, atol=5 * np.sqrt(0.25 / len(groups)))
            expected = np.bincount(law.states[n], reached)


def test_many_states_are_bounded() -> None:
    rng = np.random.default_rng(1)
    source = small_source(rng, "shared")
    key = order_key("easy_first", source.group_key, source.given_key)
    mixed = arrivals(6, source.group_probability, key, max_states=10)
    assert not mixed.exact
    for law in mixed.laws:
        np.testing.assert_allclose(np.add.reduceat(law.prob, law.start[:-1]), 1)
    assert arrivals(6, source.group_probability[:1], key, max_states=10).exact


def test_given_order_publishes_blocks_of_groups() -> None:
    source = small_source(np.random.default_rng(0), "disjoint")
    source = dataclasses.replace(
        source,
        row_group=np.array([0, 0, 1, 1, 2, 2], np.int32),
        row_given=np.array([4, 5, 0, 2, 1, 3], np.int32),
        group_weight=np.ones(3),
    )
    assert source.given_key.tolist() == [1, 0, 0]
    paper = exam_spec("paper-synthetic", num_tasks=6, order="given", preview=False)
    assert paper.source.given_key.tolist() == [0, 1, 2]
    assert draw_exams(paper, 0, [0]).groups.tolist() == [[0, 0, 1, 1, 2, 2]]
    np.testing.assert_array_equal(position_law(public_problem(paper)).argmax(1), [0, 0, 1, 1, 2, 2])
