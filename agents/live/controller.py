"""The budget controller: any agent decides what each live question may cost, and the budget is a guarantee.

A request is sent only after the most that it can cost has been reserved; it is settled with what it cost. So what is
charged never exceeds the budget by more than endpoints overshoot the caps they were given, and that is shown.

:class:`Session` admits and settles single questions (the proxy uses it too), :class:`BudgetController` answers a list of
them: one after the other exactly as the exam, or several in flight (``window``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from roi_env.exams.config import ExamSpec, exam_spec

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
    public_problem,
    saved_name,
)
from agents.one_pass import ExamTaker
from agents.playing import action_numbers, check_probs, pick_actions
from roi_env.answering.base import Ask, LiveSolver, Message, Question, Reply, ThinkingTier, is_unsent, unsent_reply
from roi_env.answering.ledger import Entry, Ledger, reply_facts, reply_of
from roi_env.envs.live import judged, live_source
from roi_env.files import replacing
from roi_env.sources.outcome_tables import OutcomeTable

Check = Callable[[Question, str], bool]


@dataclass(frozen=True)
class Row:
    """What became of one question; tokens throughout.

    :param position: its place.
    :param question_id: its name.
    :param tier: the tier played; None: skipped, or not reached.
    :param status: "answered", "skipped", "cut" (at the budget), "error", "unknown" (in flight when a run was killed), or
        "not reached" (the budget was gone).
    :param answer: the text.
    :param reserved: before sending.
    :param charged: decision cost included.
    :param overshoot: generated beyond the cap; included in ``charged``.
    :param remaining: after it was settled.
    :param reasoning_tokens: of the charge, where known.
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
    reasoning_tokens: int | None = None
    counted: str | None = None
    finish: str | None = None
    error: str | None = None
    correct: bool | None = None
    attempts: int = 0
    seconds: float = 0.0
    line: int = 0


@dataclass(frozen=True)
class Ticket:
    """An admitted question: decided, reserved, not yet settled.

    :param entry: in the ledger; None for a skip.
    :param view: what the agent saw.
    :param cap: most tokens that may be generated.
    """

    position: int
    question: Question
    action: int
    view: DecisionView
    cap: int
    entry: Entry | None


class Session:
    """One budget, one agent, questions in the order of admission.

    :param agent: its problem names the budget.
    :param tiers: its tiers, as the solver knows them.
    :param groups: (N,) groups of the questions; ``HIDDEN`` where they are not known yet.
    :param ledger: where reservations are kept.
    :param seed: of the draws from the agent's probabilities.
    :param check: judges answers at once, where the agent may learn whether it was right.
    """

    def __init__(
        self,
        agent: Agent,
        solver: LiveSolver,
        tiers: Sequence[ThinkingTier],
        groups: Sequence[int],
        *,
        ledger: Ledger,
        window: int = 1,
        seed: int = 0,
        check: Check | None = None,
        texts: tuple[str, ...] | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window must be >= 1, got {window}")
        problem = agent.problem
        if problem.tier_names != tuple(tier.name for tier in tiers):
            raise ValueError(
                f"the agent knows tiers {list(problem.tier_names)}, asked for are {[t.name for t in tiers]}"
            )
        if len(groups) != problem.num_tasks:
            raise ValueError(
                f"the agent takes exams of {problem.num_tasks} tasks, these are {len(groups)}: train one for that number, "
                "or use a planner"
            )
        self.agent, self.problem, self.solver, self.tiers = agent, problem, solver, tuple(tiers)
        self.ledger, self.window, self.check = ledger, window, check
        self.budget, self.in_flight = problem.budget, 0
        self._groups = np.array([groups], np.int32)
        shown = None if texts is None else (texts,)
        self._state = agent.start(ExamsView(problem, self._groups.copy(), shown))
        self._numbers = action_numbers(np.uint64(seed), np.zeros(1, np.int64), np.zeros(1, np.int64), len(groups))[0]
        self._expected = 0.0  # tokens that requests in flight should cost
        self._last = (0, 0, False)
        self._settled = asyncio.Event()  # a new one after every settlement
        self._paid_decisions = sum(note["decision"] for note in ledger.notes if "skipped" in note)

    @property
    def charged(self) -> int:
        """Tokens charged so far."""
        return self.ledger.charged + self._paid_decisions

    @property
    def remaining(self) -> int:
        """Budget that is neither charged nor reserved, at least 0."""
        return max(0, self.budget - self.charged - self.ledger.reserved)

    async def admit(
        self, position: int, question: Question, group: int | None = None, limit: int | None = None
    ) -> Ticket | None:
        """Decide a question and reserve its tokens; waits while the window is full or the reservation does not fit.

        What interrupts it leaves nothing reserved and nothing charged.

        :param position: 0 .. N - 1.
        :param group: of a question that was not known before.
        :param limit: most tokens that may be generated, whatever the tier.
        :returns: None where the budget is gone.
        """
        if group is not None:
            self._groups[0, position] = group
        cost = self.problem.decision_cost
        while True:
            while self.in_flight >= self.window:
                await self._settled.wait()
            if self.remaining == 0 and not self.in_flight:
                return None
            # The agent plans with what requests in flight should cost; whether there is room for it is another question.
            seen = self.budget - self.charged - round(self._expected) if self.in_flight else self.remaining
            view = self._view(position, max(seen, 1))
            probs, state = self.agent.act(view, self._state)
            action = int(pick_actions(check_probs(self.agent, probs, view), self._numbers[position : position + 1])[0])
            most = min(self.tiers[action - 1].most_tokens, limit or self.budget) + cost if action else cost
            if most > self.remaining and self.in_flight:
                await self._settled.wait()
                continue  # decided again, knowing more
            self._state = state
            break
        key = (position, question.question_id, action, seen)
        if action == 0:
            paid = min(cost, self.remaining)
            self._paid_decisions += paid
            self.ledger.note({"skipped": key, "decision": paid})
            self._learn(view, 0, paid, None, overspent=cost > paid)
            return Ticket(position, question, 0, view, 0, None)
        room = min(most, self.remaining)
        entry = self.ledger.enter(key, room)
        ticket = Ticket(position, question, action, view, max(0, room - cost), entry)
        self.in_flight += 1
        self._expected += self._believed_cost(view, action)
        try:
            await self.ledger.on_disk()
        except BaseException:
            self.drop(ticket)
            raise
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Settle an admitted question whose request was never begun: it costs nothing, and is not decided."""
        if ticket.entry is not None:
            self._settle(ticket, 0, unsent_reply())

    async def finish(
        self,
        ticket: Ticket,
        messages: tuple[Message, ...] | None = None,
        fields: Mapping[str, Any] | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> tuple[Row, Reply | None]:
        """Let the solver answer an admitted question and settle it.

        What interrupts that settles it at its reservation, unless it is known what it cost.

        :param messages: see :class:`roi_env.answering.base.Ask`, like ``fields`` and ``wanted``.
        """
        position, question = ticket.position, ticket.question
        if ticket.entry is None:
            return Row(position, question.question_id, None, "skipped", remaining=self.remaining), None
        tier, cost = self.tiers[ticket.action - 1], ticket.entry.reserved - ticket.cap
        reply: Reply | None = None
        correct = None
        try:
            if ticket.cap > 0:
                ask = Ask(question, tier, ticket.cap, messages=messages, fields=fields or {}, wanted=wanted)
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
                lost = Reply("", None, ticket.cap, None, "error", "reserved", what, lost=True)
                self._settle(ticket, ticket.cap + cost, lost)
            elif isinstance(error, asyncio.CancelledError):  # an answer that nobody judged
                self._settle(ticket, reply.tokens + cost, reply)
            else:
                self._settle(ticket, reply.tokens + cost, dataclasses.replace(reply, error=what))
            raise
        # What the endpoint did not take is not decided: it will be asked again.
        self._settle(ticket, 0 if reply.retry_in is not None else reply.tokens + cost, reply, correct)
        return self.row(ticket.entry, question, self.remaining), reply

    def row(self, entry: Entry, question: Question, remaining: int) -> Row:
        """The row of a settled request (or of one whose fate is unknown)."""
        position, _, action, _ = entry.key
        tier = _tiers(entry, self.tiers)[action - 1]
        if entry.facts is None:
            return Row(
                position, question.question_id, tier.name, "unknown", "", entry.reserved, entry.reserved,
                remaining=remaining, counted="reserved", error="in flight when the run was killed",
            )  # fmt: skip
        facts = dict(entry.facts)
        cap, correct = facts.pop("cap"), facts.pop("correct", None)
        reply = reply_of(facts)
        _, cut = judged(reply, cap, tier, 0, 0)
        return Row(
            position,
            question.question_id,
            tier.name,
            "error" if reply.error else "cut" if cut or cap == 0 else "answered",
            reply.text,
            entry.reserved,
            entry.charged or 0,
            max(0, reply.tokens - cap),
            remaining,
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
            facts = dict(entry.facts)
            cap, correct = facts.pop("cap"), facts.pop("correct", None)
            reply = reply_of(facts)
            if reply.error is None:
                _, cut = judged(reply, cap, self.tiers[action - 1], 0, 0)
                self._learn(view, action, entry.charged or 0, correct, overspent=cut)

    def _believed_cost(self, view: DecisionView, action: int) -> float:
        laws = self.problem.beliefs
        if laws is None:
            return float(self.tiers[action - 1].most_tokens + self.problem.decision_cost)
        return float(laws.expected_cost[view.group[0], action - 1]) + self.problem.decision_cost

    def _settle(self, ticket: Ticket, charge: int, reply: Reply, correct: bool | None = None) -> None:
        """Settle a request, once; without a point where it could be interrupted."""
        assert ticket.entry is not None
        facts = {**reply_facts(reply), "cap": ticket.cap}
        try:
            self.ledger.settle(ticket.entry, charge, facts if correct is None else {**facts, "correct": correct})
        finally:
            self._done(ticket, reply, correct)

    def _done(self, ticket: Ticket, reply: Reply, correct: bool | None) -> None:
        self.in_flight -= 1
        self._expected -= self._believed_cost(ticket.view, ticket.action)
        if not self.in_flight:
            self._expected = 0.0
        if reply.error is None:  # an endpoint's failure says nothing of the tier
            tier = self.tiers[ticket.action - 1]
            _, cut = judged(reply, ticket.cap, tier, 0, 0)
            paid = reply.tokens + self.problem.decision_cost
            self._learn(ticket.view, ticket.action, paid, correct, overspent=cut or ticket.cap == 0)
        self._settled.set()
        self._settled = asyncio.Event()

    def _learn(self, view: DecisionView, action: int, paid: int, correct: bool | None, *, overspent: bool) -> None:
        told = self.problem.feedback == "cost+correct" and correct is not None
        shown = np.array([bool(correct) and not overspent]) if told else None
        feedback = Feedback(view, np.array([action]), np.array([paid]), shown, np.array([overspent]))
        self._state = self.agent.observe(feedback, self._state)
        self._last = (action, paid, told and bool(correct))

    def _view(self, position: int, remaining: int) -> DecisionView:
        action, tokens, correct = self._last
        return DecisionView(
            self.problem,
            np.zeros(1, np.int64),
            np.array([position]),
            np.array([remaining]),
            np.array([action]),
            np.array([tokens]),
            np.array([correct]),
            self._groups,
        )


@dataclass
class Result:
    """Answers and the audit of a budget; valid at any moment.

    :param budget: tokens.
    :param rows: by position; questions that were not decided yet are missing.
    """

    budget: int
    agent: str
    solver: str
    total: int
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    held: str | None = None
    """What the endpoint said as it asked to wait longer than allowed; then the rest is not asked."""
    lost: int = 0
    """Tokens charged to no row, for what damage to the ledger has hidden."""
    messages: list[str] = field(default_factory=list)
    """What a user should know of the ledger: repairs, settings that changed."""

    @property
    def charged(self) -> int:
        """Tokens charged."""
        return sum(row.charged for row in self.rows) + self.lost

    @property
    def overshoot(self) -> int:
        """Tokens that the endpoint generated beyond its caps."""
        return sum(row.overshoot for row in self.rows)

    def audit(self) -> dict[str, Any]:
        """Sums, and whether the guarantee held (``within``: charged <= budget + overshoot)."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.status] = counts.get(row.status, 0) + 1
        by_count: dict[str, int] = {}
        for row in self.rows:
            if row.counted:
                by_count[row.counted] = by_count.get(row.counted, 0) + row.charged
        judged_rows = [row.correct for row in self.rows if row.correct is not None]
        return {
            "agent": self.agent,
            "solver": self.solver,
            "budget": self.budget,
            "charged": self.charged,
            "remaining": max(0, self.budget - self.charged),
            "overshoot": self.overshoot,
            "within": self.charged <= self.budget + self.overshoot,
            "questions": self.total,
            "by_status": counts,
            "tokens_by_count": by_count,
            "right": sum(judged_rows) if judged_rows else None,
            "judged": len(judged_rows),
            "lost": self.lost,
            "interrupted": self.interrupted,
            "held": self.held,
        }

    def write(self, folder: Path) -> None:
        """Write ``answers.jsonl`` (one line a question) and ``audit.json``, each whole or not at all."""
        with replacing(folder / "answers.jsonl") as path:
            path.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in self.rows))
        with replacing(folder / "audit.json") as path:
            path.write_text(json.dumps(self.audit(), indent=1) + "\n")


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


def make_live(text: str, problem: Problem) -> Agent:
    """:func:`agents.base.make_agent` for names out of a command line, which may hold anything.

    :raises ValueError: where the agent does not fit the problem, or its parameters are of the wrong kind.
    """
    try:
        return make_agent(text, problem)
    except (TypeError, KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"agent {text!r} does not fit these questions: {error}") from error


class BudgetController:
    """Answer a list of questions under one hard budget.

    :param agent: a registered name, a saved agent (``.npz``), or an agent made for exactly these questions (N = their
        number). Names that learn from a table are trained on it where one is given.
    :param solver: who answers.
    :param budget: tokens; a float is a fraction of N x the believed mean cost of the dearest tier.
    :param tiers: cheapest first.
    :param window: questions in flight; 1 is the exam.
    :param table: recorded outcomes that beliefs (and training) come from, with ``menu`` and ``group_by``; None: default
        beliefs by length of text, see :func:`roi_env.envs.live.live_source`.
    :param ledger: path of the journal, which makes charges survive a kill; None: in memory.
    :param check: judges answers while they come.
    :param feedback: what the agent is shown, "cost" or "cost+correct"; default: "cost+correct" where answers are judged,
        but "cost" for a saved agent, which was trained so unless it says otherwise.
    :param seed: of the draws from the agent's probabilities, and of training.
    :raises ValueError: for a name that cannot decide live questions, see :func:`check_live`.
    """

    def __init__(
        self,
        agent: str | Agent,
        solver: LiveSolver,
        budget: int | float,
        *,
        tiers: Sequence[ThinkingTier],
        window: int = 1,
        table: OutcomeTable | str | None = None,
        menu: str | None = None,
        group_by: str = "dataset",
        decision_cost: int = 0,
        ledger: Path | None = None,
        check: Check | None = None,
        feedback: Literal["cost", "cost+correct"] | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(agent, str):
            check_live(agent, learns=table is not None)
        judges = check is not None and not (isinstance(agent, str) and is_saved(agent))
        self.feedback: Literal["cost", "cost+correct"] = feedback or ("cost+correct" if judges else "cost")
        self.agent, self.solver, self.budget, self.tiers, self.window = agent, solver, budget, tuple(tiers), window
        self.table, self.menu, self.group_by = table, menu, group_by
        self.decision_cost, self.path, self.check, self.seed = decision_cost, ledger, check, seed
        self.result: Result | None = None
        """What is known so far, while :meth:`answer` runs and after it ended or was interrupted."""

    def spec(self, questions: Sequence[Question]) -> ExamSpec:
        """The exam that the questions are.

        :raises ValueError: where they do not fit the table.
        """
        source = live_source(questions, self.tiers, table=self.table, menu=self.menu, group_by=self.group_by)
        return exam_spec(
            source,
            num_tasks=len(questions),
            budget=self.budget,
            order="given",
            feedback=self.feedback,
            decision_cost=self.decision_cost,
        )

    def make_agent(self, problem: Problem) -> Agent:
        """The agent for a problem.

        :raises ValueError: where it cannot be made.
        """
        if isinstance(self.agent, Agent):
            if self.agent.problem.budget != problem.budget:
                raise ValueError(f"the agent's budget is {self.agent.problem.budget}, asked for is {problem.budget}")
            return self.agent
        agent = make_live(self.agent, problem)
        if not is_saved(self.agent) and type(agent).train is not Agent.train:
            from roi_env.exams.config import exam_spec

            from agents.playing import TrainingExams

            training = exam_spec(
                "recorded",
                table=self.table,
                menu=self.menu,
                group_by=self.group_by,
                split="train",
                num_tasks=problem.num_tasks,
                budget=problem.budget,
                decision_cost=problem.decision_cost,
            )
            agent.train(TrainingExams(training, self.seed), self.seed)
        return agent

    def run(self, questions: Sequence[Question]) -> Result:
        """:meth:`answer` from code without an event loop."""
        return asyncio.run(self.answer(questions))

    async def answer(
        self, questions: Sequence[Question], watch: Callable[[Result], None] = lambda result: None
    ) -> Result:
        """Answer the questions in their order.

        An interruption settles what is in flight at its reservation and is passed on; :attr:`result` then holds the
        valid partial result. An endpoint that asks to wait too long ends the run too (``held``). Either way the same call
        with the same ledger goes on.

        :param watch: called at the start and after every question.
        :raises JournalError: where the ledger is another process's, or holds questions that do not stand here.
        """
        spec = self.spec(questions)
        agent = self.make_agent(public_problem(spec))
        settings = {
            "budget": spec.budget,
            "decision_cost": self.decision_cost,
            "tiers": [list(tier.__dict__.values()) for tier in self.tiers],
            "questions": [question.question_id for question in questions],
        }
        ledger = Ledger(self.path, settings, refuse=_other_questions)
        name = self.agent if isinstance(self.agent, str) else getattr(agent, "name", type(agent).__name__)
        result = self.result = Result(spec.budget, str(name), self.solver.name, len(questions))
        result.lost, result.messages = ledger.lost, ledger.messages
        rows: dict[int, Row] = {}
        running: set[asyncio.Task[None]] = set()
        failures: list[BaseException] = []

        def over(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        def keep(row: Row) -> None:
            rows[row.position] = dataclasses.replace(row, line=questions[row.position].line or row.position + 1)
            result.rows = [rows[position] for position in sorted(rows)]
            watch(result)

        try:
            watch(result)
            groups = spec.source.row_group.tolist()
            session = Session(
                agent,
                self.solver,
                self.tiers,
                groups,
                ledger=ledger,
                window=self.window,
                seed=self.seed,
                check=self.check,
                texts=spec.source.texts,
            )
            for row in self._resumed(session, questions):
                keep(row)

            async def finish(ticket: Ticket) -> None:
                row, reply = await session.finish(ticket)
                if reply is not None and reply.retry_in is not None:
                    result.held = reply.error
                keep(row)

            for position, question in enumerate(questions):
                if position in rows:
                    continue
                if result.held:
                    break
                ticket = await session.admit(position, question)
                if ticket is None:
                    keep(Row(position, question.question_id, None, "not reached", remaining=session.remaining))
                elif ticket.entry is None:
                    paid = min(spec.decision_cost, ticket.view.remaining[0])
                    keep(
                        Row(
                            position,
                            question.question_id,
                            None,
                            "skipped",
                            charged=int(paid),
                            remaining=session.remaining,
                        )
                    )
                elif self.window == 1:
                    await finish(ticket)
                else:
                    task = asyncio.create_task(finish(ticket))
                    running.add(task)
                    task.add_done_callback(over)
                if failures:
                    raise failures[0]
            await asyncio.gather(*running)
        except BaseException as error:
            result.interrupted = True
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for entry in ledger.entries:
                position = entry.key[0]
                if entry.charged is None and entry not in ledger.unknown:  # admitted, and stopped before it began
                    ledger.settle(entry, 0, {**reply_facts(unsent_reply()), "cap": entry.reserved})
                if position not in rows and not _undecided(entry):
                    keep(session.row(entry, questions[position], session.remaining))
            raise error
        finally:
            ledger.close()
        return result

    def _resumed(self, session: Session, questions: Sequence[Question]) -> Iterator[Row]:
        """Rows of an earlier run, in the order of its decisions; the agent takes them in."""
        earlier: list[tuple[tuple[Any, ...], Entry | None, int]] = [
            (tuple(note["skipped"]), None, note["decision"]) for note in session.ledger.notes if "skipped" in note
        ]
        earlier += [(entry.key, entry, 0) for entry in session.ledger.entries if not _undecided(entry)]
        left = session.budget - session.ledger.lost
        rows: dict[int, Row] = {}
        for (position, _, action, seen), entry, paid in sorted(earlier, key=lambda item: int(item[0][0])):
            question = questions[position]
            if entry is None:
                left -= paid
                row = Row(position, question.question_id, None, "skipped", charged=paid, remaining=max(0, left))
            else:
                left -= entry.reserved if entry.charged is None else entry.charged
                row = session.row(entry, question, max(0, left))
            if position in rows:  # two processes asked it: the first answer counts, and all that was charged
                first, second = sorted((rows[position], row), key=lambda one: one.status not in ("answered", "cut"))
                row = dataclasses.replace(
                    first,
                    charged=first.charged + second.charged,
                    overshoot=first.overshoot + second.overshoot,
                    attempts=first.attempts + second.attempts,
                    remaining=max(0, left),
                )
            else:
                session.replay(position, action, seen, entry, paid)
            rows[position] = row
        yield from rows.values()


def _undecided(entry: Entry) -> bool:
    """Whether a request was never taken, so that its question will be decided anew."""
    return entry.facts is not None and entry.facts.get("retry_in") is not None


def _tiers(entry: Entry, now: tuple[ThinkingTier, ...]) -> tuple[ThinkingTier, ...]:
    """The tiers that a request was one of."""
    fields = entry.settings.get("tiers")
    return now if fields is None else tuple(ThinkingTier(*values) for values in fields)


def _other_questions(
    old: Mapping[str, Any], new: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str | None:
    """Budget, tiers and questions that nobody has decided may change; decided ones must stand at their places."""
    names = new["questions"]
    for record in records:
        key = record.get("key") or record.get("skipped")
        if isinstance(key, list) and len(key) == 4 and isinstance(key[0], int):
            now = names[key[0]] if 0 <= key[0] < len(names) else None
            if now != key[1]:
                there = "there is none now" if now is None else f"it is {now!r} now"
                return f"question {key[0] + 1} was {key[1]!r} when it was decided, {there}"
    return None if old.keys() == new.keys() else f"it has {sorted(old)}, not {sorted(new)}"
