"""What the live default does where nothing is known: recorded tables replayed with guessed beliefs.

Every order is an exam of N questions of one table (resampled where it has fewer) whose outcomes are the table's own. Agents
see what ``roi answer`` shows them without ``--table``: the tiers' caps, texts in thirds by length, and
:func:`roi_env.envs.live.default_laws`, nothing of the table. "Graded" tells after every answer whether it was right.
Each is compared with every fixed tier on the same orders and outcomes: the best of their means in hindsight, and the
dearest until the budget is gone (first come, first served).

A tier's cap is the most tokens recorded of it, so that nothing is cut. Tables of one prompt cut at answer caps are made of
one recorded tier: an answer longer than the cap costs the cap, is wrong and states nothing, which the agent is told as in a
live exam.

The agent's constants were chosen on the ``train`` halves of the tables (``--split train``); reported are the other halves.

``ROI_DATA=... python benchmarks/online_replay.py [--tasks 200] [--orders 200] [--split test] [--out FILE]``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt

from agents.base import Agent, DecisionView, ExamsView, Feedback, Problem, Probs, State, make_agent, public_problem
from agents.playing import rollout
from roi_env.answering.base import Question, ThinkingTier
from roi_env.envs.live import live_source
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.outcome_tables import OutcomeTable, Split
from roi_env.sources.packaged import TINYLM
from roi_env.sources.recorded import recorded_source
from roi_env.sources.source import Source

HALVES = (0.5, 0.0, 0.5)
_AIME, _JHU = "epoch_otis_mock_aime_notext", "jhu_concise_cot"
_MATHS = ("aqua-rat", "sat-math")


class Table(NamedTuple):
    """One replayed table.

    :param file: in ``$ROI_DATA/outcomes``; None: the packaged one.
    :param datasets: of the file; empty: all.
    :param tier: the tier that answer caps are laid on; None: the recorded tiers themselves.
    :param caps: the answer caps.
    """

    name: str
    file: str | None
    family: str | None = None
    datasets: tuple[str, ...] = ()
    tier: str | None = None
    caps: tuple[int, ...] = ()


TABLES = (
    Table("TinyLM", None),
    Table("exams, GPT-4", _JHU, "gpt-4"),
    Table("exams, GPT-3.5", _JHU, "gpt-35-turbo"),
    Table("exams, maths alone, GPT-4", _JHU, "gpt-4", _MATHS),
    Table("exams, maths alone, GPT-3.5", _JHU, "gpt-35-turbo", _MATHS),
    Table("game of 24, GPT-4", "tot_game24", "gpt-4"),
    Table("AIME, gpt-5", _AIME, "openai/gpt-5-2025-08-07"),
    Table("AIME, gpt-5-mini", _AIME, "openai/gpt-5-mini-2025-08-07"),
    Table("AIME, gpt-5-nano", _AIME, "openai/gpt-5-nano-2025-08-07"),
    Table("AIME, gpt-5.1", _AIME, "openai/gpt-5.1"),
    Table("AIME, gpt-5.2", _AIME, "openai/gpt-5.2-2025-12-11"),
    Table("AIME, haiku 4.5", _AIME, "anthropic/claude-haiku-4-5-20251001"),
    Table("AIME, sonnet 4.5", _AIME, "anthropic/claude-sonnet-4-5-20250929"),
    Table("AIME, opus 4.1", _AIME, "anthropic/claude-opus-4-1-20250805"),
    Table("AIME, opus 4.5", _AIME, "anthropic/claude-opus-4-5-20251101"),
    Table("AIME, opus 4.6", _AIME, "anthropic/claude-opus-4-6"),
    Table("maths cut at 160, 400", _JHU, "gpt-4", _MATHS, "gpt-4:composite", (160, 400)),
    Table("maths, GPT-3.5, cut at 160, 400", _JHU, "gpt-35-turbo", _MATHS, "gpt-35-turbo:composite", (160, 400)),
    Table("maths cut at 96, 160, 400", _JHU, "gpt-4", _MATHS, "gpt-4:chain_of_thought", (96, 160, 400)),
    Table("AIME, gpt-5.2 cut at 2k, 8k, 32k", _AIME, "openai/gpt-5.2-2025-12-11", (), "gpt-5.2-2025-12-11@high",
          (2000, 8000, 32000)),
    Table("common sense, GPT-3.5 (dearer is worse)", _JHU, "gpt-35-turbo", ("hellaswag_val", "arc-challenge-test")),
    Table("law, GPT-3.5 (dearer is worse)", _JHU, "gpt-35-turbo", ("lsat-ar", "lsat-lr")),
)  # fmt: skip


def cut(source: Source, caps: Sequence[int]) -> Source:
    """A source of one tier as one of several answer caps."""
    outcomes, start, place = [], [], 0
    for first, count in zip(source.outcome_start, source.outcome_count, strict=True):
        part = source.outcomes[first : first + count].astype(np.int64)
        for cap in caps:
            outcomes.append(np.minimum(part >> 1, cap) << 1 | np.where(part >> 1 > cap, 0, part & 1))
            start.append(place)
            place += int(count)
    return dataclasses.replace(
        source,
        outcomes=np.concatenate(outcomes).astype(np.uint32),
        outcome_start=np.array(start, np.int32),
        outcome_count=np.repeat(source.outcome_count, len(caps)),
    )


def unknown(table: Table, split: Split, tasks: int) -> tuple[Source, float]:
    """A table's outcomes behind what a live exam knows without it, and the mean tokens of its dearest tier."""
    path = str(TINYLM) if table.file is None else f"{os.environ['ROI_DATA']}/outcomes/{table.file}.parquet"
    known = recorded_source(
        OutcomeTable.read(path),
        menu=table.family,
        tiers=table.tier,
        datasets=table.datasets or None,
        split=split,
        beliefs_split=split,
        fractions=HALVES,
    )
    if table.caps:
        known = cut(known, table.caps)
        tiers = [ThinkingTier(f"cap {cap}", 0, cap) for cap in table.caps]
    else:
        first = known.outcome_start.reshape(known.num_items, -1)
        ends = first + known.outcome_count.reshape(first.shape)
        most = [
            max(int(known.outcomes[a:b].max() >> 1) for a, b in zip(first[:, k], ends[:, k], strict=True))
            for k in range(first.shape[1])
        ]
        # Efforts tell the tiers apart: these are different requests.
        tiers = [ThinkingTier(t.name, 0, cap, t.name) for t, cap in zip(known.tiers, most, strict=True)]
    texts = known.texts or ("",) * known.num_items
    questions = [Question("replayed", str(n), text, "") for n, text in enumerate(texts)]
    source = dataclasses.replace(
        live_source(questions, tiers),
        outcome_start=known.outcome_start,
        outcome_count=known.outcome_count,
        outcomes=known.outcomes,
        replacement=len(texts) < tasks,
    )
    start, count = (a.reshape(-1, len(tiers))[:, -1] for a in (known.outcome_start, known.outcome_count))
    dearest = [(known.outcomes[a : a + n] >> 1).mean() for a, n in zip(start, count, strict=True)]
    return source, float(np.mean(dearest))


class Told(Agent):
    """An agent that is told of answers that were cut at their tier's cap."""

    markov = False

    def __init__(self, problem: Problem, inner: Agent, caps: Sequence[int]) -> None:
        super().__init__(problem)
        self.inner, self.caps, self.name = inner, np.array([0, *caps]), inner.name  # type: ignore[misc]

    def start(self, exams: ExamsView) -> State:
        """The agent's own."""
        return self.inner.start(exams)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """The agent's own."""
        return self.inner.act(view, state)

    def observe(self, feedback: Feedback, state: State) -> State:
        """With what was cut. An answer of exactly the cap's length counts as cut; no agent can tell these apart."""
        failed = (feedback.action > 0) & (feedback.tokens >= self.caps[feedback.action])
        return self.inner.observe(dataclasses.replace(feedback, failed=failed), state)


def replays(split: Split, tasks: int, orders: int, agent: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every table, budget and grading."""
    for table in TABLES:
        source, dearest = unknown(table, split, tasks)
        for share in (0.3, 0.6):
            for graded in (False, True):
                spec = exam_spec(
                    source,
                    num_tasks=tasks,
                    budget=round(share * tasks * dearest),
                    feedback="cost+correct" if graded else "cost",
                )
                problem, batch = public_problem(spec), draw_exams(spec, seed, np.arange(orders))
                player: Agent = make_agent(agent, problem)
                if table.caps:
                    player = Told(problem, player, table.caps)
                score = rollout(player, batch).score
                fixed = np.stack(
                    [rollout(make_agent("fixed", problem, tier=k + 1), batch).score for k in range(spec.num_tiers)]
                )
                best = int(fixed.mean(1).argmax())
                low, high = interval(score - fixed[-1])
                yield {
                    "table": table.name,
                    "questions": source.num_items,
                    "budget": share,
                    "graded": graded,
                    "right": round(float(score.mean()), 2),
                    "fixed": [round(float(mean), 2) for mean in fixed.mean(1)],
                    "best": problem.tier_names[best],
                    "of_best": round(float(score.mean() / fixed[best].mean()), 3),
                    "more_than_first_come": [round(low, 2), round(high, 2)],
                }


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the mean, by the normal approximation."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def main() -> None:
    """Replay, print a line a row, and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--agent", default="online-lp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for row in replays(arguments.split, arguments.tasks, arguments.orders, arguments.agent, arguments.seed):
        rows.append(row)
        low, high = row["more_than_first_come"]
        print(
            f"{row['table']:40} {row['budget']} {'graded' if row['graded'] else 'not   '} {row['right']:7.2f} right, "
            f"{row['of_best']:.3f} of always {row['best']}, first come + [{low:.1f}, {high:.1f}]",
            flush=True,
        )
    if arguments.out is not None:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
