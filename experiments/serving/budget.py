"""A budget that the proxy keeps: its plan, its books, and a session for every menu that clients may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.commands import endpoints
from experiments.serving.amounts import Plan
from experiments.serving.attend import Queue
from experiments.serving.chat import Refused
from roi_env.answering.books import NEWEST, DatabaseLedger
from roi_env.answering.clerk import Clerk
from roi_env.answering.database import other_unit
from roi_env.answering.ledger import BooksAway
from roi_env.answering.prices import TOKENS, Rates
from roi_env.sources.units import SHORT_UNITS, UNIT_NAMES, cost_text, cost_with_unit

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.live.session import Session
    from roi_env.answering.base import ThinkingTier
    from roi_env.answering.http import ByTier, HTTPSolver
    from roi_env.envs.live import KnownGroups


LENGTHS = (120, 400)
"""Characters up to which a conversation is short, middle; questions to come are not known, so thirds cannot be taken."""
MOST_PLANNED = 2**30 - 1
"""Of a budget, that agents plan with; larger ones are kept all the same."""


@dataclass(eq=False)
class Budget:
    """One named budget.

    :param solver: who answers.
    :param clerk: keeps the books of all sessions.
    :param sessions: by menu: each admits and settles.
    :param window: questions of all sessions in flight.
    :param lock: questions are admitted one after the other.
    :param asked: questions so far.
    :param queue: who waits to be admitted.
    :param plan: as it was configured.
    :param known: a predictor's groups by menu; of others: by length.
    """

    name: str
    solver: HTTPSolver | ByTier
    clerk: Clerk
    sessions: dict[str, Session]
    window: int
    lock: asyncio.Lock
    asked: int
    queue: Queue
    plan: Plan
    known: Mapping[str, KnownGroups] = field(default_factory=dict)
    _folds: bool = field(default=True, init=False)

    @property
    def session(self) -> Session:
        """The first menu's; what is left and charged is the same in all."""
        return next(iter(self.sessions.values()))

    @property
    def menus(self) -> list[str]:
        """What its key may ask, as clients name models."""
        return [menu for menu in self.sessions if not self.plan.models or menu in self.plan.models]

    @property
    def in_flight(self) -> int:
        """Requests at endpoints."""
        return sum(session.in_flight for session in self.sessions.values())

    @property
    def busy(self) -> bool:
        """Whether requests are at endpoints, or wait."""
        return self.in_flight + self.queue.waiting > 0

    def menu_of(self, model: Any) -> str:
        """The menu that a client's ``model`` names; its first one where it names none.

        :raises Refused: 404, where the key may not ask it, or there is none.
        """
        if model is None or not isinstance(model, str):  # what is no text is refused with the rest of the request
            return self.menus[0]
        if model not in self.menus:
            there = ", ".join(map(repr, self.menus))
            message = f"The model {model!r} does not exist or this key may not use it; there is {there}"
            raise Refused(404, "model_not_found", message, "model")
        return model

    def close(self) -> None:
        """Settle what is left, and close its books."""
        self.clerk.close()

    def text(self, cost: int) -> str:
        """A cost as a header tells it."""
        return str(cost) if self.plan.unit == "tokens" else f"{cost / 10**6:.6f}"

    def shown(self, cost: int) -> int | float:
        """A cost as answers tell it: tokens, or dollars."""
        return cost if self.plan.unit == "tokens" else cost / 10**6

    def check(self, plan: Plan) -> None:
        """Whether it can go on under another plan.

        :raises ValueError: where it names no menu of this proxy, or counts another unit.
        """
        check_models(plan, self.sessions)
        if plan.unit != self.plan.unit:
            raise ValueError(other_unit(plan.name, self.plan.unit, plan.unit))

    async def renewed(self, plan: Plan) -> Budget:
        """The same budget under another plan that fits; requests in flight are settled as ever.

        :raises ValueError: where its books cannot be changed.
        :raises BooksAway: where they are not there.
        """
        # What `roi budgets set` has changed stays, where only limits, keys and the like are others.
        kept = replace(plan, amount=self.plan.amount, period=self.plan.period, carry_over=self.plan.carry_over)
        if kept != plan:
            await self.clerk.ask(lambda books: books.replan(plan.amount, plan.period, plan.carry_over, plan.unit))
        self.plan = plan
        return self

    async def fold(self) -> None:
        """Forget a few of the requests that were settled before its plan keeps them; see :attr:`Plan.keep`."""
        if not self._folds:
            return
        try:
            await self.clerk.fold(time.time() - 86400.0 * self.plan.keep)
        except BooksAway:
            pass
        except Exception as error:
            self._folds = False
            endpoints.report(f"{self.name}: old requests are kept, they cannot be deleted ({error})")

    def warning(self, own: int = 0) -> str | None:
        """What a client should know of it.

        :param own: that its request has reserved.
        """
        share, left = self.plan.warn_at, self.session.remaining + own
        if share is None or self.session.budget - left < share * self.session.budget:
            return None
        return f"{cost_text(left, self.plan.unit)} of {cost_with_unit(self.session.budget, self.plan.unit)} are left"

    def state(self) -> dict[str, Any]:
        """How it stands, in tokens or dollars."""
        unit, session = SHORT_UNITS[self.plan.unit], self.session
        return {
            "budget": self.name,
            "unit": unit,
            unit: self.shown(session.budget),
            "charged": self.shown(session.charged),
            "reserved": self.shown(session.ledger.reserved),
            "remaining": self.shown(session.remaining),
            "asked": self.asked,
        }


@dataclass(frozen=True)
class Served:
    """What one agent chooses from; ``name`` is what clients ask for as ``model``.

    :param rates: what its tiers cost.
    :param models: who answers each tier, where they are several.
    """

    name: str
    tiers: Sequence[ThinkingTier]
    rates: Rates = TOKENS
    models: Sequence[str] = ()


def check_models(plan: Plan, menus: Collection[str]) -> None:
    """Whether a plan names menus that there are.

    :raises ValueError: naming the first that is none.
    """
    if unknown := [menu for menu in plan.models if menu not in menus]:
        raise ValueError(f"budgets.{plan.name}.models: there is no menu {unknown[0]!r}, but {', '.join(menus)}")


def make_budget(
    name: str,
    amount: int | Plan,
    solver: HTTPSolver | ByTier,
    tiers: Sequence[ThinkingTier] | Sequence[Served],
    agent: str,
    expected: int,
    window: int,
    state: Path,
    queue: Queue | None = None,
    database: str | None = None,
    known: KnownGroups | None = None,
) -> Budget:
    """A budget with its ledger; an earlier one of the same name goes on, with another amount and other tiers too.

    :param amount: tokens of it, or all that is known of it.
    :param tiers: of the solver's one model, or several menus.
    :param expected: questions that the agent plans for; later ones count as the last.
    :param known: a predictor's groups, in place of groups by length, of the menus whose tiers it predicts.
    :raises ValueError: for agents or groups that do not fit, or a ledger that another process uses or that counts another unit.
    """
    from agents.live.session import check_live

    check_live(agent, learns=False)
    plan = amount if isinstance(amount, Plan) else Plan(name, amount)
    menus = [one for one in tiers if isinstance(one, Served)]
    menus = menus or [Served(solver.name, [one for one in tiers if not isinstance(one, Served)])]
    check_models(plan, [one.name for one in menus])
    known_by_menu = {
        one.name: known for one in menus if known is not None and [tier.name for tier in one.tiers] == [*known.tiers]
    }
    if known is not None and not known_by_menu:
        there = "; ".join(f"{one.name}: {', '.join(tier.name for tier in one.tiers)}" for one in menus)
        raise ValueError(f"the predictor's tiers are {', '.join(known.tiers)}, the live ones {there}: name them alike")
    state.mkdir(parents=True, exist_ok=True)
    takers = {menu.name: _taker(plan, menu, solver, agent, expected, known_by_menu.get(menu.name)) for menu in menus}
    settings = [_settings(menu, known_by_menu.get(menu.name)) for menu in menus]
    # What was charged is charged, whatever the budget and the tiers are now.
    books = DatabaseLedger(
        database or state / "budgets.db",
        plan.name,
        plan.amount,
        settings[0],
        period=plan.period,
        carry=plan.carry_over,
        journal=state / f"{plan.name}.jsonl",
        unit=plan.unit,
    )
    for message in books.messages:
        endpoints.report(message)
    clerk = Clerk(books, lambda text: endpoints.report(f"{plan.name}: {text}"))
    try:
        sessions = {
            menu.name: _session(menu, solver, takers[menu.name], expected, window, clerk.under(own))
            for menu, own in zip(menus, settings, strict=True)
        }
    except ValueError:
        clerk.close()
        raise
    return Budget(
        name, solver, clerk, sessions, window, asyncio.Lock(), books.asked, queue or Queue(), plan, known_by_menu
    )


def _settings(menu: Served, known: KnownGroups | None) -> dict[str, Any]:
    """What requests of a menu are entered with."""
    tiers = {"tiers": [list(tier.__dict__.values()) for tier in menu.tiers]}
    return tiers if known is None else {**tiers, "groups": list(known.names)}


def _session(
    menu: Served, solver: HTTPSolver | ByTier, agent: Agent, expected: int, window: int, clerk: Clerk
) -> Session:
    """The session of a menu, which has learned from its earlier answers."""
    from agents.base import HIDDEN
    from agents.live.session import Session

    session = Session(agent, solver, menu.tiers, [HIDDEN] * expected, ledger=clerk, window=window, rates=menu.rates)
    # Numbers of groups mean nothing where a predictor came, went or was another.
    groups = clerk.books.settings.get("groups")
    entries = clerk.books.newest_entries(NEWEST)
    session.relearn([entry for entry in entries if entry.settings.get("groups") == groups])
    session.warm_up()
    return session


def _taker(
    plan: Plan, menu: Served, solver: HTTPSolver | ByTier, agent: str, expected: int, known: KnownGroups | None
) -> Agent:
    """Who decides the questions of a menu."""
    from agents.base import public_problem
    from agents.live.session import make_live, prompt_bound
    from roi_env.answering.base import Question
    from roi_env.envs.live import live_source
    from roi_env.exams.config import exam_spec

    if menu.rates.unit != plan.unit:
        raise ValueError(
            f"the budget {plan.name!r} is {UNIT_NAMES[plan.unit]}, the tiers of {menu.name!r} cost {UNIT_NAMES[menu.rates.unit]}"
        )
    options: dict[str, Any] = {"rates": menu.rates, "models": menu.models, "prompt": prompt_bound(solver, menu.rates)}
    if known is None:
        # Thirds by length stand for the questions to come.
        asked = [Question("proxy", str(n), "x" * (1 + n % 3), "") for n in range(3 * expected)]
    else:
        known.group(["?"], {})  # a column that it needs no request has: said now, not at the first request
        # Groups come as often as among the questions that the predictor was fitted on.
        count = np.maximum(1, np.rint(known.share * max(3 * expected, 20 * len(known.names)))).astype(np.int64)
        to_come = np.repeat(np.arange(len(count)), count)
        asked = [Question("proxy", str(n), "", "") for n in range(len(to_come))]
        options["known"] = replace(known, group=lambda texts, columns: to_come)
    source = live_source(asked, menu.tiers, **options)
    planned = min(plan.amount, MOST_PLANNED)
    text = f"{planned} {plan.unit}"
    spec = exam_spec(source, num_tasks=expected, budget=text, preview=False)
    return make_live(agent, public_problem(spec))
