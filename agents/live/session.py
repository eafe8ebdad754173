"""One budget and one agent: questions are admitted one by one, and settled with what they cost.

A request is sent only after the most that it can cost has been reserved. So what is charged never exceeds the budget by
more than endpoints overshoot the caps they were given, and that is shown.

`roi answer` (:mod:`agents.live.answer`) and `roi serve` share this: one admission, one settlement, one check of agents.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.base import (
    Agent,
    DecisionView,
    ExamsView,
    Feedback,
    Problem,
    find_agent,
    is_saved,
    make_agent,
    parse_agent,
    saved_name,
)
from agents.live.steps import STEP, Flights, Ticket, step
from agents.one_pass import ExamTaker
from agents.playing import action_numbers, check_probs, pick_actions
from roi_env.answering.base import Ask, LiveSolver, Question, Reply, Sink, ThinkingTier, is_unsent, unsent_reply
from roi_env.answering.ledger import Books, Entry, NoRoom, reply_facts, reply_of
from roi_env.answering.prices import TOKENS, Rates
from roi_env.answering.streams import Pace
from roi_env.envs.live import gave_nothing, judged

Check = Callable[[Question, str], bool]
Prepare = Callable[[Ask], Ask]


@dataclass(frozen=True)
class Row:
    """What became of one question; costs are in the budget's unit.

    :param position: its place.
    :param question_id: its name.
    :param tier: the tier played; None: skipped, or not reached.
    :param status: "answered", "skipped", "cut" (at the budget), "error", "unknown" (in flight when a run was killed), or
        "not reached" (the budget was gone).
    :param answer: the text.
    :param reserved: before sending.
    :param charged: decision cost included.
    :param overshoot: what was charged beyond what was reserved; included in ``charged``.
    :param remaining: after it was settled.
    :param tokens: generated.
    :param prompt_tokens: of what was asked, where known.
    :param reasoning_tokens: of ``tokens``, where known.
    :param counted: where the count comes from, see :data:`roi_env.answering.base.Counted`.
    :param finish: as the endpoint ended.
    :param error: what went wrong.
    :param correct: where a check was given.
    :param attempts: requests sent.
    :param seconds: of waiting for the endpoint.
    :param line: of the question in its file, from 1; its place from 1 where it came from elsewhere.
    """

    position: int
    question_id: str
    tier: str | None
    status: str
    answer: str = ""
    reserved: int = 0
    charged: int = 0
    overshoot: int = 0
    remaining: int = 0
    tokens: int = 0
    prompt_tokens: int | None = None
    reasoning_tokens: int | None = None
    counted: str | None = None
    finish: str | None = None
    error: str | None = None
    correct: bool | None = None
    attempts: int = 0
    seconds: float = 0.0
    line: int = 0


class Session:
    """One budget, one agent, questions in the order of admission.

    :param agent: its problem names the budget.
    :param tiers: its tiers, as the solver knows them.
    :param groups: (N,) groups of the questions; ``HIDDEN`` where they are not known yet.
    :param ledger: where reservations are kept.
    :param seed: of the draws from the agent's probabilities.
    :param check: judges answers at once, where the agent may learn whether it was right.
    :param rates: what tiers cost in the budget's unit.
    """

    def __init__(
        self,
        agent: Agent,
        solver: LiveSolver,
        tiers: Sequence[ThinkingTier],
        groups: Sequence[int],
        *,
        ledger: Books,
        window: int = 1,
        seed: int = 0,
        check: Check | None = None,
        texts: tuple[str, ...] | None = None,
        rates: Rates = TOKENS,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be >= 1, got {window}")
        problem = agent.problem
        if problem.tier_names != tuple(tier.name for tier in tiers):
            raise ValueError(
                f"the agent knows tiers {list(problem.tier_names)}, asked for are {[t.name for t in tiers]}"
            )
        if problem.unit != rates.unit:
            raise ValueError(
                f"the agent counts {problem.unit}, the tiers cost {rates.unit}: give it a budget of that unit"
            )
        if len(groups) != problem.num_tasks:
            raise ValueError(
                f"the agent takes exams of {problem.num_tasks} tasks, these are {len(groups)}: train one for that number, "
                "or use a planner"
            )
        self.agent, self.problem, self.solver, self.tiers = agent, problem, solver, tuple(tiers)
        self.ledger, self.window, self.check = ledger, window, check
        self.rates, self._prompt = rates, prompt_bound(solver, rates)
        self.flights = Flights([tier.most_tokens for tier in self.tiers], problem.decision_cost)
        self._groups = np.array([groups], np.int32)
        shown = None if texts is None else (texts,)
        self._state = agent.start(ExamsView(problem, self._groups.copy(), shown))
        self._numbers = action_numbers(np.uint64(seed), np.zeros(1, np.int64), np.zeros(1, np.int64), len(groups))[0]
        self._last = (0, 0, False)
        self._settled = asyncio.Event()  # a new one after every settlement
        self._paid_decisions = sum(note["decision"] for note in ledger.notes if "skipped" in note)

    @property
    def budget(self) -> int:
        """All of it: the problem's, unless the ledger knows better (top-ups, periods)."""
        return self.problem.budget if self.ledger.limit is None else self.ledger.limit

    @property
    def in_flight(self) -> int:
        """Requests that are admitted and not settled."""
        return len(self.flights)

    @property
    def charged(self) -> int:
        """Charged so far."""
        return self.ledger.charged + self._paid_decisions

    @property
    def _free(self) -> int:
        """Budget that is not charged: what may be left when nothing is in flight."""
        return self.budget - self.charged

    @property
    def remaining(self) -> int:
        """Budget that is neither charged nor reserved, at least 0."""
        return max(0, self.budget - self.charged - self.ledger.reserved)

    def widen(self, window: int) -> None:
        """Let so many requests be in flight from now on."""
        if window > self.window:
            self.window = window
            self._changed()

    async def admit(self, position: int, question: Question) -> Ticket | None:
        """Decide a question, reserve what it costs, and wait until that is on the disk: it may be sent then.

        What interrupts it leaves nothing reserved and nothing charged.

        :returns: None where the budget is gone.
        """
        while True:
            ticket = await self.decide(position, question)
            if ticket is None or await self.secured(ticket):
                return ticket

    async def secured(self, ticket: Ticket) -> bool:
        """Wait until what a decided question reserves is on the disk; what interrupts that gives it back.

        :returns: False: others took it, and the question must be decided again.
        """
        if ticket.entry is None:
            return True
        try:
            await self.ledger.secure(ticket.entry)
        except NoRoom:
            self.flights.end(ticket)
            await self._change()
            return False
        except BaseException:
            self.flights.end(ticket)
            self._changed()
            raise
        return True

    async def decide(
        self,
        position: int,
        question: Question,
        group: int | None = None,
        limit: int | None = None,
        choices: int = 1,
        most: int | None = None,
        prepare: Prepare = lambda ask: ask,
        grows: bool = True,
    ) -> Ticket | None:
        """Decide a question and enter what it reserves; waits while the window is full or what it should need does not fit.

        The worst case is reserved, or, where the solver's answers tell what they take, the first step of it. It counts
        from now on, so that the next question may be decided while :meth:`secured` waits for the disk.

        :param position: 0 .. N - 1.
        :param group: of a question that was not known before.
        :param limit: most tokens that one answer may take, whatever the tier.
        :param choices: answers that are asked for, each of which costs; the agent decides as if the budget were so many
            times smaller.
        :param most: that the request may cost, whatever the tier.
        :param prepare: see :meth:`finish`.
        :param grows: whether the answer may be made in a way that tells what it takes.
        :returns: None where the budget is gone.
        """
        if group is not None:
            self._groups[0, position] = group
        cost = self.problem.decision_cost
        while True:
            while self.in_flight >= self.window:
                await self._settled.wait()
            if not self.ledger.brings_news:  # else many are decided while one transaction is written
                await self.ledger.refresh()
            if self.remaining == 0 and not self.in_flight and not self.ledger.reserved:
                return None
            # The agent plans with what requests in flight should cost; whether there is room for it is another question.
            seen = self.budget - self.charged - round(self.flights.expected()) if self.in_flight else self.remaining
            view = self._view(position, max(seen // choices, 1))
            action, state = self._choose(view, position)
            worst, each, bound = cost, 0, 0
            while action:
                tier = self.tiers[action - 1]
                each = min(tier.most_tokens, limit or tier.most_tokens)
                bound = self._prompt(prepare(Ask(question, tier, each, choices=choices)))
                asked = self.rates.cost(tier.name, each * choices, bound)
                worst = cost + (asked if most is None else min(asked, most))
                affords = self.rates.affords(tier.name, min(worst, self._free) - cost, bound)
                if action == 1 or not self.rates.prices or affords is None or affords >= choices:
                    break
                action -= 1  # its prompt alone costs more than there is: whoever is cheaper may answer
            lead = self._lead(tier) if grows and action else None
            first = need = worst
            if lead is not None:
                first = min(worst, cost + self.rates.cost(tier.name, lead + STEP, bound))
                price, fixed = self.rates.price(tier.name), self.rates.cost(tier.name, 0, bound)
                asked_for = (action, choices, each, price, fixed)
                if self.flights.most_need(*asked_for) > self.remaining:
                    need = max(first, round(self.flights.need(*asked_for)))
                else:  # there is room whatever they take
                    need = first
            if need > self.remaining and (self.in_flight or self.ledger.reserved):
                await self._change()
                continue  # decided again, knowing more
            key = (position, question.question_id, action, seen)
            room = min(worst, self.remaining)
            self._state = state  # what is learned meanwhile is learned on top of it
            if action:
                entry = self.ledger.enter(key, min(first, room))
                break
            try:
                await self.ledger.skip(key, room)
                break
            except NoRoom:
                await self._change()
        if action == 0:
            if not self.ledger.shared:  # shared books charge decisions themselves
                self._paid_decisions += room
            self._learn(view, 0, room, None, overspent=cost > room)
            return Ticket(position, question, 0, view, 0, None, choices, room)
        affords = self.rates.affords(tier.name, max(0, room - cost), bound)
        cap = each if affords is None else min(each, affords // choices)
        price, fixed = self.rates.price(tier.name), self.rates.cost(tier.name, 0, bound)
        believed = self._believed(view, action, bound)
        ticket = Ticket(position, question, action, view, cap, entry, choices, 0, bound, grows, price, fixed, believed)
        self.flights.begin(ticket)
        return ticket

    def _choose(self, view: DecisionView, position: int) -> tuple[int, Any]:
        """The agent's action, and its state afterwards."""
        probs, state = self.agent.act(view, self._state)
        action = pick_actions(check_probs(self.agent, probs, view), self._numbers[position : position + 1])[0]
        return int(action), state

    def warm_up(self) -> None:
        """Let the agent decide for nobody: what has to be compiled, which takes seconds, is compiled before anybody waits."""
        self._groups[0, 0], was = 0, self._groups[0, 0]
        self._choose(self._view(0, max(1, self.remaining)), 0)
        self._groups[0, 0] = was

    async def _change(self) -> None:
        """Wait until more may be left: a settlement here, or for a moment where other processes settle too."""
        if not self.ledger.shared:
            await self._settled.wait()
            return
        try:
            async with asyncio.timeout(0.1):
                await self._settled.wait()
        except TimeoutError:
            await self.ledger.reap()

    async def finish(
        self,
        ticket: Ticket,
        prepare: Prepare = lambda ask: ask,
    ) -> tuple[Row, Reply | None]:
        """Let the solver answer an admitted question and settle it.

        What interrupts that settles it at its reservation, unless it is known what it cost.

        :param prepare: adds to the request what else is asked (messages, fields, ...); its cap and tier must stay.
        """
        position, question = ticket.position, ticket.question
        entry = ticket.entry
        if entry is None:
            name = question.question_id
            return Row(position, name, None, "skipped", charged=ticket.paid, remaining=self.remaining), None
        tier, cost = self.tiers[ticket.action - 1], min(self.problem.decision_cost, entry.reserved)
        reply: Reply | None = None
        correct = None
        stopped, came, counted = False, 0, (0, 0)

        def most() -> int:
            """Tokens that an answer of which nothing more is known may have taken: it ended with its connection."""
            affords = self.rates.affords(tier.name, max(0, entry.reserved - cost), ticket.prompt)
            whole = ticket.cap * ticket.choices
            return whole if affords is None else min(whole, max(affords, came))

        def went_on(since: float) -> None:
            """The endpoint goes on while it is not read: where books are held or hang, or a client does not read, for long."""
            nonlocal came
            if (times := (time.monotonic() - since) / Pace.REACTION) >= 1:
                came = max(came, counted[0] + round(counted[1] * (times + 1)))  # until it is stopped, too

        async def meter(tokens: int, lead: int) -> bool:
            nonlocal stopped, counted
            counted, begun = (tokens, lead), time.monotonic()
            try:
                goes_on = await self._go_on(ticket, tokens, lead)
            finally:
                went_on(begun)
            stopped = tokens > 0 and not goes_on  # before it began there was nothing to stop
            return goes_on

        def timed(sink: Sink) -> Sink:
            async def take(text: str, chunk: Mapping[str, Any]) -> None:
                begun = time.monotonic()
                try:
                    await sink(text, chunk)
                finally:
                    went_on(begun)

            return take

        try:
            if ticket.cap > 0:
                ask = Ask(question, tier, ticket.cap, choices=ticket.choices, meter=meter if ticket.grows else None)
                ask = prepare(ask)
                if ticket.grows and ask.sink is not None:
                    ask = ask._replace(sink=timed(ask.sink))
                reply = await self.solver.answer(ask)
            else:
                reply = Reply("", None, 0, None, "length", "nothing", attempts=0)
            if self.check is not None and reply.error is None:
                correct = await asyncio.to_thread(self.check, question, reply.full_text)
        except BaseException as error:
            what = "interrupted" if isinstance(error, asyncio.CancelledError) else f"{type(error).__name__}: {error}"
            if reply is None and is_unsent(error):
                self._settle(ticket, 0, unsent_reply())
            elif reply is None:
                lost = Reply("", None, most(), None, "error", "reserved", what, lost=True)
                self._settle(ticket, self._charge(ticket, lost) + cost, lost)
            elif isinstance(error, asyncio.CancelledError):  # an answer that nobody judged
                self._settle(ticket, self._charge(ticket, reply) + cost, reply)
            else:
                self._settle(ticket, self._charge(ticket, reply) + cost, dataclasses.replace(reply, error=what))
            raise
        if reply.lost and reply.tokens <= ticket.cap * ticket.choices:  # more is known for sure
            reply = dataclasses.replace(reply, tokens=most())
        charge = self._charge(ticket, reply) + cost
        if stopped:  # what came until it ended is not known
            charge = max(charge, self._charge(ticket, dataclasses.replace(reply, tokens=most())) + cost)
            ticket = dataclasses.replace(ticket, cap=_each(reply.tokens, ticket.choices))
            assert ticket.entry is not None
        # What the endpoint did not take is not decided: it will be asked again.
        self._settle(ticket, 0 if reply.untaken else charge, reply, correct)
        await self.ledger.written()
        return self.row(entry, question, self.remaining), reply

    def row(self, entry: Entry, question: Question, remaining: int) -> Row:
        """The row of a settled request (or of one whose fate is unknown)."""
        position, _, action, _ = entry.key
        tier = _tiers(entry, self.tiers)[action - 1]
        if entry.facts is None:
            return Row(
                position, question.question_id, tier.name, "unknown", "", entry.reserved, entry.reserved,
                remaining=remaining, counted="reserved", error="in flight when the run was killed",
            )  # fmt: skip
        reply, cap, _, correct = _settled(entry.facts)
        _, cut = judged(reply, cap, tier, 0, 0)
        return Row(
            position,
            question.question_id,
            tier.name,
            "error" if reply.error else "cut" if cut or cap == 0 else "answered",
            reply.text,
            entry.reserved,
            entry.charged or 0,
            max(0, (entry.charged or 0) - entry.reserved),
            remaining,
            reply.tokens,
            reply.prompt_tokens,
            reply.reasoning_tokens,
            reply.counted,
            reply.finish,
            reply.error,
            None if cut else correct,
            reply.attempts,
            reply.seconds,
        )

    def replay(self, position: int, action: int, seen: int, entry: Entry | None, paid: int) -> None:
        """Take in a decision of an earlier run; one for a tier that is no more teaches nothing."""
        if entry is not None:
            tier = _tiers(entry, self.tiers)[action - 1]
            if tier not in self.tiers:
                return
            action = 1 + self.tiers.index(tier)
        view = self._view(position, max(seen, 1))
        _, self._state = self.agent.act(view, self._state)
        if entry is None:
            self._learn(view, 0, paid, None, overspent=False)
        elif entry.facts is not None:
            reply, cap, choices, correct = _settled(entry.facts)
            if reply.error is None:
                _, cut = judged(reply, cap, self.tiers[action - 1], 0, 0)
                charged = entry.charged or 0
                if not self.rates.prices:
                    paid = charged - reply.tokens + _each(reply.tokens, choices)
                elif reply.prompt_tokens is None:
                    paid = _each(charged, choices)
                else:  # at today's prices
                    cost = self.rates.charge(self.tiers[action - 1].name, reply, 0)
                    paid = _each(cost, choices) + self.problem.decision_cost
                nothing = bool(entry.facts.get("nothing", gave_nothing(reply)))
                self._learn(view, action, paid, correct, overspent=cut, failed=nothing)
                if not cut:
                    self.flights.learn(action, _each(reply.tokens, choices), paid)

    def relearn(self, entries: Sequence[Entry]) -> None:
        """Take in what an earlier process was told of its answers, the oldest first."""
        unknown = self._groups.copy()
        for entry in entries:
            if entry.charged is not None and entry.facts is not None and "group" in entry.facts:
                position, _, action, seen = entry.key
                position = min(position, self.problem.num_tasks - 1)
                self._groups[0, position] = entry.facts["group"]
                self.replay(position, action, seen, entry, 0)
        self._groups = unknown

    def _lead(self, tier: ThinkingTier) -> int | None:
        """Tokens that an answer of a tier may take before it can be stopped; None: unknown."""
        solver = self.solver.for_tier(tier.name) if hasattr(self.solver, "for_tier") else self.solver
        return getattr(solver, "lead", None)

    def _believed(self, view: DecisionView, action: int, prompt: int) -> float:
        """What an answer of a tier should cost, without its decision."""
        if (laws := self.problem.beliefs) is not None:
            return float(laws.expected_cost[view.group[0], action - 1])
        tier = self.tiers[action - 1]
        return float(self.rates.cost(tier.name, tier.most_tokens, prompt))

    async def _go_on(self, ticket: Ticket, tokens: int, lead: int) -> bool:
        """Let a reservation follow its answer.

        :param tokens: taken so far.
        :param lead: that may come before it can be stopped.
        :returns: False: it must be stopped.
        """
        entry, whole = ticket.entry, ticket.cap * ticket.choices
        assert entry is not None
        gap, more = self.flights.took(ticket, tokens), step(tokens)
        # What the next chunk may bring before it can be refused comes on top.
        soon = tokens + gap + lead
        if soon >= whole and entry.reserved >= self._cost(ticket, whole):
            return True
        least, wanted = (self._cost(ticket, min(whole, soon + extra)) for extra in (0, more))
        if least <= entry.reserved <= wanted:
            return True
        room = entry.reserved + self.remaining
        grown = wanted if wanted <= room else least
        if grown > room and grown > entry.reserved:
            return entry.reserved >= least
        shrinks = grown < entry.reserved
        try:
            await self.ledger.resize(entry, grown)
        except NoRoom:
            return entry.reserved >= least
        if shrinks:
            self._changed()
        return True

    def _changed(self) -> None:
        """Let those look again who wait for room."""
        self._settled.set()
        self._settled = asyncio.Event()

    def _cost(self, ticket: Ticket, tokens: int) -> int:
        """What a request costs that takes so many tokens, its decision included."""
        tier = self.tiers[ticket.action - 1]
        return self.problem.decision_cost + self.rates.cost(tier.name, tokens, ticket.prompt)

    def _charge(self, ticket: Ticket, reply: Reply) -> int:
        """What a reply costs, without the decision."""
        return self.rates.charge(self.tiers[ticket.action - 1].name, reply, ticket.prompt)

    def _settle(self, ticket: Ticket, charge: int, reply: Reply, correct: bool | None = None) -> None:
        """Settle a request, once; without a point where it could be interrupted."""
        assert ticket.entry is not None
        facts = {**reply_facts(reply), "cap": ticket.cap}
        nothing = gave_nothing(reply)
        if self.ledger.shared:  # which keep no texts
            facts |= {"group": int(ticket.view.group[0]), "nothing": nothing}
        if ticket.choices > 1:
            facts |= {"cap": ticket.cap * ticket.choices, "choices": ticket.choices}
        try:
            self.ledger.settle(ticket.entry, charge, facts if correct is None else {**facts, "correct": correct})
        finally:
            self._done(ticket, reply, correct, nothing)

    def _done(self, ticket: Ticket, reply: Reply, correct: bool | None, nothing: bool) -> None:
        self.flights.end(ticket)
        if reply.error is None:  # an endpoint's failure says nothing of the tier
            tier = self.tiers[ticket.action - 1]
            _, cut = judged(reply, ticket.cap, tier, 0, 0)
            each = _each(reply.tokens, ticket.choices)
            paid = _each(self._charge(ticket, reply), ticket.choices) + self.problem.decision_cost
            if not cut:
                self.flights.learn(ticket.action, each, paid)
            self._learn(ticket.view, ticket.action, paid, correct, overspent=cut or ticket.cap == 0, failed=nothing)
        self._changed()

    def _learn(
        self,
        view: DecisionView,
        action: int,
        paid: int,
        correct: bool | None,
        *,
        overspent: bool,
        failed: bool = False,
    ) -> None:
        told = self.problem.feedback == "cost+correct" and correct is not None
        shown = np.array([bool(correct) and not overspent]) if told else None
        feedback = Feedback(
            view, np.array([action]), np.array([paid]), shown, np.array([overspent]), np.array([failed and not correct])
        )
        self._state = self.agent.observe(feedback, self._state)
        self._last = (action, paid, told and bool(correct))

    def _view(self, position: int, remaining: int) -> DecisionView:
        action, tokens, correct = self._last
        return DecisionView(
            self.problem,
            np.zeros(1, np.int64),
            np.array([position]),
            np.array([min(remaining, self.problem.budget)]),
            np.array([action]),
            np.array([tokens]),
            np.array([correct]),
            self._groups,
        )


def prompt_bound(solver: LiveSolver, rates: Rates) -> Callable[[Ask], int]:
    """Most tokens of a request's prompt, where they cost; else 0.

    :raises ValueError: where they cost and the solver cannot tell.
    """
    if not rates.prices:
        return lambda ask: 0
    bound: Callable[[Ask], int] | None = getattr(solver, "most_prompt", None)
    if bound is None:
        raise ValueError(f"{solver.name}: prompts cost money, and this solver has no most_prompt to bound them")
    return bound


def check_live(text: str, *, learns: bool) -> None:
    """Whether an agent can decide live questions, before anything is asked or spent.

    :param text: as in :func:`agents.base.make_agent`.
    :param learns: whether there are recorded outcomes that it could learn from.
    :raises ValueError: for names that are misspelt, agents that take whole exams in one pass, that plan with laws which
        nobody knows of live questions, that learn and have not learned, or whose packages are not installed.
    """
    name = saved_name(text) if is_saved(text) else parse_agent(text)[0]
    entry = find_agent(name)
    if entry is None:
        raise ValueError(f"agent {text!r} is a saved {name!r}, which nobody registered")
    if entry.privileged:
        raise ValueError(f"agent {text!r} plans with the true laws of an exam, which nobody knows of live questions")
    try:
        kind = entry.load()
    except ModuleNotFoundError as error:
        raise ValueError(f"agent {text!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Agent)):
        return
    if issubclass(kind, ExamTaker):
        raise ValueError(
            f"agent {text!r} takes whole exams in one pass, it cannot decide live questions one by one: compare it with "
            "`roi compare`, or choose a model that decides task by task (llm)"
        )
    if kind.train is not Agent.train and not is_saved(text) and not learns:
        raise ValueError(
            f"agent {text!r} learns from recorded outcomes, and there are none: give a table to train it on (`roi answer "
            "--table`) or a trained agent (.npz), or choose a planner that needs no training (online-lp)"
        )


def learns_from_table(text: str) -> bool:
    """Whether a registered agent is trained on a table's exams before it decides live questions.

    :param text: as in :func:`check_live`, which accepts it.
    """
    if is_saved(text):
        return False
    entry = find_agent(parse_agent(text)[0])
    kind = None if entry is None else entry.load()
    return isinstance(kind, type) and issubclass(kind, Agent) and kind.train is not Agent.train


def make_live(text: str, problem: Problem) -> Agent:
    """:func:`agents.base.make_agent` for names out of a command line, which may hold anything.

    :raises ValueError: where the agent does not fit the problem, or its parameters are of the wrong kind.
    """
    try:
        return make_agent(text, problem)
    except (TypeError, KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"agent {text!r} does not fit these questions: {error}") from error


def _settled(facts: Mapping[str, Any]) -> tuple[Reply, int, int, bool | None]:
    """(reply, cap of each answer, answers, whether it was right) of a settled request."""
    kept = dict(facts)
    cap, choices, correct = kept.pop("cap"), kept.pop("choices", 1), kept.pop("correct", None)
    kept = {name: value for name, value in kept.items() if name not in ("group", "nothing")}
    return reply_of(kept), cap // choices, choices, correct


def _each(tokens: int, choices: int) -> int:
    """Cost of one of several answers, on the average: what an agent learns of a tier."""
    return -(-tokens // choices)


def _tiers(entry: Entry, now: tuple[ThinkingTier, ...]) -> tuple[ThinkingTier, ...]:
    """The tiers that a request was one of."""
    fields = entry.settings.get("tiers")
    return now if fields is None else tuple(ThinkingTier(*values) for values in fields)
