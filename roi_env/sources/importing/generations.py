"""What every importer makes of its format: one record a generation, and counts of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from roi_env.sources.importing.files import LogFile

NO_SAMPLES = "none: a question with an empty list of samples"
"""Why nothing came of a row."""
_RIGHT = ("true", "t", "yes", "y", "correct", "right", "pass", "passed", "success", "c")
_WRONG = ("false", "f", "no", "n", "incorrect", "wrong", "fail", "failed", "failure", "not_attempted", "i")
"""Words for a right and a wrong answer."""
NOTHING = ("", "none", "null", "nan", "n/a", "na", "<na>", "#n/a", "-", r"\n")
"""What tools write where there is no value, in small letters."""


@dataclass(slots=True)
class Generation:
    """One generation, as its log tells it; None or "" is what the log does not tell.

    :param score: whether it was right: a truth value, a number, or a text that says so.
    :param tokens: generated tokens, the thought included, the prompt not.
    :param usd: US dollars.
    :param text: what was generated, to count tokens where the log does not.
    :param texts: texts that were generated too and cost the same budget (of a choice among several).
    :param thought: the thought, where it is not in ``text``.
    :param thought_tokens: tokens of the thought, where the log counts them.
    :param apart: whether the log's total says that ``tokens`` lack those of the thought.
    :param model: who answered; ``effort``: how much it thought. Together they are the tier, unless ``tier`` is given.
    :param menu: menu that the tier belongs to.
    :param counted: who counted ``tokens``, where a table of ours tells.
    :param sample: number of the generation; None: numbered as rows come.
    :param name: that no other generation has: a second time it is a copy.
    :param judge: who judged, in rows of which several may judge one generation.
    :param condition: what makes it other than a sample, where several of one question and tier differ in it.
    :param error: what a log says beside it that went wrong.
    :param place: where it stands, for errors.
    """

    score: Any = None
    dataset: str = ""
    question_id: str = ""
    question: str = ""
    answer: str = ""
    model: str = ""
    effort: str = ""
    tier: str = ""
    menu: str = ""
    tokens: Any = None
    usd: Any = None
    text: str | None = None
    texts: tuple[str, ...] = ()
    thought: str | None = None
    thought_tokens: Any = None
    apart: bool = False
    counted: str = ""
    sample: Any = None
    tier_order: Any = None
    name: str = ""
    judge: str = ""
    condition: str = ""
    error: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        # Other tools write texts as they like.
        if self.text is not None and not isinstance(self.text, str):
            self.text = text_of(self.text)
        if self.thought is not None and not isinstance(self.thought, str):
            self.thought = text_of(self.thought)


@dataclass
class Options:
    """How a user wants logs to be read.

    :param columns: our column -> theirs, of tabular files.
    :param text: their column of the generated text.
    :param filter: which filter, scorer or metric decides.
    :param correct_at: smallest score that is right.
    :param unit: of costs: ``tokens``, ``micro-usd``, or None: what the logs have.
    :param tokenizer: counts the tokens of a text.
    """

    columns: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    filter: str | None = None
    correct_at: float | None = None
    unit: str | None = None
    tokenizer: Callable[[str], int] | None = None


@dataclass
class Report:
    """What a user must know of an import: what was left out, by reason, and what was inferred.

    ``chosen``: of judges that stood side by side the one that was taken; it is so in all files, whatever their order.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    chosen: dict[frozenset[str], str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    def warn(self, text: str) -> None:
        """Say something loudly, once."""
        if text not in self.warnings:
            self.warnings.append(text)


class Format(NamedTuple):
    """A kind of log.

    ``name`` for users; ``matches(file, first)`` tells it by content, ``first`` being the first record (of a zip: None);
    ``read(file, options, report, others)`` gives its generations, ``others`` being all files of the import.
    """

    name: str
    matches: Callable[[LogFile, Any], bool]
    read: Callable[[LogFile, Options, Report, list[LogFile]], Iterator[Generation]]


def dict_of(value: Any) -> dict[str, Any]:
    """A value that shall be an object; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """A value of a log as the text of an id, name or answer: numbers without needless points, lists by commas."""
    if value is None or value != value:  # what pandas writes where there is no value
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return str(value)


def verdict(text: str) -> bool | None:
    """Whether a word says that an answer was right; None where it is no such word."""
    word = text.lower()
    return True if word in _RIGHT else False if word in _WRONG else None


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings of a run as one text, to tell runs apart by; those without a value are left out."""
    return ", ".join(f"{name} {text_of(value)}" for name, value in settings.items() if value not in (None, "", [], {}))


def with_options(question: str, options: Any) -> str:
    """A question's text with its lettered options behind, unless it has them."""
    if not isinstance(options, list) or not options or all(str(option) in question for option in options):
        return question
    letters = [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(options))]
    return "\n".join([question, *(f"{letter}. {text_of(one)}" for letter, one in zip(letters, options, strict=True))])


def judged_by_share(file: LogFile, place: str, metric: str, score: Any, number: int) -> list[Any]:
    """The score of each of ``number`` generations of a question, of which a metric is the share that was right.

    :raises LogError: where some were right and some not, and which is not told.
    """
    if number > 1 and score is not None and score not in (0, 1):
        raise file.error(
            f"{place}: {metric} {text_of(score)} is the share of {number} generations that were right, and which of them is not told: log one "
            "generation a question, in several runs for several samples",
            is_log=True,
        )
    return [score] * number


def choose(names: list[str], wanted: str | None, what: str, report: Report) -> str | None:
    """One of several judges: the wanted one, else the first, which is said; None where the wanted one is not among them."""
    if wanted is not None:
        return wanted if wanted in names else None
    if len(names) < 2:
        return names[0] if names else None
    taken = report.chosen.setdefault(frozenset(names), names[0])
    report.warn(
        f"several {what}s judge one generation ({', '.join(sorted(names))}): {taken} is taken; --filter takes another"
    )
    return taken
