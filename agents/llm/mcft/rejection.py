"""Rejection sampling: what a model's own samples teach it about itself.

Every question is answered K times at every tier (one thought shared by the tiers of a sample). A right answer is labelled
with the level of its own length; a question without a right answer is labelled with the refusal. Rules of arXiv
2601.03822, section on meta-cognitive fine-tuning (design section 1).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from agents.llm.prompts import NUM_LEVELS, REFUSED, Completion, parse
from agents.llm.small_model.tasks import FAMILIES, Task, TaskSplit, distinct_tasks
from roi_env.answering.base import Checker, Question, ThinkingTier
from roi_env.files import replacing

if TYPE_CHECKING:
    from roi_env.answering.local import TransformersSolver
    from roi_env.sources.outcome_tables import OutcomeTable


class Sample(NamedTuple):
    """One right generation.

    :param level: of its own length.
    :param tokens: its cost as recorded (without a tag).
    :param tier: number of the tier it was sampled at, from 0.
    :param forced: whether the end of its think block was forced (cut, or answered at once).
    """

    completion: Completion
    level: int
    tokens: int
    tier: int
    forced: bool


@dataclass(frozen=True)
class Sampled:
    """A question and what the model made of it.

    :param kept: right samples that the keep-rule leaves, in order of sampling; empty: the question is to be refused.
    :param counts: (NUM_LEVELS,) how many samples the rule kept at each level; one refusal where none was kept.
    :param success: (K,) share of right answers among the samples of each tier.
    :param tokens: (K,) mean tokens of all samples of each tier.
    :param plain: right generations at every tier, to answer from without a tag.
    """

    question: Question
    kept: tuple[Sample, ...]
    counts: tuple[int, ...]
    success: tuple[float, ...]
    tokens: tuple[float, ...]
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
    enough: int = 0,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[tuple[str, str, int], list[dict[str, Any]]]:
    """Let the model answer; goes on where the journal stopped. Returns outcomes by (dataset, question_id, sample), tier by tier.

    :param enough: right answers at the last tier after which a question is asked no more; 0: it is always asked ``samples``
        times.
    :raises roi_env.answering.recording.JournalError: where the journal belongs to other settings.
    """
    from roi_env.answering.recording import Journal, record

    with Journal(journal, solver_settings(solver, tiers), refuse=other_generations) as kept:
        for text in kept.messages:
            warnings.warn(text, stacklevel=2)
        total = len(questions) * samples
        for asked in range(1, samples + 1) if enough else [samples]:
            open_ = [one for one in questions if not enough or not _settled(one, kept.done, asked - 1, enough)]
            # Those who need no further samples count as done.
            spared = total - len(open_) * asked

            def report(done: int, _: int, spared: int = spared, asked: int = asked, left: int = len(open_)) -> None:
                watch(done + spared - left * (samples - asked), total)

            record(open_, tiers, asked, solver, check, kept, batch=2 * solver.batch, watch=report)
        return kept.done


def _settled(question: Question, done: Mapping[tuple[str, str, int], Any], asked: int, enough: int) -> bool:
    """Whether the first ``asked`` samples of a question have enough right answers."""
    made = (done.get((question.dataset, question.question_id, number)) for number in range(asked))
    return sum(bool(answers[-1]["correct"]) for answers in made if answers) >= enough


def solver_settings(solver: TransformersSolver, tiers: Sequence[ThinkingTier]) -> dict[str, Any]:
    """What recorded generations depend on: the first line of a journal."""
    return {
        "model": solver.name,
        "weights": solver.fingerprint,
        "temperature": solver.temperature,
        "seed": solver.seed,
        "tiers": [[tier.name, tier.thinking, tier.answer] for tier in tiers],
        **solver.settings,
        READS: solver.reads,
    }


READS = "reads"
"""What tokenizer and chat template make of a question, in :func:`solver_settings`."""


def other_generations(
    old: Mapping[str, Any], new: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str | None:
    """Whatever differs is refused; earlier journals do not say what the tokenizer and the chat template made of a question."""
    from roi_env.answering.ledger import differences

    return differences(old, {name: value for name, value in new.items() if name in old or name != READS}) or None


def reject(
    questions: Sequence[Question],
    outcomes: Mapping[tuple[str, str, int], list[dict[str, Any]]],
    tiers: Sequence[ThinkingTier],
    samples: int,
    keep: str = "all",
    sampled: Sequence[str] = (),
    enough: int = 0,
) -> list[Sampled]:
    """Label every question by its samples.

    :param keep: which right samples are kept: ``all`` of them, or the ``shortest``.
    :param sampled: names of the tiers whose generations count as samples; empty: the last alone, where the model
        thinks as long as it likes.
    :param enough: as of :func:`sample`; later samples are not looked at.
    """
    names = [tier.name for tier in tiers]
    if unknown := set(sampled) - set(names):
        raise ValueError(f"no tier {sorted(unknown)[0]!r}; there are {names}")
    count = [name in sampled for name in names] if sampled else [False] * (len(names) - 1) + [True]
    edges = level_edges(tiers)
    found = []
    for question in questions:
        made: list[list[dict[str, Any]]] = []
        for number in range(samples):
            if enough and sum(answers[-1]["correct"] for answers in made) >= enough:
                break
            made.append(outcomes[question.dataset, question.question_id, number])
        kept = [one for answers in made for one in _right(answers, tiers, edges, count)]
        if keep == "shortest":
            kept = [one for one in kept if one.tokens == min(other.tokens for other in kept)]
        plain = [one for answers in made for one in _right(answers, tiers, edges, [True] * len(tiers))]
        levels = np.bincount([one.level for one in kept] or [REFUSED], minlength=NUM_LEVELS)
        success, tokens = (
            np.mean([[float(answer[name]) for answer in answers] for answers in made], axis=0).tolist()
            for name in ("correct", "tokens")
        )
        found.append(
            Sampled(question, tuple(kept), tuple(levels.tolist()), tuple(success), tuple(tokens), tuple(plain))
        )
    return found


def _right(
    answers: Sequence[dict[str, Any]], tiers: Sequence[ThinkingTier], edges: Sequence[int], wanted: Sequence[bool]
) -> Iterator[Sample]:
    """Right generations of one sample at the wanted tiers; a thought that ended by itself counts once, at its smallest cap."""
    seen: set[str] = set()
    for number, (tier, made) in enumerate(zip(tiers, answers, strict=True)):
        if not wanted[number] or made["text"] in seen:
            continue
        seen.add(made["text"])
        completion = parse(made["text"])
        if made["correct"] and completion is not None:
            forced = bool(made["cut"]) or tier.thinking == 0
            yield Sample(completion, level_of(made["tokens"], edges), made["tokens"], number, forced)


class Labels(NamedTuple):
    """Labels of Q questions, without the generations.

    :param dataset: (Q,) str.
    :param texts: (Q,) str.
    :param counts: (Q, NUM_LEVELS) kept samples at each level; one refusal where none was kept.
    :param tokens: (Q,) mean tokens of samples of the last tier: what thinking freely costs.
    """

    dataset: npt.NDArray[np.str_]
    texts: list[str]
    counts: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]

    def take(self, questions: npt.NDArray[np.int64]) -> Labels:
        """Some of the questions."""
        texts = [self.texts[question] for question in questions]
        return Labels(self.dataset[questions], texts, self.counts[questions], self.tokens[questions])

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """(Q, NUM_LEVELS) share of each level."""
        return self.counts / self.counts.sum(1, keepdims=True)

    @property
    def level(self) -> npt.NDArray[np.int64]:
        """(Q,) the most frequent level, the lower of equals."""
        return self.counts.argmax(1)


def write_labels(path: Path, splits: Mapping[str, Sequence[Sampled]]) -> None:
    """Write labels as Parquet: ``split, dataset, question_id, question, counts, success, tokens`` (the last two by tier)."""
    rows = [
        {
            "split": split,
            "dataset": one.question.dataset,
            "question_id": one.question.question_id,
            "question": one.question.text,
            "counts": list(one.counts),
            "success": list(one.success),
            "tokens": list(one.tokens),
        }
        for split, found in splits.items()
        for one in found
    ]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")


def read_labels(path: Path, split: str) -> Labels:
    """Read the labels of one split."""
    rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == split]
    return Labels(
        np.array([row["dataset"] for row in rows]),
        [row["question"] for row in rows],
        np.array([row["counts"] for row in rows], float),
        np.array([row["tokens"][-1] for row in rows]),
    )


def table_samples(table: OutcomeTable, keep: str = "all", sampled: Sequence[str] = ()) -> list[Sampled]:
    """The questions of a recorded table of one menu, labelled by the rule of :func:`reject`.

    The table has no generations: completions are empty, and answers of one sample at two tiers are taken for one generation where
    their tokens are equal.

    :raises ValueError: where the table has other than three tiers, or no level edges.
    """
    menu = table.menus[0]
    names = table.tier_names(menu)
    if len(names) != NUM_LEVELS - 1:
        raise ValueError(
            f"{table.path}: labels need {NUM_LEVELS - 1} tiers, one a level, it has {list(names)}: choose them with --tier"
        )
    if menu not in table.level_edges:
        raise ValueError(
            f"{table.path}: its metadata name no level_edges, the most tokens of each level: `roi record` writes them, and "
            f"dataclasses.replace(OutcomeTable.read(FILE), level_edges={{{menu!r}: {{{names[0]!r}: TOKENS, ..}}}}).write(FILE) adds them"
        )
    if unknown := set(sampled) - set(names):
        raise ValueError(f"no tier {sorted(unknown)[0]!r}; there are {list(names)}")
    edges = [table.level_edges[menu][name] for name in names]
    wanted = [name in (sampled or names[-1:]) for name in names]
    of_row, first_row = table.questions()
    code, values = table.codes("tier")
    tier = np.array([names.index(value) for value in values])[code]
    tokens, correct = table.numbers("tokens").astype(float), table.numbers("correct").astype(float)
    cell, shape = of_row * len(names) + tier, (len(first_row), len(names))
    count = np.bincount(cell, minlength=shape[0] * shape[1])
    with np.errstate(invalid="ignore"):  # a question may lack a tier
        success, mean = ((np.bincount(cell, each, len(count)) / count).reshape(shape) for each in (correct, tokens))
    kept: list[list[Sample]] = [[] for _ in first_row]
    seen: set[tuple[int, int, int]] = set()
    order = np.argsort(tier, kind="stable")
    columns = (of_row, tier, table.numbers("sample"), table.numbers("tokens"), table.numbers("correct"))
    for question, k, number, length, right in zip(*(column[order].tolist() for column in columns), strict=True):
        if wanted[k] and (question, number, length) not in seen:
            seen.add((question, number, length))
            if right:
                kept[question].append(Sample(Completion("", ""), level_of(length, edges), length, k, False))
    names_of = ("dataset", "question_id", "question", "answer")
    described = [table.rows[name].take(first_row).to_pylist() for name in names_of]
    questions = [Question(*row) for row in zip(*described, strict=True)]
    found = []
    for question, ways, chances, lengths in zip(questions, kept, success.tolist(), mean.tolist(), strict=True):
        shortest = min((one.tokens for one in ways), default=0)
        ways = [one for one in ways if keep != "shortest" or one.tokens == shortest]
        levels = np.bincount([one.level for one in ways] or [REFUSED], minlength=NUM_LEVELS)
        found.append(Sampled(question, tuple(ways), tuple(levels.tolist()), tuple(chances), tuple(lengths), ()))
    return found


def table_labels(table: OutcomeTable, keep: str = "all", sampled: Sequence[str] = ()) -> Labels:
    """Labels of a recorded table of one menu; see :func:`table_samples`."""
    found = table_samples(table, keep, sampled)
    return Labels(
        np.array([one.question.dataset for one in found]),
        [one.question.text for one in found],
        np.array([one.counts for one in found], float),
        np.array([one.tokens[-1] for one in found]),
    )
