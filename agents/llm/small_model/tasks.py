"""Mathematical tasks of reasoning-gym: families, difficulties, disjoint splits, verification.

Generators and verifiers are reasoning-gym's; the wording is ours where theirs is long or gives an example away. Some
families wear their difficulty openly (number of terms, of animals, of digits). In ``gcd``, ``factor`` and ``ab`` the
visible size says little: the length of the way to the answer (Euclid's steps, trial divisions, rewritings) depends on the
numbers or symbols themselves.

Texts are divided once for all by a hash: three quarters are for pre-training, one quarter (*reserved*) for exams, and
those again into train, validation and test exactly as :meth:`roi_env.sources.outcome_tables.OutcomeTable.split` does. Splits
also draw from seeds of their own. So no text that a model is examined on was seen in pre-training, and no two splits share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from roi_env.answering.base import Question
from roi_env.sources.outcome_tables import split_of

TaskSplit = Literal["pretrain", "train", "validation", "test"]

_BLOCK = 10**10
_OFFSETS: Mapping[TaskSplit, int] = {
    "pretrain": 0,
    "train": 300_000_000,
    "validation": 500_000_000,
    "test": 700_000_000,
}
_SPLIT_SIZE = 100_000_000
_RESERVED = 4
"""One text in so many is kept for exams."""


@dataclass(frozen=True)
class Family:
    """A kind of task.

    :param name: its name in tables.
    :param dataset: reasoning-gym's generator.
    :param number: places its seeds; never changed.
    :param config: difficulty -> the generator's configuration.
    :param taught: difficulties of pre-training, easiest first.
    :param asked: difficulties that are only asked.
    :param phrase: the generator's entry -> question text.
    :param hidden: whether the visible difficulty says little about the work.
    """

    name: str
    dataset: str
    number: int
    config: Callable[[int], dict[str, int]]
    taught: tuple[int, ...]
    asked: tuple[int, ...]
    phrase: Callable[[dict[str, Any]], str]
    hidden: bool = False

    @property
    def difficulties(self) -> tuple[int, ...]:
        """All difficulties, easiest first."""
        return self.taught + self.asked


@dataclass(frozen=True)
class Task:
    """One question.

    :param family: key of :data:`FAMILIES`.
    :param difficulty: the visible one.
    :param question: text.
    :param entry: what the generator gave (question, answer, metadata).
    """

    family: str
    difficulty: int
    question: str
    entry: Mapping[str, Any]

    @property
    def answer(self) -> str:
        """The generator's own answer."""
        return str(self.entry["answer"])

    @property
    def question_id(self) -> str:
        """Names the text: equal texts have equal ids."""
        return f"{self.family}-{self.difficulty}-{hashlib.sha256(self.question.encode()).hexdigest()[:12]}"

    @property
    def reserved(self) -> bool:
        """Whether the text belongs to exams rather than to pre-training."""
        return hashlib.sha256(b"reserved " + self.question.encode()).digest()[0] % _RESERVED == 0

    def check(self, answer: str | None) -> bool:
        """Whether the generator's verifier gives full marks; an answer it cannot read is wrong."""
        if answer is None:
            return False
        try:
            return bool(_dataset(self.family, self.difficulty).score_answer(answer, dict(self.entry)) >= 1.0)
        except (ValueError, ArithmeticError):
            # Verifiers convert text to numbers without a guard.
            return False


def tasks(family: str, difficulty: int, split: TaskSplit, start: int = 0, stop: int = _SPLIT_SIZE) -> Iterator[Task]:
    """Tasks of a split from seeds ``start`` to ``stop``, skipping texts of other splits; texts may repeat."""
    generator = _dataset(family, difficulty)
    phrase = FAMILIES[family].phrase
    for index in range(start, min(stop, _SPLIT_SIZE)):
        entry = generator[_OFFSETS[split] + index]
        task = Task(family, difficulty, phrase(entry), entry)
        if task.reserved == (split != "pretrain") and (split == "pretrain" or split_of(task.question_id) == split):
            yield task


def distinct_tasks(family: str, difficulty: int, split: TaskSplit, count: int) -> list[Task]:
    """The first ``count`` tasks with different texts; fewer where the first 100 ``count`` seeds have not more."""
    found: dict[str, Task] = {}
    for task in tasks(family, difficulty, split, stop=100 * count):
        found.setdefault(task.question, task)
        if len(found) == count:
            break
    return list(found.values())


def as_question(task: Task) -> Question:
    """The task as a solver and an outcome table know it."""
    extra: dict[str, int | str] = {"difficulty": task.difficulty, "kind": f"{task.family} {task.difficulty}"}
    return Question(task.family, task.question_id, task.question, task.answer, extra)


@cache
def _dataset(family: str, difficulty: int) -> Any:
    import reasoning_gym

    kind = FAMILIES[family]
    return reasoning_gym.create_dataset(
        kind.dataset, seed=_BLOCK * (100 * kind.number + difficulty), size=10**9, **kind.config(difficulty)
    )


def _digits(difficulty: int) -> dict[str, int]:
    return {"min_value": 10 ** (difficulty - 1), "max_value": 10**difficulty - 1}


def _own_words(entry: dict[str, Any]) -> str:
    return str(entry["question"]).strip()


def _ab(entry: dict[str, Any]) -> str:
    # The generator's text explains the rules in 100 words, the same every time; the program is its third last line.
    program = str(entry["question"]).strip().split("\n")[-3]
    return f"Rewrite the A::B program {program}"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "legs",
            "leg_counting",
            1,
            lambda d: {"min_animals": d, "max_animals": d},
            (1, 2, 3, 4, 5, 6, 8, 10),
            (12, 15),
            # One line: the generator's first sentence says the same.
            lambda entry: _own_words(entry).split("\n")[-1],
        ),
        Family(
            "sum1",
            "chain_sum",
            2,
            lambda d: {"min_terms": d, "max_terms": d, "min_digits": 1, "max_digits": 1},
            (2, 3, 4, 5, 6, 8, 10, 12),
            (16,),
            _own_words,
        ),
        Family(
            "sum2",
            "chain_sum",
            3,
            lambda d: {"min_terms": d, "max_terms": d, "min_digits": 2, "max_digits": 2},
            (2, 3, 4, 5, 7, 10, 12),
            (15, 20),
            _own_words,
        ),
        Family(
            "prod",
            "products",
            4,
            lambda d: {"min_digits": d, "max_digits": d, "min_terms": 2, "max_terms": 2},
            (1, 2, 3),
            (4,),
            _own_words,
        ),
        Family("gcd", "gcd", 5, _digits, (2, 3), (4,), _own_words, hidden=True),
        Family(
            "factor",
            "prime_factorization",
            6,
            _digits,
            (2, 3),
            (4,),
            lambda entry: f"Find the prime factorization of {entry['metadata']['number']}.",
            hidden=True,
        ),
        Family("ab", "ab", 7, lambda d: {"length": d}, (4, 5, 6, 7, 8, 10), (13,), _ab, hidden=True),
    )
}
"""All families by name."""


def check_families(names: Sequence[str]) -> None:
    """Check kinds of tasks that were named.

    :raises ValueError: for one that there is not, or that is named twice.
    """
    if unknown := set(names) - set(FAMILIES):
        raise ValueError(f"families must be out of {list(FAMILIES)}, not {sorted(unknown)[0]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"families must differ, got {list(names)}")
