"""A list of questions under one hard budget: one after the other exactly as the exam, or several in flight (``window``)."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agents.base import Agent, Problem, is_saved, public_problem
from agents.live.session import Check, Row, Session, check_live, learns_from_table, make_live, prompt_bound
from agents.live.steps import Ticket
from roi_env.answering.base import LiveSolver, Question, ThinkingTier
from roi_env.answering.ledger import Entry, Ledger, differences, unsent_facts
from roi_env.answering.prices import TOKENS, Rates
from roi_env.envs.live import KnownGroups, live_source
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.files import replacing
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.units import Unit


@dataclass
class Result:
    """Answers and the audit of a budget; valid at any moment.

    :param budget: in ``unit``, as are all costs.
    :param rows: by position; questions that were not decided yet are missing.
    """

    budget: int
    agent: str
    solver: str
    total: int
    rows: list[Row] = field(default_factory=list, init=False)
    interrupted: bool = False
    held: str | None = None
    """Why the endpoint takes nothing more: it asked to wait longer than allowed, is not there, or refuses our key or account;
    then the rest is not asked."""
    refused: bool = False
    """Whether that is one that no waiting mends."""
    lost: int = 0
    """Charged to no row, for what damage to the ledger has hidden."""
    messages: list[str] = field(default_factory=list)
    """What a user should know of the ledger: repairs, settings that changed."""
    unit: Unit = "tokens"
    _paid: int = field(default=0, init=False, repr=False)

    def add(self, row: Row) -> None:
        """Keep what became of one more question."""
        bisect.insort(self.rows, row, key=lambda one: one.position)
        self._paid += row.charged

    @property
    def charged(self) -> int:
        """Charged in all."""
        return self._paid + self.lost

    @property
    def overshoot(self) -> int:
        """Charged for what the endpoint did beyond its caps."""
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
            "unit": self.unit,
            "budget": self.budget,
            "charged": self.charged,
            "remaining": max(0, self.budget - self.charged),
            "overshoot": self.overshoot,
            "within": self.charged <= self.budget + self.overshoot,
            "questions": self.total,
            "by_status": counts,
            ("tokens_by_count" if self.unit == "tokens" else "charged_by_count"): by_count,
            "right": sum(judged_rows) if judged_rows else None,
            "judged": len(judged_rows),
            "lost": self.lost,
            "interrupted": self.interrupted,
            "held": self.held,
        }

    def write(self, folder: Path) -> None:
        """Write ``answers.jsonl`` (one line a question) and ``audit.json``, each whole or not at all."""
        with replacing(folder / "answers.jsonl") as path:
            path.write_text(
                "".join(json.dumps({**dataclasses.asdict(row), "unit": self.unit}) + "\n" for row in self.rows)
            )
        with replacing(folder / "audit.json") as path:
            path.write_text(json.dumps(self.audit(), indent=1) + "\n")


class BudgetController:
    """Answer a list of questions under one hard budget.

    :param agent: a registered name, a saved agent (``.npz``), or an agent made for exactly these questions (N = their
        number). Names that learn from a table are trained on it where one is given.
    :param solver: who answers.
    :param budget: tokens, or money as text (``"2.50usd"``) where tiers have prices; a float is a fraction of N x the believed
        mean cost of the dearest tier.
    :param tiers: cheapest first.
    :param window: questions in flight; 1 is the exam.
    :param table: recorded outcomes that beliefs (and training) come from, with ``menu`` and ``group_by``; None: default
        beliefs by length of text, see :func:`roi_env.envs.live.live_source`.
    :param known: groups and beliefs that stand in place of the table's, e.g. a predictor's.
    :param ledger: path of the journal, which makes charges survive a kill; None: in memory.
    :param check: judges answers while they come.
    :param feedback: what the agent is shown, "cost" or "cost+correct"; default: "cost+correct" where answers are judged,
        but "cost" for a saved agent, which was trained so unless it says otherwise.
    :param seed: of the draws from the agent's probabilities, and of training.
    :param rates: prices of the tiers, where the budget is money.
    :param models: K names of who answers a tier, where they are several.
    :raises ValueError: for a name that cannot decide live questions, see :func:`check_live`, or not these groups.
    """

    def __init__(
        self,
        agent: str | Agent,
        solver: LiveSolver,
        budget: int | float | str,
        *,
        tiers: Sequence[ThinkingTier],
        window: int = 1,
        table: OutcomeTable | str | None = None,
        menu: str | None = None,
        group_by: str = "dataset",
        known: KnownGroups | None = None,
        decision_cost: int = 0,
        ledger: Path | None = None,
        check: Check | None = None,
        feedback: Literal["cost", "cost+correct"] | None = None,
        seed: int = 0,
        rates: Rates = TOKENS,
        models: Sequence[str] = (),
    ) -> None:
        if isinstance(agent, str):
            check_live(agent, learns=table is not None)
            if known is not None and learns_from_table(agent):
                raise ValueError(
                    f"agent {agent!r} learns from the table's own groups, a predictor publishes others: leave the predictor "
                    "out, or train the agent with it before (`roi train --predictor`)"
                )
        judges = check is not None and not (isinstance(agent, str) and is_saved(agent))
        self.feedback: Literal["cost", "cost+correct"] = feedback or ("cost+correct" if judges else "cost")
        self.agent, self.solver, self.budget, self.tiers, self.window = agent, solver, budget, tuple(tiers), window
        self.table, self.menu, self.group_by, self.known = table, menu, group_by, known
        self.decision_cost, self.path, self.check, self.seed = decision_cost, ledger, check, seed
        self.rates, self.models = rates, models
        self.result: Result | None = None
        """What is known so far, while :meth:`answer` runs and after it ended or was interrupted."""

    def spec(self, questions: Sequence[Question]) -> ExamSpec:
        """The exam that the questions are.

        :raises ValueError: where they do not fit the table.
        """
        source = live_source(
            questions,
            self.tiers,
            table=self.table,
            menu=self.menu,
            group_by=self.group_by,
            known=self.known,
            rates=self.rates,
            models=self.models,
            prompt=prompt_bound(self.solver, self.rates),
        )
        return exam_spec(
            source,
            num_tasks=len(questions),
            budget=self.budget,
            order="given",
            feedback=self.feedback,
            decision_cost=self.decision_cost,
        )

    def unit_settings(self, spec: ExamSpec) -> dict[str, Any]:
        """What a ledger of money is told: its unit, and the most that a question costs."""
        if not self.rates.prices:
            return {}
        most = max(tier.cap or 0 for tier in spec.source.tiers) + self.decision_cost
        return {"unit": self.rates.unit, "most": most}

    def _made_by(self) -> dict[str, Any] | None:
        """By tier, what its answers depend on: model, prompt and the like, not where the endpoint is; None: the solver does not
        tell."""
        solver, made = self.solver, {}
        for tier in self.tiers:
            told = getattr(solver.for_tier(tier.name) if hasattr(solver, "for_tier") else solver, "settings", None)
            if told is None:
                return None
            made[tier.name] = {name: value for name, value in told.items() if name != "url"}
        return made

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
            from agents.playing import TrainingExams
            from roi_env.exams.config import exam_spec

            training = exam_spec(
                "recorded",
                table=self.table,
                menu=self.menu,
                group_by=self.group_by,
                split="train",
                num_tasks=problem.num_tasks,
                budget=problem.budget if problem.unit == "tokens" else f"{problem.budget} {problem.unit}",
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
        valid partial result. An endpoint that asks to wait too long, or is not there, ends the run too (``held``). Either
        way the same call with the same ledger goes on.

        :param watch: called at the start and after every question.
        :raises JournalError: where the ledger is another process's, holds questions that do not stand here, or answers that
            another model gave, or another prompt.
        """
        spec = self.spec(questions)
        agent = self.make_agent(public_problem(spec))
        settings = {
            "budget": spec.budget,
            "decision_cost": self.decision_cost,
            "tiers": [list(tier.__dict__.values()) for tier in self.tiers],
            "questions": [[question.question_id, _digest(question.text)] for question in questions],
        }
        settings |= self.unit_settings(spec)
        if (made_by := self._made_by()) is not None:
            settings["made_by"] = made_by
        ledger = Ledger(self.path, settings, refuse=_other_questions)
        name = self.agent if isinstance(self.agent, str) else getattr(agent, "name", type(agent).__name__)
        result = Result(spec.budget, str(name), self.solver.name, len(questions), unit=self.rates.unit)
        self.result = result
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
            result.add(rows[row.position])
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
                rates=self.rates,
            )
            for row in self._resumed(session, ledger, questions):
                keep(row)

            async def finish(ticket: Ticket) -> None:
                row, reply = await session.finish(ticket)
                if reply is not None and reply.untaken:
                    result.held = reply.error
                    result.refused = reply.failure is not None and not reply.failure.again
                keep(row)

            for position, question in enumerate(questions):
                if position in rows:
                    continue
                if result.held:
                    break
                ticket = await session.admit(position, question)
                if ticket is None:
                    keep(Row(position, question.question_id, None, "not reached", remaining=session.remaining))
                elif ticket.entry is None or self.window == 1:
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
                    ledger.settle(entry, 0, unsent_facts(entry))
                if position not in rows and not _undecided(entry):
                    keep(session.row(entry, questions[position], session.remaining))
            raise error
        finally:
            ledger.close()
        return result

    def _resumed(self, session: Session, ledger: Ledger, questions: Sequence[Question]) -> Iterator[Row]:
        """Rows of an earlier run, in the order of its decisions; the agent takes them in."""
        earlier: list[tuple[tuple[Any, ...], Entry | None, int]] = [
            (tuple(note["skipped"]), None, note["decision"]) for note in ledger.notes if "skipped" in note
        ]
        earlier += [(entry.key, entry, 0) for entry in ledger.entries if not _undecided(entry)]
        left = session.budget - ledger.lost
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


def _digest(text: str) -> str:
    """Tells texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _undecided(entry: Entry) -> bool:
    """Whether a request was never taken, so that its question will be decided anew."""
    if entry.facts is None:
        return False
    return entry.facts.get("retry_in") is not None or (bool(entry.facts.get("unreachable")) and not entry.charged)


def _other_questions(
    old: Mapping[str, Any], new: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> str | None:
    """Budget, tiers and questions that nobody has decided may change; decided ones must stand at their places, and a tier's
    answers be made as before."""
    if (was := old.get("unit", "tokens")) != (now := new.get("unit", "tokens")):
        return f"it counts {was}, and the budget is {now} now"
    names, before, decided = new["questions"], old.get("questions", []), False
    made_by: dict[str, Any] = {}  # also of tiers that were left out meanwhile
    for record in records:
        if isinstance(settings := record.get("settings"), dict):
            made_by |= settings.get("made_by", {})
        key = record.get("key") or record.get("skipped")
        if isinstance(key, list) and len(key) == 4 and isinstance(key[0], int):
            now, text = names[key[0]] if 0 <= key[0] < len(names) else (None, None)
            if now != key[1]:
                there = "there is none now" if now is None else f"it is {now!r} now"
                return f"question {key[0] + 1} was {key[1]!r} when it was decided, {there}"
            # Earlier ledgers name questions alone.
            was_there = before[key[0]] if key[0] < len(before) else None
            if isinstance(was_there, list) and was_there[1] != text:
                return f"question {key[0] + 1}, {now!r}, had another text when it was decided"
            decided = True
    for tier, made in made_by.items():
        if decided and (other := differences(made, new.get("made_by", {}).get(tier, made))):
            return f"answers of tier {tier!r} would be of two kinds: {other}"
    new_ones = {"made_by"}  # which earlier ledgers do not have
    return None if old.keys() - new_ones == new.keys() - new_ones else f"it has {sorted(old)}, not {sorted(new)}"
