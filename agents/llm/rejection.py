"""Rejection sampling: what a model's own samples teach it about itself.

Every question is answered K times at every tier (one thought shared by the tiers of a sample). A right answer is labelled
with the level of its own length; a question without a right answer is labelled with the refusal. Rules of arXiv
2601.03822, section on meta-cognitive fine-tuning (design section 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.llm.prompts import NUM_LEVELS, REFUSED, Completion, parse
from agents.llm.tasks import FAMILIES, Task, TaskSplit, distinct_tasks
from roi_env.solvers.base import Checker, Question, ThinkingTier

if TYPE_CHECKING:
    from roi_env.solvers.local import TransformersSolver

Keep = Literal["all", "shortest"]
"""Which right samples are kept: all of them, or the shortest."""


class Sample(NamedTuple):
    """One right generation.

    :param level: of its own length.
    :param tokens: its cost as recorded (without a tag).
    :param forced: whether the end of its think block was forced (cut, or answered at once).
    """

    completion: Completion
    level: int
    tokens: int
    forced: bool


@dataclass(frozen=True)
class Sampled:
    """A question and what the model made of it.

    :param kept: right samples that the keep-rule leaves, in order of sampling; empty: the question is to be refused.
    :param counts: (NUM_LEVELS,) how many samples the rule kept at each level; one refusal where none was kept.
    :param success: share of right answers among all samples.
    :param plain: right generations at every tier, to answer from without a tag.
    """

    question: Question
    kept: tuple[Sample, ...]
    counts: tuple[int, ...]
    success: float
    plain: tuple[Sample, ...]

    @property
    def label(self) -> int:
        """The most frequent level; the lower of equals."""
        return int(np.argmax(self.counts))


def level_of(tokens: int, edges: Sequence[int]) -> int:
    """The level of a length: the first whose edge (most tokens) is not exceeded; the last solving level above them all."""
    return min(int(np.searchsorted(edges, tokens)), len(edges) - 1)


def level_edges(tiers: Sequence[ThinkingTier]) -> list[int]:
    """Most tokens of each solving level: as in the metadata of a recorded table.

    :raises ValueError: for another number of tiers than there are solving levels.
    """
    if len(tiers) != NUM_LEVELS - 1:
        raise ValueError(f"{NUM_LEVELS - 1} tiers are needed, one a solving level, got {len(tiers)}")
    return [tier.most_tokens for tier in tiers]


def family_tasks(split: TaskSplit, count: int, families: Sequence[str] = ()) -> list[Task]:
    """About ``count`` questions of each kind of tasks (of hidden difficulty: twice as many), evenly over its difficulties.

    Fewer where a split has not so many texts.
    """
    return [
        task
        for name in families or FAMILIES
        for difficulty in FAMILIES[name].difficulties
        for task in distinct_tasks(
            name, difficulty, split, -(-count * (1 + FAMILIES[name].hidden) // len(FAMILIES[name].difficulties))
        )
    ]


def sample(
    questions: Sequence[Question],
    check: Checker,
    solver: TransformersSolver,
    tiers: Sequence[ThinkingTier],
    samples: int,
    journal: Path,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[tuple[str, str, int], list[dict[str, Any]]]:
    """Let the model answer; goes on where the journal stopped. Returns outcomes by (dataset, question_id, sample), tier by tier.

    :raises roi_env.solvers.recording.JournalError: where the journal belongs to other settings.
    """
    from roi_env.solvers.recording import Journal, record

    with Journal(journal, solver_settings(solver, tiers)) as kept:
        record(questions, tiers, samples, solver, check, kept, batch=2 * solver.batch, watch=watch)
        return kept.done


def solver_settings(solver: TransformersSolver, tiers: Sequence[ThinkingTier]) -> dict[str, Any]:
    """What recorded generations depend on: the first line of a journal."""
    return {
        "model": solver.name,
        "weights": solver.fingerprint,
        "temperature": solver.temperature,
        "seed": solver.seed,
        "tiers": [[tier.name, tier.thinking, tier.answer] for tier in tiers],
    }


def reject(
    questions: Sequence[Question],
    outcomes: Mapping[tuple[str, str, int], list[dict[str, Any]]],
    tiers: Sequence[ThinkingTier],
    samples: int,
    keep: Keep = "all",
    sampled: Sequence[str] = (),
) -> list[Sampled]:
    """Label every question by its samples.

    :param keep: which right samples are kept.
    :param sampled: names of the tiers whose generations count as samples; empty: the last alone, where the model
        thinks as long as it likes.
    """
    names = [tier.name for tier in tiers]
    if unknown := set(sampled) - set(names):
        raise ValueError(f"no tier {sorted(unknown)[0]!r}; there are {names}")
    count = [name in sampled for name in names] if sampled else [False] * (len(names) - 1) + [True]
    edges = level_edges(tiers)
    found = []
    for question in questions:
        pool: list[Sample] = []
        plain: list[Sample] = []
        asked = right = 0
        for number in range(samples):
            seen: set[str] = set()
            for tier, counts, made in zip(
                tiers, count, outcomes[question.dataset, question.question_id, number], strict=True
            ):
                # A thought that ended by itself is the same generation at every larger cap.
                new = made["text"] not in seen
                seen.add(made["text"])
                asked += counts and new
                completion = parse(made["text"])
                if not (made["correct"] and new and completion):
                    continue
                forced = bool(made["cut"]) or tier.thinking == 0
                one = Sample(completion, level_of(made["tokens"], edges), made["tokens"], forced)
                plain.append(one)
                if counts:
                    right += 1
                    pool.append(one)
        if keep == "shortest":
            pool = [one for one in pool if one.tokens == min(other.tokens for other in pool)]
        levels = np.bincount([one.level for one in pool] or [REFUSED], minlength=NUM_LEVELS)
        found.append(Sampled(question, tuple(pool), tuple(levels.tolist()), right / asked if asked else 0.0, tuple(plain)))
    return found


def label_shares(found: Sequence[Sampled]) -> npt.NDArray[np.float64]:
    """(Q, NUM_LEVELS) share of each level among a question's labels."""
    counts = np.array([one.counts for one in found], float)
    return counts / counts.sum(1, keepdims=True)
