"""The transition: the only place where the rules of the exam live.

:func:`transition` is plain Python for the single environment and is compiled, unchanged, into every batch kernel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


def transition(cost: int, correct: bool, remaining: int, position: int, num_tasks: int) -> tuple[int, bool, bool, bool]:
    """Apply one decision.

    :param cost: tokens the action asks for, decision cost included (skip: the decision cost alone).
    :param correct: whether the finished attempt would be right (skip: False).
    :param remaining: tokens left before it.
    :param position: index of the task, from 0.
    :param num_tasks: tasks in the exam.
    :returns: ``(paid, right, overspent, terminated)``. A cost above the remaining budget is cut there: the remainder is
        spent, nothing is earned and the exam ends. A cost equal to it is allowed. The exam ends after the last task or
        when the budget is gone.
    """
    overspent = cost > remaining
    paid = remaining if overspent else cost
    right = correct and not overspent
    terminated = paid == remaining or position + 1 == num_tasks
    return paid, right, overspent, terminated


compiled_transition = njit(cache=True, inline="always")(transition)


@njit(cache=True)
def advance(
    cost: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_],
    remaining: npt.NDArray[np.int64],
    position: int,
    num_tasks: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Apply :func:`transition` to a batch of decisions at one position; arrays of shape (D,)."""
    size = len(cost)
    paid = np.empty(size, np.int64)
    right, overspent, terminated = np.empty(size, np.bool_), np.empty(size, np.bool_), np.empty(size, np.bool_)
    for i in range(size):
        paid[i], right[i], overspent[i], terminated[i] = compiled_transition(
            cost[i], correct[i], remaining[i], position, num_tasks
        )
    return paid, right, overspent, terminated
