"""Reservations that grow while answers come, so that a budget is not full of what answers might have cost.

Reserved is at any moment what an answer has taken, what may come before it can be stopped, and a step. One that cannot grow
any more is stopped and costs its reservation: the budget holds whatever answers take. So that few are stopped, a question is
admitted only where what all in flight should take fits, with a reserve for their spread.

What they should take is estimated from the answers that ended and from those still running, which have taken more than they
have so far (Kaplan and Meier, Journal of the American Statistical Association 53, 1958); where all is open it is the worst case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.base import DecisionView
from roi_env.answering.base import Question
from roi_env.answering.ledger import Entry

Tokens = npt.NDArray[np.float64]

STEP = 8
"""Tokens by which a reservation grows at least; long answers grow by larger ones."""
_SHARE = 12
"""An answer grows by one part in so many of what it has taken."""
_KEPT = 512
"""Newest answers of a tier that tell what the next one should take."""
_SPREADS = 1.0
"""Standard deviations of the sum that are kept in reserve."""


def step(tokens: int) -> int:
    """By how much the reservation of an answer grows that has taken so many tokens."""
    return max(STEP, tokens // _SHARE)


@dataclass(frozen=True)
class Ticket:
    """An admitted question: decided, reserved, not yet settled.

    :param entry: in the ledger; None for a skip.
    :param view: what the agent saw.
    :param cap: most tokens that one answer may take.
    :param prompt: most tokens of what is asked, where they cost.
    :param choices: answers asked for.
    :param paid: what the decision cost, where the question is skipped.
    :param grows: whether its reservation may be less than the worst case, and follows what the answer takes.
    :param price: of a generated token.
    :param fixed: what the prompt may cost.
    :param believed: what one answer should cost, before any has ended.
    """

    position: int
    question: Question
    action: int
    view: DecisionView
    cap: int
    entry: Entry | None
    choices: int = 1
    paid: int = 0
    prompt: int = 0
    grows: bool = False
    price: float = 1.0
    fixed: int = 0
    believed: float = 0.0

    @property
    def place(self) -> int:
        """Names it among all that are in flight; the ledger may not have numbered it yet."""
        assert self.entry is not None
        return id(self.entry)


class Lengths:
    """What the answers of a tier take, given what they have taken.

    One that takes the most counts with them, so that few answers do not tell too much.

    :param ended: tokens of answers that ended by themselves.
    :param running: tokens that others take at least.
    :param most: tokens that none exceeds.
    """

    def __init__(self, ended: Tokens, running: Tokens, most: int) -> None:
        times, events = np.unique(np.minimum(ended, most), return_counts=True)
        later = 1 + sum(len(some) - np.searchsorted(np.sort(some), times) for some in (ended, running))
        self._times = np.concatenate([[0.0], times, [most]])
        self._share = np.concatenate([[1.0], np.cumprod(1 - events / later)])  # takes more than this, up to the next
        self._sums = [np.concatenate([[0.0], np.cumsum(np.diff(self._times**k) * self._share)]) for k in (1, 2)]

    def given(self, taken: Tokens) -> tuple[Tokens, Tokens]:
        """(mean, variance) of what answers take that have taken so much."""
        place = np.minimum(np.searchsorted(self._times, taken, side="right") - 1, len(self._share) - 1)
        share, at = self._share[place], self._times[place]
        mean, square = (
            taken**k + (sums[-1] - sums[place]) / share - (taken**k - at**k)
            for k, sums in ((1, self._sums[0]), (2, self._sums[1]))
        )
        return mean, np.maximum(square - mean**2, 0.0)


class Flights:
    """Requests in flight, the oldest first.

    :param most: tokens that an answer takes at most, by tier.
    :param decision_cost: tokens of every decision.
    """

    def __init__(self, most: Sequence[int], decision_cost: int) -> None:
        self._most, self._decision_cost = most, decision_cost
        self._ended: list[deque[int]] = [deque(maxlen=_KEPT) for _ in most]
        self._paid: list[deque[int]] = [deque(maxlen=_KEPT) for _ in most]
        self._sums = [0] * len(most)
        self._running: dict[int, Ticket] = {}
        self._taken: dict[int, int] = {}
        self._clear()

    def _clear(self) -> None:
        """Sums over those in flight, so that deciding takes no longer where they are many."""
        self._bound = 0.0
        self._answers = [0] * len(self._most)
        self._believed = [0.0] * len(self._most)

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._running.values())

    def begin(self, ticket: Ticket) -> None:
        """One more."""
        self._running[ticket.place], self._taken[ticket.place] = ticket, 0
        self._count(ticket, 1)

    def _count(self, ticket: Ticket, sign: int) -> None:
        self._bound += sign * self._bound_of(ticket.action, ticket.choices, ticket.cap, ticket.price, ticket.fixed)
        self._answers[ticket.action - 1] += sign * ticket.choices
        self._believed[ticket.action - 1] += sign * ticket.choices * ticket.believed

    def took(self, ticket: Ticket, tokens: int) -> int:
        """Say what one has taken so far; gives how much that is more than before."""
        before, self._taken[ticket.place] = self._taken[ticket.place], tokens
        return tokens - before

    def end(self, ticket: Ticket) -> None:
        """One less."""
        ticket = self._running.pop(ticket.place)  # as it began
        del self._taken[ticket.place]
        if self._running:
            self._count(ticket, -1)
        else:  # sums of fractions leave a rest
            self._clear()

    def learn(self, action: int, tokens: int, paid: int) -> None:
        """An answer of a tier has ended by itself.

        :param tokens: that it took.
        :param paid: what it cost.
        """
        self._ended[action - 1].append(tokens)
        self._paid[action - 1].append(paid)
        self._sums[action - 1] = sum(self._paid[action - 1])

    def expected(self) -> float:
        """What those in flight should cost: as those of their tiers that ended; what was believed counts like one of these."""
        answers = (
            (believed + count * sum_) / (1 + len(paid))
            for believed, count, sum_, paid in zip(self._believed, self._answers, self._sums, self._paid, strict=True)
        )
        return sum(answers) + len(self) * self._decision_cost

    def _bound_of(self, action: int, choices: int, most: int, price: float, fixed: int) -> float:
        """The worst case of a request, and its largest part of the reserve: a law on [0, m] deviates by m / 2 at most."""
        spread = _SPREADS * self._most[action - 1] / 2
        return choices * price * (most + spread) + fixed + self._decision_cost

    def most_need(self, action: int, choices: int, most: int, price: float, fixed: int) -> float:
        """What :meth:`need` does not exceed, at once however many are in flight."""
        return self._bound + self._bound_of(action, choices, most, price, fixed)

    def need(self, action: int, choices: int, most: int, price: float, fixed: int) -> float:
        """What should be left beyond all reservations for one request more: what it and those in flight should cost, and the
        reserve.

        :param choices: answers of the request.
        :param most: tokens that each takes at most.
        :param price: of a token.
        :param fixed: what the request costs besides.
        """
        mean = variance = 0.0
        for tier, (limit, ended) in enumerate(zip(self._most, self._ended, strict=True), 1):
            # (answers, tokens taken, reserved, tokens at most, price of a token, other cost) of each
            flights = [
                (
                    ticket.choices,
                    self._taken[ticket.place],
                    ticket.entry.reserved,
                    ticket.cap,
                    ticket.price,
                    ticket.fixed,
                )
                for ticket in self
                if ticket.action == tier and ticket.entry is not None
            ]
            rows = np.array([*flights, (choices, 0, 0, most, price, fixed)] if tier == action else flights, np.float64)
            if not len(rows):
                continue
            answers, taken, reserved, caps, prices, others = rows.T
            others = others + self._decision_cost
            covered = np.maximum(reserved - others, 0) / np.maximum(prices * answers, 1e-9)
            running = np.minimum(covered, caps)[: len(flights)]
            law = Lengths(np.array(ended, np.float64), running, limit)
            means, variances = law.given(np.minimum(taken / answers, limit))
            beyond = np.minimum(means, caps) * answers * prices + others - reserved
            mean += float(beyond[beyond > 0].sum())
            variance += float((variances * (answers * prices) ** 2)[beyond > 0].sum())
        return mean + _SPREADS * variance**0.5
