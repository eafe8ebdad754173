"""Worked solutions that a model is taught: our own code, one function a family, in two styles.

The length grows with the work that the task really takes. The *terse* style does more in one step than the *verbose*
one, and sometimes a solution is checked once more: so the same question can cost different numbers of tokens.
"""

from __future__ import annotations

import re
from random import Random

from agents.llm.small_model.tasks import Task

CHECK_PROBABILITY = 0.12
"""Share of solutions that end with a second, terse pass over the task."""


def solution(task: Task, rng: Random) -> str:
    """A worked solution (without the answer tags) in a random style."""
    write = _WRITERS[task.family]
    text = write(task, rng.random() < 0.5)
    if rng.random() < CHECK_PROBABILITY:
        text += " check " + write(task, False)
    return text


def _legs(task: Task, verbose: bool) -> str:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    steps: list[str] = []
    total = 0
    for number, name in re.findall(r"(\d+) ([a-z ]+)", task.question.split("you have ")[1]):
        legs = ANIMALS[name if name in ANIMALS else name.removesuffix("s")]
        product = int(number) * legs
        before, total = total, total + product
        addition = f"{before}+{product}=" if verbose else ""
        steps.append(f"{number} {name} {legs}={product}, {addition}{total}")
    return "; ".join(steps)


def _sum(task: Task, verbose: bool) -> str:
    first, *rest = re.findall(r"[-+]?\d+", task.entry["metadata"]["expression"].replace(" ", ""))
    steps: list[str] = []
    total = int(first)
    for term in rest:
        before, total = total, total + int(term)
        steps.append(f"{before}{term}={total}" if verbose or not steps else f"{term}={total}")
    return "; ".join(steps)


def _product(task: Task, verbose: bool) -> str:
    left, right = task.entry["metadata"]["expression"].split(" * ")
    if len(left) == len(right) == 1:
        return f"{left}*{right}={int(left) * int(right)}"
    steps, total = [], 0
    for place, digit in enumerate(reversed(right)):
        factor = int(digit) * 10**place
        part = int(left) * factor
        if verbose:
            pieces = [int(d) * 10**p * factor for p, d in enumerate(reversed(left))]
            steps += [
                f"{int(d) * 10**p}*{factor}={piece}"
                for p, (d, piece) in enumerate(zip(reversed(left), pieces, strict=True))
            ]
            steps.append("+".join(map(str, pieces)) + f"={part}")
        else:
            steps.append(f"{left}*{factor}={part}")
        before, total = total, total + part
        if place:
            steps.append(f"{before}+{part}={total}")
    return "; ".join(steps)


def _gcd(task: Task, verbose: bool) -> str:
    numbers = task.entry["metadata"]["numbers"]
    large, small = max(numbers), min(numbers)
    steps = []
    while small:
        quotient, rest = divmod(large, small)
        steps.append(f"{large}={quotient}*{small}+{rest}" if verbose else f"{large}%{small}={rest}")
        large, small = small, rest
    return "; ".join(steps)


def _factor(task: Task, verbose: bool) -> str:
    """Trial division; the terse style names only the divisors found."""
    number, prime, steps = task.entry["metadata"]["number"], 2, []
    while prime * prime <= number:
        rest = number % prime
        if rest == 0:
            steps.append(f"{number}={prime}*{number // prime}")
            number //= prime
            continue
        if verbose:
            steps.append(f"{number}%{prime}={rest}")
        prime = next(p for p in range(prime + 1, 2 * prime + 1) if all(p % q for q in range(2, p)))
    return "; ".join([*steps, f"{number} prime"])


_RULES = {
    ("A#", "#A"): (),
    ("B#", "#B"): (),
    ("A#", "#B"): ("#B", "A#"),
    ("B#", "#A"): ("#A", "B#"),
}


def _ab(task: Task, verbose: bool) -> str:
    """States one after the other: verbose, one rewriting a state; terse, all that do not overlap, left to right."""
    state = task.question.split(" program ")[1].split()
    lines = [state]
    while True:
        new: list[str] = []
        place, changes = 0, 0
        while place < len(state):
            pair = tuple(state[place : place + 2])
            if pair in _RULES and not (verbose and changes):
                new += _RULES[pair]
                place, changes = place + 2, changes + 1
            else:
                new.append(state[place])
                place += 1
        if not changes:
            # The rules are confluent: either style ends in the generator's own final state.
            return " >".join("".join(f" {symbol}" for symbol in line) or " empty" for line in lines)
        state = new
        lines.append(state)


_WRITERS = {"legs": _legs, "sum1": _sum, "sum2": _sum, "prod": _product, "gcd": _gcd, "factor": _factor, "ab": _ab}
