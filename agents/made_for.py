"""What exams an agent was made for: kept in its file (a language model's directory), and said where it takes others.

What an agent learned may serve exams of another budget, length or family of questions, or not. Nothing refuses it: a warning
names both kinds of exams, once a command.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from roi_env.files import replacing
from roi_env.sources.units import Unit, cost_with_unit

QUESTIONS: Final = "questions"
LENGTH: Final = "length"
BUDGET: Final = "budget"
FILE: Final = "made_for.json"
"""In the directory of a language model that was trained on exams."""


class OtherExams(UserWarning):
    """An agent takes exams that differ from those it was made for."""


@dataclass(frozen=True)
class MadeFor:
    """A kind of exam, as an agent's file keeps it.

    :param questions: name of their source.
    :param groups: digest of tiers and published groups.
    :param laws: digest of the published beliefs; None: there are none.
    :param num_tasks: N.
    :param least: smallest budget; ``most``: the largest.
    :param unit: of budgets.
    """

    questions: str
    groups: str
    laws: str | None
    num_tasks: int
    least: int
    most: int
    unit: Unit

    def differences(self, other: MadeFor) -> set[str]:
        """In what exams of ``other`` are not of this kind."""
        laws = None not in (self.laws, other.laws) and self.laws != other.laws
        return {
            what
            for what, differs in (
                (QUESTIONS, self.groups != other.groups or laws),
                (LENGTH, self.num_tasks != other.num_tasks),
                (BUDGET, not self.least <= other.least <= other.most <= self.most),
            )
            if differs
        }

    def __str__(self) -> str:
        """In words."""
        least, most = (cost_with_unit(budget, self.unit) for budget in (self.least, self.most))
        tasks = f"{self.num_tasks} task" + ("" if self.num_tasks == 1 else "s")
        return f"{tasks} of {self.questions!r} under {least if least == most else f'{least} to {most}'}"


def write_made_for(folder: Path, made: MadeFor) -> None:
    """Keep in a model directory what exams it was trained on."""
    with replacing(folder / FILE) as path:
        path.write_text(json.dumps(asdict(made), indent=1) + "\n")


def read_made_for(folder: Path) -> MadeFor | None:
    """What :func:`write_made_for` kept; None where there is nothing.

    :raises ValueError: where the file is damaged.
    """
    if not (folder / FILE).exists():
        return None
    try:
        return MadeFor(**json.loads((folder / FILE).read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / FILE}: does not say what exams the model was trained on ({error}); delete it"
        ) from error


def digest(*data: bytes) -> str:
    """By which groups and laws are told apart."""
    return hashlib.sha256(b"".join(data)).hexdigest()[:16]


def warn_of_others(who: str, relies_on: tuple[str, ...], made: MadeFor, here: MadeFor) -> None:
    """Warn where exams differ from those that an agent was made for in what it relies on."""
    if differing := [
        what for what in (QUESTIONS, LENGTH, BUDGET) if what in made.differences(here) and what in relies_on
    ]:
        warnings.warn(
            f"{who} was made for exams of {made}, and takes {here} here: other {', '.join(differing)}",
            OtherExams,
            stacklevel=3,
        )
