"""Grading, apart from generation: in worker processes that are killed when they take too long.

An answer is a model's text and may be hostile: an expression whose value fills the memory, a pattern that never ends.
Signals do not interrupt such work in threads, so every item has a time limit that a watching process enforces, and
workers have a limit of memory. What is killed, crashes or cannot be read is graded wrong, and said so.

Graders by name:

* ``exact``: the extracted answer equals the reference, up to case, spaces and a final full stop;
* ``number``: both are the same number (commas, currency signs, percent signs and units around it ignored);
* ``choice``: the letter chosen is the reference's;
* ``math``: equal in value by math-verify (LaTeX, numbers, sets, intervals);
* ``reasoning-gym``: the scorer of the generator that made the question (extra columns ``generator`` and ``entry``);
* ``module:function``: a user's ``function(question: Question, text: str) -> bool | float`` (1 or more: right).
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from roi_env.solvers.base import Question

Grader = Callable[[Question, str], "bool | float"]

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?")
_SAYS = re.compile(r"(?:answer|choice|option)\s*(?:is|:)?\s*:?\s*\(?([A-Z])\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MARKS = re.compile(r"</?think>|</?answer>|<\|[^|<>]*\|>")
MEMORY = 4 << 30
"""Bytes of address space of a worker."""


class GradingError(ValueError):
    """A grader that cannot be used."""


class Grade(NamedTuple):
    """One grade. ``problem``: why an answer was not judged but counted wrong (None: it was judged)."""

    correct: bool
    problem: str | None = None


def boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, braces balanced."""
    start = text.rfind(r"\boxed{")
    while start >= 0:
        depth = 0
        for at in range(start + 6, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start + 7 : at]
        start = text.rfind(r"\boxed{", 0, start)
    return None


def extract(text: str) -> str:
    r"""The answer that a text gives: its last ``<answer>``, else its last ``\boxed``, what follows ``####``, else the
    last line with something on it; thoughts and special tokens removed."""
    text = text.rpartition("</think>")[2]
    if tags := _TAG.findall(text):
        return str(tags[-1]).strip()
    inside = boxed(text)
    if inside is not None:
        return inside.strip()
    if r"\boxed{" in text:
        return ""  # cut before its end: what is there may be half a number
    text = _MARKS.sub("", text)
    if "####" in text:
        return text.rpartition("####")[2].strip().split("\n")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def exact(question: Question, text: str) -> bool:
    """See the module's text."""
    return _plain(extract(text)) == _plain(question.answer)


def _as_number(text: str) -> float | None:
    found = _NUMBER.findall(text.replace("−", "-"))
    return float(found[-1].replace(",", "")) if found else None


def number(question: Question, text: str) -> bool:
    """See the module's text; the last number of the answer counts."""
    mine, theirs = _as_number(extract(text)), _as_number(question.answer)
    return mine is not None and theirs is not None and abs(mine - theirs) <= 1e-9 * max(1.0, abs(theirs))


def choice(question: Question, text: str) -> bool:
    """See the module's text; "the answer is B" counts before a letter alone, the last of them before others."""
    answer = extract(text)
    said = _SAYS.findall(answer) or _LETTER.findall(answer)
    theirs = _LETTER.findall(question.answer.upper())
    return bool(said) and bool(theirs) and said[-1].upper() == theirs[0]


def math(question: Question, text: str) -> bool:
    """See the module's text; math-verify 0.9, its own signals off: the worker's time limit holds."""
    from math_verify import parse, verify

    gold = parse(rf"\boxed{{{question.answer}}}", parsing_timeout=None)
    mine = parse(rf"\boxed{{{extract(text)}}}", parsing_timeout=None)
    # The reference first: its comparison is not symmetric.
    return bool(gold) and bool(mine) and bool(verify(gold, mine, timeout_seconds=None))


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
        raise GradingError(f"grader {name!r}: {error}") from None
    return found


def _work(name: str, pipe: Connection) -> None:
    """A worker: says that it is ready, then grades what comes until the pipe closes."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    grader = load_grader(name)
    if name == "math":
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
            result = Grade(False, f"{type(error).__name__}: {error}"[:200])
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
        """One item, as a :class:`~roi_env.solvers.base.Checker`."""
        return self.grade([(question, text)])[0].correct

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
                elif not worker.ready and late:
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
