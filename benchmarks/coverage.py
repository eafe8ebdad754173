"""How often the comparison's 95 % intervals hold the truth: `python benchmarks/coverage.py [recorded] [seeds] [optimum]
[recovery]`.

Four simulations with known truth and fixed seeds, printed as the Markdown tables of docs/statistics.md; one thread, about ten
minutes of CPU time in all.

* ``recorded``: a superpopulation of questions with known laws. A train set is drawn and kept; tables of Q test questions with a
  few samples each are drawn again and again and go the whole road of a comparison (table, source, exams, exact evaluation,
  intervals). True scores are those of the same policies on 12,000 further questions.
* ``seeds``: shares of the optimum of S training seeds on 60 exams, drawn from a model; one kind of agent fails with one seed in
  five.
* ``optimum``: agents close to the optimum: samples of 60 and of 200 exams out of 2,500 evaluated exactly.
* ``recovery``: the information that a predictor recovers: questions of four kinds, of which a column tells two apart and the
  predictor all four; its true value is that of the same train laws on 20,000 further questions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.stats import t as student

from agents.base import make_agent, public_problem
from agents.playing import evaluate_exact
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures import metrics
from roi_env.measures.metrics import Floats, Interval
from roi_env.measures.recovery import Recovered, informed_apart, recovered
from roi_env.measures.references import in_sample_optimism, informed_values, optimum_tables, reachable_values
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source

TIERS = ("low", "mid", "high")
MEAN_TOKENS = np.array([2.0, 5.0, 10.0])
EASE = np.array([-0.6, 0.2, 0.9])
AGENTS = ("bellman", "lp-lookahead", "fixed-1")
Rng = np.random.Generator


class Questions(NamedTuple):
    """Recorded outcomes of Q questions: (Q, K, S) tokens and correctness, (Q,) published group."""

    tokens: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]


def draw_questions(rng: Rng, count: int, samples: int, groups: int) -> Questions:
    """Questions of a superpopulation: difficulty is normal, its mean depends on the group; the harder the dearer."""
    group = rng.integers(groups, size=count)
    difficulty = rng.normal(size=count) + 2.0 * group - (groups - 1)
    chance = 1 / (1 + np.exp(-1.5 * (EASE - 0.9 * difficulty[:, None])))
    mean = MEAN_TOKENS * np.exp(0.3 * difficulty)[:, None]
    shape = (count, len(TIERS), samples)
    tokens = 1 + rng.poisson(np.broadcast_to(mean[:, :, None], shape))
    return Questions(tokens, rng.random(shape) < chance[:, :, None], group)


def split_names(size: int) -> dict[str, npt.NDArray[np.str_]]:
    """Question identifiers by the split that the library puts them into."""
    names = np.array([f"q{i}" for i in range(size)])
    one = Questions(np.ones((size, 1, 1), np.int64), np.zeros((size, 1, 1), np.bool_), np.zeros(size, np.int64))
    table = OutcomeTable.from_arrow(_rows(names, one))
    first = table.questions().first_row
    return {split: names[table.in_split(split)[first]] for split in ("train", "test")}  # type: ignore[arg-type]


def _rows(names: npt.NDArray[np.str_], made: Questions) -> pa.Table:
    count, tiers, samples = made.tokens.shape
    identifier = np.repeat(names[:count], tiers * samples)
    tier = np.tile(np.repeat(np.arange(tiers), samples), count)
    return pa.table(
        {
            "dataset": np.repeat(made.group.astype(str), tiers * samples),
            "coarse": np.repeat((made.group // 2).astype(str), tiers * samples),
            "question_id": identifier,
            "question": identifier,
            "answer": np.full(len(identifier), "1"),
            "menu": np.full(len(identifier), "model"),
            "tier": np.array(TIERS)[tier],
            "tier_order": tier + 1,
            "tokens": made.tokens.ravel(),
            "correct": made.correct.ravel(),
            "sample": np.tile(np.arange(samples), count * tiers),
        }
    )


def table_spec(
    names: dict[str, npt.NDArray[np.str_]], train: Questions, test: Questions, num_tasks: int, group_by: str = "dataset"
) -> ExamSpec:
    """Exams of the test questions, with beliefs learned on the train questions; a budget of 3.3 tokens a task."""
    rows = pa.concat_tables([_rows(names["train"], train), _rows(names["test"], test)])
    source = recorded_source(OutcomeTable.from_arrow(rows), group_by=group_by)
    return exam_spec(source, num_tasks=num_tasks, budget=round(3.3 * num_tasks))


class Trial(NamedTuple):
    """One table: its exams' questions (E, N), scores (E,) by agent (``bellman``: the train laws' optimum), and the true scores."""

    questions: npt.NDArray[np.int32]
    scores: dict[str, Floats]
    optimism: float
    truth: dict[str, float]


def recorded_trials(
    seed: int,
    count: int,
    *,
    questions: int,
    num_tasks: int,
    groups: int,
    samples: int = 4,
    exams: int = 60,
    sets: int = 4,
) -> Iterator[Trial]:
    """Tables of ``questions`` test questions, ``count`` in all, of ``sets`` train sets of 60 questions."""
    rng, names = np.random.default_rng(seed), split_names(80_000)
    population = draw_questions(rng, 12_000, 1, groups)
    for _ in range(sets):
        train = draw_questions(rng, 60, samples, groups)
        whole = table_spec(names, train, population, num_tasks)
        batch = draw_exams(whole, seed, np.arange(1 if groups == 1 else 400))
        problem = public_problem(whole)
        truth = {
            name: evaluate_exact(make_agent(name, problem), batch, law="published").score.mean() for name in AGENTS
        }
        truth["optimum"] = optimum_tables(batch).value.mean()
        for trial in range(count // sets):
            spec = table_spec(names, train, draw_questions(rng, questions, samples, groups), num_tasks)
            batch = draw_exams(spec, trial, np.arange(exams))
            problem = public_problem(spec)
            scores = {name: evaluate_exact(make_agent(name, problem), batch).score for name in AGENTS}
            best = make_agent("optimum", problem, laws=spec.source.published)
            scores["optimum"] = evaluate_exact(best, batch).score
            yield Trial(batch.items, scores, float(in_sample_optimism(batch).mean()), truth)


def share_interval(trial: Trial, agent: str, of: str | None, rng: Rng) -> tuple[Interval, float]:
    """Interval of a mean score, or of the ratio of two, as ``experiments.report.analysis`` makes it; and the truth."""
    score = trial.scores[agent]
    best = np.ones(len(score)) if of is None else trial.scores[of]
    weights = metrics.bootstrap_weights(len(score), 1000, rng, trial.questions)
    value = score.mean() / best.mean()
    found = metrics.interval(
        value,
        metrics.resampled_means(score, weights) / metrics.resampled_means(best, weights),
        stretch=metrics.QuestionDesign(trial.questions).stretch((score - value * best) / best.mean()),
    )
    return found, trial.truth[agent] / (1.0 if of is None else trial.truth[of])


def coverage(found: list[tuple[Interval, float]]) -> float:
    """Share of the intervals that hold the truth; those without ends do not count."""
    hits = [i.low <= truth <= i.high for i, truth in found if np.isfinite(i.low)]
    return float(np.mean(hits)) if hits else float("nan")


RECORDED = (
    *((q, n, g, 60) for q, n, g in ((10, 3, 1), (30, 3, 1), (30, 5, 2), (30, 10, 1), (100, 5, 2), (100, 10, 1))),
    (100, 10, 1, 200),
)
"""Test questions, tasks of an exam, groups, exams."""


def recorded(count: int = 240) -> None:
    """Print the tables on recorded sources."""
    print(
        f"| test questions, tasks, groups, exams ({count} tables) | score of the train laws' optimum | LP look-ahead / it | cheapest / it | cheapest / optimum of these questions | optimum of these questions is too high by | estimated |"
    )
    print("|---|---|---|---|---|---|---|")
    for questions, num_tasks, groups, exams in RECORDED:
        rng = np.random.default_rng(1)
        size = {"questions": questions, "num_tasks": num_tasks, "groups": groups, "exams": exams}
        trials = list(recorded_trials(7, count, **size))
        cells = [
            coverage([share_interval(trial, agent, of, rng) for trial in trials])
            for agent, of in (
                ("bellman", None),
                ("lp-lookahead", "bellman"),
                ("fixed-1", "bellman"),
                ("fixed-1", "optimum"),
            )
        ]
        # Paired with a policy that was not planned on these questions: the questions' luck cancels.
        high = [
            (t.scores["optimum"].mean() - t.scores["bellman"].mean() - t.truth["optimum"] + t.truth["bellman"])
            / t.truth["optimum"]
            for t in trials
        ]
        estimated = np.mean([t.optimism / t.truth["optimum"] for t in trials])
        shown = " | ".join(f"{cell:.3f}" for cell in cells)
        error = np.std(high) / np.sqrt(len(high))
        print(
            f"| {questions}, {num_tasks}, {groups}, {exams} | {shown} | {100 * np.mean(high):.1f} ± {100 * error:.1f} % | {100 * estimated:.1f} % |",
            flush=True,
        )


KINDS: dict[str, tuple[float, Callable[[Rng, int], Floats]]] = {
    "normal": (0.0, lambda rng, s: 0.005 * rng.normal(size=s)),
    "skewed": (0.0, lambda rng, s: 0.005 * (1 - rng.exponential(size=s))),
    "one in five .03 lower": (-0.006, lambda rng, s: 0.005 * rng.normal(size=s) - 0.03 * (rng.random(s) < 0.2)),
    "one in five fails (.3 lower)": (-0.06, lambda rng, s: 0.005 * rng.normal(size=s) - 0.3 * (rng.random(s) < 0.2)),
}
"""Kinds of training: mean and draws of what a seed adds to the share of the optimum."""


def seed_intervals(
    rng: Rng, kind: str, seeds: int, exams: int = 60, resamples: int = 600
) -> tuple[dict[str, Interval], float]:
    """One comparison of an agent of ``seeds`` training seeds: its share of the optimum with intervals by method; the truth."""
    shift, draw = KINDS[kind]
    truth, exam = 0.985 + shift, 0.01 * (1 - rng.exponential(size=exams))
    shares = 0.985 + draw(rng, seeds)[:, None] + exam + 0.01 * rng.normal(size=(seeds, exams))
    value, means = float(shares.mean()), shares.mean(1)
    replicates = metrics.resampled_means(
        shares, metrics.bootstrap_weights(exams, resamples, rng), metrics.seed_weights(seeds, resamples, rng)
    )
    half = float(student.ppf(0.975, seeds - 1) * means.std(ddof=1) / np.sqrt(seeds))
    times_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    times_exam = rng.multinomial(exams, np.full(exams, 1 / exams), resamples) / exams
    # Clopper and Pearson's bound where no seed failed, with failures that score nothing: needs no law, only 0 <= share <= 1.
    worst = min(1.0, value) * 0.025 ** (1 / seeds)
    return {
        "bootstrap of seeds": metrics.interval(value, times_seed @ means),
        "hierarchical bootstrap": metrics.interval(value, np.einsum("rs,se,re->r", times_seed, shares, times_exam)),
        "t of seed means": Interval(value, value - half, value + half),
        "t over seeds + exams": metrics.interval(value, replicates),
        "the same, logit (used)": metrics.interval(value, replicates, bounds=(0.0, 1.0)),
        "no assumption but 0 to 1": Interval(value, worst, 1.0),
    }, truth


def seeds(count: int = 600) -> None:
    """Print the table on training seeds."""
    methods = list(seed_intervals(np.random.default_rng(0), "normal", 3)[0])
    print(
        f"| training, seeds ({count} comparisons): coverage (mean width) | {' | '.join(methods)} |\n|{'---|' * (1 + len(methods))}"
    )
    for kind in KINDS:
        for number in (3, 5, 10):
            rng = np.random.default_rng(3)
            made = [seed_intervals(rng, kind, number) for _ in range(count)]
            cells = []
            for method in methods:
                width = np.mean([intervals[method].high - intervals[method].low for intervals, _ in made])
                cells.append(f"{coverage([(intervals[method], truth) for intervals, truth in made]):.3f} ({width:.3f})")
            print(f"| {kind}, {number} | {' | '.join(cells)} |", flush=True)


def optimum(count: int = 2000, pool: int = 2500) -> None:
    """Print the table on agents close to the optimum."""
    print(
        f"| agent ({count} samples) | share | exams | percentile: coverage (truth above, below) | logit (used) |\n|---|---|---|---|---|"
    )
    for family, agent in (
        ("signal", "lp-lookahead"),
        ("heavy", "lp-lookahead"),
        ("cap", "lp-lookahead"),
        ("signal", "resolve"),
    ):
        spec = exam_spec(family, budget=0.15)
        batch = draw_exams(spec, 5, np.arange(pool))
        best = optimum_tables(batch).value
        score = evaluate_exact(make_agent(agent, public_problem(spec)), batch).score
        truth = score.mean() / best.mean()
        for exams in (60, 200):
            rng = np.random.default_rng(11)
            found: dict[str, list[tuple[Interval, float]]] = {"percentile": [], "logit": []}
            for _ in range(count):
                part = rng.choice(pool, exams, replace=False)
                weights = metrics.bootstrap_weights(exams, 600, rng)
                replicates = metrics.resampled_means(score[part], weights) / metrics.resampled_means(
                    best[part], weights
                )
                value = score[part].mean() / best[part].mean()
                found["percentile"].append((metrics.interval(value, replicates), truth))
                found["logit"].append((metrics.interval(value, replicates, bounds=(0.0, 1.0)), truth))
            cells = []
            for made in found.values():
                above, below = (np.mean(x) for x in zip(*((t > i.high, t < i.low) for i, t in made), strict=True))
                cells.append(f"{coverage(made):.3f} ({above:.3f}, {below:.3f})")
            print(f"| {agent}, {family} t=.15 | {truth:.4f} | {exams} | {' | '.join(cells)} |", flush=True)


class Taught(NamedTuple):
    """A train set of 200 questions, and the true values of what it teaches, by the names of :class:`Recovered`."""

    train: Questions
    truth: dict[str, float]


def taught(seed: int, names: dict[str, npt.NDArray[np.str_]], sets: int = 4, size: int = 20_000) -> list[Taught]:
    """Train sets; true values are those on ``size`` further questions, whose own luck is small beside that of 300."""
    rng = np.random.default_rng(seed)
    population = draw_questions(rng, size, 4, 4)
    found = []
    for _ in range(sets):
        train = draw_questions(rng, 200, 4, 4)
        with_it, without, informed, _ = _recovery_values(names, train, population, 0, size // 3)[1].mean(1)
        truth = {
            "share": (with_it - without) / (informed - without),
            "gain": with_it / without - 1,
            "information": informed / without - 1,
        }
        found.append(Taught(train, truth))
    return found


def recovery_trials(
    seed: int, names: dict[str, npt.NDArray[np.str_]], sets: Sequence[Taught], count: int, questions: int
) -> Iterator[tuple[Recovered, dict[str, float]]]:
    """What was recovered on tables of ``questions`` test questions, ``count`` in all, and the truth."""
    rng = np.random.default_rng(seed)
    for one in sets:
        for trial in range(count // len(sets)):
            test = draw_questions(rng, questions, 4, 4)
            items, (grouped, plain, known, own) = _recovery_values(names, one.train, test, trial, 100)
            yield recovered(grouped, plain, known, own, items, 1000, trial), one.truth


def _recovery_values(
    names: dict[str, npt.NDArray[np.str_]], train: Questions, test: Questions, seed: int, exams: int
) -> tuple[npt.NDArray[np.int32], Floats]:
    """(E, 5) questions and the (4, E) values of :func:`roi_env.measures.recovery.recovered`."""
    plain, fine = (table_spec(names, train, test, 5, name) for name in ("coarse", "dataset"))
    batch, grouped = (draw_exams(spec, seed, np.arange(exams)) for spec in (plain, fine))
    values = (reachable_values(grouped), reachable_values(batch), informed_apart(batch).value, informed_values(batch))
    return batch.items, np.stack(values)


def recovery(count: int = 240) -> None:
    """Print the table on the information recovered."""
    names = split_names(80_000)
    sets = taught(11, names)
    print(
        f"| test questions ({count} tables) | gain in score: truth, coverage (median width) | information | share recovered | shares with an interval | share misses, of all tables |"
    )
    print("|---|---|---|---|---|---|")
    for questions in (30, 120, 300):
        trials = list(recovery_trials(questions, names, sets, count, questions))
        cells = []
        for name in ("gain", "information", "share"):
            made = [(getattr(found, name), truth[name]) for found, truth in trials]
            width = np.median([i.high - i.low for i, _ in made if np.isfinite(i.low)])
            cells.append(f"{np.mean([t for _, t in made]):.3f}, {coverage(made):.3f} ({width:.3f})")
        given = np.array([np.isfinite(found.share.low) for found, _ in trials])
        holds = [found.share.low <= truth["share"] <= found.share.high for found, truth in trials]
        print(
            f"| {questions} | {' | '.join(cells)} | {given.mean():.2f} | {(given & ~np.array(holds)).mean():.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    parts = {"recorded": recorded, "seeds": seeds, "optimum": optimum, "recovery": recovery}
    for name in sys.argv[1:] or parts:
        parts[name]()
        print()
