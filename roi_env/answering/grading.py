"""Grading, apart from generation: in worker processes that are killed when they take too long.

An answer is a model's text and may be hostile: an expression whose value fills the memory, a pattern that never ends.
Signals do not interrupt such work in threads, so every item has a time limit that a watching process enforces, and
workers have a limit of memory. What is killed, crashes or cannot be read is graded wrong, and said so.

First the answer is found (:mod:`roi_env.answering.answers`), then its value is judged. Graders by name:

* ``exact``: the answer equals the reference, up to case, spaces, markup around it and a final full stop;
* ``number``: both are the same rational number (:mod:`roi_env.answering.values`), units left out;
* ``choice``: the letters chosen are the reference's;
* ``math``: equal in value: rational numbers as above, all else by math-verify (LaTeX, sets, intervals, matrices);
* ``reasoning-gym``: the scorer of the generator that made the question (extra columns ``generator`` and ``entry``);
* ``module:function``: a user's ``function(question: Question, text: str) -> bool | float`` (1 or more: right).
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple
from unicodedata import normalize

from roi_env.answering.answers import WIDE, boxed, extract, first_line, stated
from roi_env.answering.base import Question
from roi_env.answering.choices import letters
from roi_env.answering.values import Value, close, formula, in_latex, value_of

__all__ = [
    "GRADERS",
    "Grade",
    "Grader",
    "GradingError",
    "GradingPool",
    "boxed",
    "choice",
    "exact",
    "extract",
    "load_grader",
    "math",
    "number",
    "reasoning_gym_score",
]

Grader = Callable[[Question, str], "bool | float"]

MEMORY = 4 << 30
"""Bytes of address space of a worker."""


class GradingError(ValueError):
    """A grader that cannot be used."""


class Grade(NamedTuple):
    """One grade. ``problem``: why an answer was not judged but counted wrong (None: it was judged)."""

    correct: bool
    problem: str | None = None


_MARKUP = re.compile(
    r"\\(?:text|mathrm|textbf|textit|mathbf|mbox|textrm|textnormal|emph|boldsymbol)(?![A-Za-z])\s*\{([^{}]*)\}"
)
_AROUND = " \t\n*_`$\"'“”‘’«»"
_SENTENCE = re.compile(r"(?<=[^\s.\\])[.!?](?:\s|$)")


def _bare(text: str) -> str:
    """Text without the markup around it."""
    text = _MARKUP.sub(r"\1", text.strip(_AROUND)).strip(_AROUND)
    for left, right in (("\\(", "\\)"), ("\\[", "\\]"), ("[[", "]]")):
        if text.startswith(left) and text.endswith(right):
            text = text[2:-2].strip(_AROUND)
    return text


def _plain(text: str) -> str:
    return " ".join(normalize("NFC", text).translate(WIDE).casefold().split()).removesuffix(".").rstrip()


def exact(question: Question, text: str) -> bool:
    """See the module's text; where an answer is said in a sentence ("The answer is Paris. It ..."), the sentence counts."""
    answer = stated(text)
    if answer.form == "none":
        return False
    wanted = {_plain(question.answer), _plain(_bare(question.answer))}
    said = [answer.text, *([] if answer.alone else [_SENTENCE.split(answer.text)[0]])]
    return any(_plain(form) in wanted or _plain(_bare(_plain(form))) in wanted for form in said)


def _says_number(text: str) -> bool:
    return "\\" in text or any(map(str.isnumeric, text))


def _says_mathematics(text: str) -> bool:
    return "$" in text or _says_number(text) or len(text.split()) <= 4


def number(question: Question, text: str) -> bool:
    """See the module's text.

    :raises GradingError: where the reference is not a number.
    """
    theirs = value_of(question.answer, stated=True)
    if theirs is None:
        raise GradingError(
            f"question {question.question_id!r}: the reference {question.answer[:60]!r} is not a rational number, which "
            "the grader number needs: choose math, or exact"
        )
    answer = stated(text, _says_number)
    if answer.form == "none":
        return False
    mine = value_of(answer.text if answer.alone else answer.text.rstrip("!?"), stated=answer.form != "line")
    return mine is not None and close(mine, theirs)


def choice(question: Question, text: str) -> bool:
    """See the module's text.

    :raises GradingError: where the reference names no option.
    """
    theirs = letters(_bare(question.answer))
    if not theirs:
        raise GradingError(
            f"question {question.question_id!r}: the reference {question.answer[:60]!r} is no letter of an option, which "
            "the grader choice needs: choose exact"
        )
    answer = stated(text, lambda said: bool(letters(_bare(said))))
    mine = letters(_bare(answer.text), said=answer.form != "line")
    if not mine and answer.form == "line" and (begun := _LETTERED.match(_bare(first_line(text)))):
        mine = letters(begun[0])  # "B) 4", and then why
    return mine == theirs


def math(question: Question, text: str) -> bool:
    """See the module's text; math-verify 0.9, its own signals off: the worker's time limit holds."""
    from math_verify import parse, verify

    theirs, answer = formula(question.answer), stated(text, _says_mathematics)
    if answer.form == "none":
        return False
    if theirs is not None and not answer.alone and not re.search(r"(?<!\\)\$|\\[^$%]", answer.text):
        mine = value_of(answer.text.rstrip("!?"), stated=answer.form != "line")
        return mine is not None and _same(mine, theirs)
    said = answer.text if answer.alone else _formula_in(answer.text, last=answer.form == "line")
    mine_based, theirs_based = _BASED.fullmatch(said), _BASED.fullmatch(question.answer)
    if mine_based and theirs_based:
        return mine_based.groups() == theirs_based.groups()  # math-verify passes over the base
    if not _balanced(said):
        return False  # cut before its end
    mine = formula(_ASSIGNED.sub("", said) if theirs is not None else said)
    if theirs is not None and mine is not None:
        return _same(mine, theirs)
    gold = parse(rf"\boxed{{{in_latex(question.answer)}}}", parsing_timeout=None)
    found = parse(rf"\boxed{{{in_latex(said)}}}", parsing_timeout=None)
    # The reference first: its comparison is not symmetric.
    return any(verify([a], [b], timeout_seconds=None) and _confirmed(a, b) for a in gold for b in found)


_ASSIGNED = re.compile(r"^\s*\\?[A-Za-z]+(?:_\{?\w+\}?|\(\w\))?\s*=(?=[^=]*$)")
_BASED = re.compile(r"\s*([0-9A-Z]+)_\s*\{?\s*(\d+)\s*\}?\s*")
_DENIED = re.compile(r"(?:\bnot|\bcannot|n['’]t)(?:\s+be|\s+equal(?:\s+to)?)?\s+$")
_LETTERED = re.compile(r"[(\[]?[A-Za-z](?:[)\].:]|$)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text):
        depth += (brace == "{") - (brace == "}")
        if depth < 0:
            return False
    return depth == 0


def _formula_in(text: str, *, last: bool) -> str:
    r"""What a sentence says in mathematics: ``$...$`` in it, or all of it."""
    text = text.strip(_AROUND.replace("$", ""))
    found = list(_FORMULA.finditer(text))
    said = [
        next(filter(None, part.groups()))
        for part in found
        if not _DENIED.search(text[max(0, part.start() - 40) : part.start()])
    ]
    if found:
        return said[-1 if last else 0] if said else ""
    return _SENTENCE.split(_bare(text))[0]


def _same(mine: Value, theirs: Value) -> bool:
    """Whether two numbers are equal; a decimal also where it is the other to six places (as math-verify has it)."""
    if close(mine, theirs):
        return True
    a, b = mine.number, theirs.number
    if mine.percent != theirs.percent:
        a, b = (a / 100, b) if mine.percent else (a, b / 100)
    return (mine.decimal or theirs.decimal) and round(a, 6) == round(b, 6) and abs(a - b) <= abs(b) / 10**4


def _confirmed(gold: Any, found: Any) -> bool:
    """Whether what math-verify holds equal has one size: it looks at decimal places, where 3^-80 and 3^-81 are both 0."""
    from sympy import Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Symbol, Tuple, UnevaluatedExpr
    from sympy.core.relational import Relational

    if isinstance(found, Relational) and not isinstance(gold, Relational):
        return _confirmed(gold, found.rhs)
    if isinstance(gold, Relational) and not isinstance(found, Relational):
        return _confirmed(gold.rhs, found)
    if isinstance(gold, Relational):
        return gold.lhs != found.lhs or _confirmed(gold.rhs, found.rhs)
    if isinstance(gold, Interval) and isinstance(found, Interval):
        return _confirmed(gold.start, found.start) and _confirmed(gold.end, found.end)
    if isinstance(gold, FiniteSet) and isinstance(found, FiniteSet):
        return all(any(_confirmed(a, b) for b in found.args) for a in gold.args)
    if isinstance(gold, (Tuple, MatrixBase)) and isinstance(found, (Tuple, MatrixBase)) and len(gold) == len(found):
        return all(_confirmed(a, b) for a, b in zip(gold, found, strict=True))
    if (
        not isinstance(gold, Expr)
        or not isinstance(found, Expr)
        or isinstance(gold, Symbol)
        or isinstance(found, Symbol)
    ):
        return True
    if gold.has(UnevaluatedExpr) or found.has(UnevaluatedExpr):
        return True  # percent
    free = sorted(gold.free_symbols | found.free_symbols, key=str)
    point = {symbol: Rational(7390851332, 10**10) + place for place, symbol in enumerate(free)}
    digits, tolerance = (30, Rational(1, 10**4)) if gold.has(Float) or found.has(Float) else (60, Rational(1, 10**50))
    try:
        a, b = gold.subs(point).evalf(digits), found.subs(point).evalf(digits)
        return bool(abs(a - b).evalf(15) <= tolerance * max(abs(a).evalf(15), abs(b).evalf(15)))
    except (TypeError, ValueError, ArithmeticError):
        return True  # no number at that point


def reasoning_gym_score(question: Question, text: str) -> float:
    """See the module's text."""
    from reasoning_gym import get_score_answer_fn

    score: Any = get_score_answer_fn(str(question.extra["generator"]))
    return float(score(answer=extract(text), entry=json.loads(str(question.extra["entry"]))))


GRADERS: Mapping[str, Grader] = {
    "exact": exact,
    "number": number,
    "choice": choice,
    "math": math,
    "reasoning-gym": reasoning_gym_score,
}
"""Graders by name; see the module's text."""


def load_grader(name: str) -> Grader:
    """A grader by name, or a user's ``module:function``.

    :raises GradingError: where there is none.
    """
    if name in GRADERS:
        return GRADERS[name]
    module, given, function = name.partition(":")
    if not given:
        raise GradingError(f"unknown grader {name!r}; there are {', '.join(GRADERS)}, and module:function")
    try:
        found: Grader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise GradingError(
            f"grader {name!r}: {error} (it is imported: its folder must be on PYTHONPATH, e.g. PYTHONPATH=. roi ...)"
        ) from None
    return found


def _work(name: str, pipe: Connection) -> None:
    """A worker: says that it is ready, then grades what comes until the pipe closes."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    grader = load_grader(name)
    if name == "math":
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off
        math(Question("", "", "", "1"), "1")  # its first call imports for a second
    pipe.send(None)
    while True:
        try:
            question, text = pipe.recv()
        except EOFError:
            return
        try:
            result: Grade = Grade(float(grader(question, text)) >= 1.0)
        except BaseException as error:  # an answer may break its reader in any way
            said = str(error) if isinstance(error, GradingError) else f"{type(error).__name__}: {error}"
            result = Grade(False, said[:300])
        pipe.send(result)


class _Worker:
    """A process, its pipe, and what it is doing since when."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(name, other), daemon=True)
        self.process.start()
        other.close()
        self.item: int | None = None
        self.since = time.monotonic()
        self.ready = False

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class GradingPool:
    """Workers that grade.

    :param grader: see the module's text.
    :param workers: processes.
    :param seconds: time limit of one item.
    :raises GradingError: for a grader that there is not.
    """

    def __init__(self, grader: str, *, workers: int = 1, seconds: float = 10.0) -> None:
        load_grader(grader)
        self.grader, self.seconds = grader, seconds
        self._workers = [_Worker(grader) for _ in range(workers)]
        self._one_caller = threading.Lock()

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()

    def __call__(self, question: Question, text: str) -> bool:
        """One item, as a :class:`~roi_env.answering.base.Checker`; a warning says what was not judged."""
        grade = self.grade([(question, text)])[0]
        if grade.problem is not None:
            name = question.question_id
            warnings.warn(f"an answer to {name!r} was not judged, it counts as wrong: {grade.problem}", stacklevel=2)
        return grade.correct

    def grade(
        self, items: Iterable[tuple[Question, str]], watch: Callable[[int], None] = lambda done: None
    ) -> list[Grade]:
        """Grades of all items, in their order; threads that call at once take turns.

        :param watch: called with the number of items done.
        """
        with self._one_caller:
            return self._grade(list(items), watch)

    def _grade(self, asked: list[tuple[Question, str]], watch: Callable[[int], None]) -> list[Grade]:
        waiting = deque(range(len(asked)))
        grades: dict[int, Grade] = {}
        while len(grades) < len(asked):
            for place, worker in enumerate(self._workers):
                late = time.monotonic() - worker.since > (self.seconds if worker.ready else 60.0 + self.seconds)
                if worker.item is not None and late:
                    grades[worker.item] = Grade(False, f"no grade within {self.seconds:g} s")
                    self._replace(place)
                elif (
                    not worker.ready and late and not worker.pipe.poll()
                ):  # it may have started long before it is asked
                    raise GradingError(f"grader {self.grader!r} did not start")
                elif worker.ready and worker.item is None and waiting:
                    worker.item, worker.since = waiting.popleft(), time.monotonic()
                    worker.pipe.send(asked[worker.item])
            busy = {
                worker.pipe: place
                for place, worker in enumerate(self._workers)
                if worker.item is not None or not worker.ready
            }
            for pipe in wait(list(busy), timeout=0.05):
                place = busy[pipe]  # type: ignore[index]
                worker = self._workers[place]
                try:
                    grade = worker.pipe.recv()
                except (EOFError, OSError):
                    if not worker.ready:
                        raise GradingError(f"grader {self.grader!r} ended before it graded anything") from None
                    if worker.item is not None:
                        grades[worker.item] = Grade(False, "the grader's process died")
                    self._replace(place)
                    continue
                if worker.ready and worker.item is not None:
                    grades[worker.item] = grade
                    worker.item = None
                worker.ready = True
            watch(len(grades))
        return [grades[number] for number in range(len(asked))]

    def _replace(self, place: int) -> None:
        self._workers[place].kill()
        self._workers[place] = _Worker(self.grader)
