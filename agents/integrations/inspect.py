"""Inspect: one hard budget of tokens or dollars for a whole evaluation run, an agent deciding what each sample may cost, or that it is skipped.

Before a sample begins the agent decides, and the most that its tier can cost is reserved; all model calls of the sample
together stay within that. A sample that is skipped, or has spent what it got, ends by a limit of Inspect's: it is scored with
what it has, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import anyio
from inspect_ai import Epochs, Task
from inspect_ai.hooks import (
    BeforeModelGenerate,
    Hooks,
    ModelCacheUsageData,
    ModelRetry,
    ModelUsageData,
    RunEnd,
    SampleAttemptStart,
    SampleEnd,
    SampleScoring,
    SampleStart,
    TaskStart,
    hooks,
)
from inspect_ai.log import EvalSample
from inspect_ai.model import ChatMessage, ChatMessageUser, ModelUsage
from inspect_ai.scorer import value_to_float
from inspect_ai.tool import ToolInfo
from inspect_ai.util import LimitExceededError

from agents.base import Agent, public_problem
from agents.live.answer import BudgetController, Result
from agents.live.session import Row, Session
from agents.live.steps import Ticket
from roi_env.answering.backends import UNKNOWN
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import IMAGE, TEMPLATE
from roi_env.answering.ledger import Ledger
from roi_env.answering.prices import TOKENS, Price, Rates
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.units import cost_with_unit

_REPEATS = frozenset(
    {"openai", "openai-api", "azureai", "anthropic", "together", "fireworks", "openrouter", "grok", "vllm", "sglang"}
)
"""Providers whose clients repeat requests by default."""
_UNSENT = {"id", "source", "metadata", "model"}
"""Of a message, what no model reads."""


@dataclass
class _Sample:
    """A sample at work; costs are in the budget's unit.

    :ivar used: charged by calls that ended.
    :ivar tokens: that they generated, ``unknown`` of them because nobody knows better.
    :ivar prompt: tokens that they read, where they cost.
    :ivar open: (most that it costs, cap) of calls in flight by the task that makes them.
    """

    ticket: Ticket
    used: int = 0
    tokens: int = 0
    unknown: int = 0
    prompt: int = 0
    calls: int = 0
    open: dict[int, tuple[int, int]] = field(default_factory=dict)

    def left(self) -> tuple[int, int]:
        """(cost, tokens) that further calls may take."""
        costs, caps = (sum(column) for column in zip((0, 0), *self.open.values(), strict=True))
        assert self.ticket.entry is not None
        return self.ticket.entry.reserved - self.used - costs, self.ticket.cap - self.tokens - caps

    def lose(self, task: int) -> None:
        """A call ended, and what it generated is not known."""
        cost, cap = self.open.pop(task, (0, 0))
        self.used += cost
        self.tokens += cap
        self.unknown += cap


_current: ContextVar[_Sample | Literal["scoring"] | None] = ContextVar("_current", default=None)
"""What the running code works at; calls of models do not name their sample, but run in its context."""


class _Known:
    """A solver that hands on the replies that Inspect's models gave.

    :param prompts: most tokens that each sample's input has, by name.
    """

    name = "inspect"

    def __init__(self, prompts: Mapping[str, int]) -> None:
        self.replies: dict[str, Reply] = {}
        self.prompts = prompts
        self.added = 0
        """Most tokens that solvers and tools were seen to add to an input in a first call."""

    async def answer(self, ask: Ask) -> Reply:
        return self.replies.pop(ask.question.question_id)

    def most_prompt(self, ask: Ask) -> int:
        """Of a sample's first call, by what is known before it; every call is bounded again."""
        return self.prompts[ask.question.question_id] + self.added

    async def close(self) -> None:
        """Nothing is open."""


class _Billed(Rates):
    """What a sample cost is the sum over its calls, whichever models they asked."""

    def charge(self, tier: str, reply: Reply, prompt: int) -> int:
        return super().charge(tier, reply, prompt) if reply.usd is None else round(reply.usd * 10**6)


class EvalBudget:
    """The budget of one evaluation run. Make it before ``inspect_ai.eval(tasks, ...)``, or in the file of a task that
    ``inspect eval`` runs; :attr:`result` and :meth:`audit` say afterwards what became of every sample. The newest counts.

    Charged is what the evaluated models generate, thought included. What models of scorers generate is counted beside it
    (:attr:`scoring_tokens`), so that a budget that is gone leaves no answer unjudged.

    :param tasks: all tasks of the run, with their data sets and epochs as they will be run.
    :param budget: tokens; dollars (``"2.50usd"``) with ``prices``; a float is a fraction of what always the dearest tier would
        cost by what is believed.
    :param tiers: cheapest first; ``most_tokens`` is all that a sample may generate in all its calls.
    :param prices: of the models that samples may call, by Inspect's name for them (``openai/gpt-5``), the evaluated one first;
        prompts are charged too.
    :param settings: tier's name -> fields of Inspect's ``GenerateConfig`` for its calls; beside the tier's effort
        (``reasoning_effort``) and thinking tokens (``reasoning_tokens``).
    :param group_by: a sample's group is this field of its metadata, or its task's data set for "dataset".
    :param ledger: file that survives a kill; a later run with it goes on with what is left.
    :param correct_at: the first scorer's value from which an answer is right, for agents that learn from it.
    :param agent, table, menu, feedback, seed: see :class:`agents.live.answer.BudgetController`.
    :raises ValueError: for what does not fit together.
    """

    def __init__(
        self,
        tasks: Task | Sequence[Task],
        budget: int | float | str,
        *,
        tiers: Sequence[ThinkingTier],
        prices: Mapping[str, Price] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        agent: str | Agent = "online-lp",
        table: OutcomeTable | str | None = None,
        menu: str | None = None,
        group_by: str = "dataset",
        ledger: Path | None = None,
        feedback: Any = None,
        seed: int = 0,
        correct_at: float = 1.0,
    ) -> None:
        listed = [tasks] if isinstance(tasks, Task) else list(tasks)
        found = [pair for task in listed for pair in _questions(task, group_by)]
        questions = [question for question, _ in found]
        self._places = {question.question_id: place for place, question in enumerate(questions)}
        if len(self._places) < len(questions):
            raise ValueError("two samples have the same task, id and epoch: give tasks and samples names of their own")
        self.settings = {tier.name: {**_asks(tier), **(settings or {}).get(tier.name, {})} for tier in tiers}
        if strange := sorted(set(settings or ()) - set(self.settings)):
            raise ValueError(f"settings: there is no tier {strange[0]!r}, but {', '.join(self.settings)}")
        self.questions, self.correct_at, self.prices = questions, correct_at, dict(prices or {})
        rates = _Billed({tier.name: next(iter(self.prices.values())) for tier in tiers}) if self.prices else TOKENS
        self._right: dict[str, bool | None] = {}
        self._known = _Known({question.question_id: prompt for question, prompt in found})

        def check(question: Question, text: str) -> Any:
            return self._right.pop(question.question_id)

        controller = BudgetController(
            agent, self._known, budget, tiers=tiers, table=table, menu=menu, group_by=group_by, check=check,
            feedback=feedback, seed=seed, rates=rates,
        )  # fmt: skip
        spec = controller.spec(questions)
        decides = controller.make_agent(public_problem(spec))
        ways = {"budget": spec.budget, "decision_cost": 0, "tiers": [list(tier.__dict__.values()) for tier in tiers]}
        ways |= controller.unit_settings(spec)
        # Where prompts cost, the first sample goes alone until its first call, or its end, shows what is added to them.
        self.session = Session(
            decides, self._known, tiers, spec.source.row_group.tolist(), ledger=Ledger(ledger, ways),
            window=1 if self.prices else len(questions), seed=seed, check=check, texts=spec.source.texts,
            rates=rates,
        )  # fmt: skip
        name = agent if isinstance(agent, str) else getattr(agent, "name", type(agent).__name__)
        self.result = Result(spec.budget, str(name), "inspect", len(questions), unit=rates.unit)
        self.result.lost = self.session.charged  # by earlier runs with this ledger
        self.scoring_tokens = 0
        """Tokens that were generated while samples were scored; no part of the budget."""
        self._tasks: dict[str, str] = {}
        self._samples: dict[str, _Sample] = {}
        self.active = True
        """Whether its run has not ended."""
        hooks(name="roi-budget", description="one hard token budget for a whole run")(lambda: _hooks_of(self))

    def audit(self) -> dict[str, Any]:
        """Sums, see :meth:`agents.live.answer.Result.audit`, and ``scoring_tokens``."""
        return {**self.result.audit(), "scoring_tokens": self.scoring_tokens}

    def task(self, data: TaskStart) -> None:
        """Learn a task's name, and that its samples are known."""
        self._tasks[data.eval_id] = data.spec.task
        kind = data.spec.model.partition("/")[0]
        if kind in _REPEATS and data.spec.model_args.get("max_retries") != 0:
            _stop(
                f"the client of {kind} repeats failed requests unseen, and what each generated cannot be charged: "
                "give eval() model_args={'max_retries': 0} (--model-arg max_retries=0); Inspect repeats them itself"
            )
        for epoch in range(1, (data.spec.config.epochs or 1) + 1):
            for sample in data.spec.dataset.sample_ids or ():
                if (name := _name(data.spec.task, sample, epoch)) not in self._places:
                    _stop(f"the budget was not made for the sample {name}: give EvalBudget all tasks as they are run")

    async def begin(self, data: SampleStart) -> None:
        """Decide a sample and reserve what it may cost."""
        name = _name(self._tasks[data.eval_id], data.summary.id, data.summary.epoch)
        question = self.questions[self._places[name]]
        ticket = await self.session.admit(self._places[name], question)
        if ticket is None:
            self._keep(Row(self._places[name], name, None, "not reached"))
            _stop(f"the run's budget of {self._text(self.session.budget)} is spent")
        if ticket.entry is None:
            self._keep((await self.session.finish(ticket))[0])
            _stop(f"skipped: {self._text(self.session.remaining)} are left for the run, and others need them more")
        self._samples[data.sample_id] = sample = _Sample(ticket)
        _current.set(sample)

    async def call(self, data: BeforeModelGenerate) -> None:
        """Give a model call its cap and its tier's settings."""
        sample = _current.get()
        if data.run_id is None or sample == "scoring":
            return
        if sample is None:
            _stop("a model is called for a sample that was not admitted")
        task = anyio.get_current_task().id
        sample.lose(task)  # an attempt before this one that told nothing
        entry, choices, rates = sample.ticket.entry, data.config.num_choices or 1, self._rates(data.model_name)
        assert entry is not None
        prompt = _most_prompt(data.input, data.tools) if rates.prices else 0
        if rates.prices and not sample.calls:
            await self._read(sample.ticket, prompt, rates.cost(data.model_name, sample.ticket.cap, prompt))
        cost, left = sample.left()
        affords = rates.affords(data.model_name, cost, prompt) if rates.prices else None
        left = left if affords is None else min(left, affords)
        cap = min(left // choices, data.config.max_tokens or left)
        if cap < 1:
            got = self._text(entry.reserved)
            if cost and rates.prices:
                most = self._text(rates.cost(data.model_name, 1, prompt))
                _stop(f"of the {got} that the sample got {self._text(cost)} are left, a call may cost {most}", cost)
            _stop(f"the sample has spent the {got} that it got", entry.reserved)
        tier = self.session.tiers[sample.ticket.action - 1]
        for field_name, value in self.settings[tier.name].items():
            setattr(data.config, field_name, value)
        data.config.max_tokens = cap
        sample.calls += 1
        sample.open[task] = (rates.cost(data.model_name, cap * choices, prompt), cap * choices)

    async def _read(self, ticket: Ticket, prompt: int, most: int) -> None:
        """Let a reservation follow its sample's first prompt, and expect as much of the samples to come.

        :param prompt: most tokens that it has.
        :param most: that the call may cost.
        """
        entry, known = ticket.entry, self._known
        assert entry is not None
        known.added = max(known.added, prompt - known.prompts[ticket.question.question_id])
        self.session.widen(len(self.questions))
        more = min(most - entry.reserved, self.session.remaining)
        if more > 0:
            await self.session.ledger.resize(entry, entry.reserved + more)

    def spent(self, model: str, usage: ModelUsage) -> None:
        """A call of the current task ended."""
        sample, tokens = _current.get(), max(usage.output_tokens, usage.reasoning_tokens or 0)
        if sample == "scoring":
            self.scoring_tokens += tokens
        elif sample is not None:
            sample.open.pop(anyio.get_current_task().id, None)
            read = usage.input_tokens + (usage.input_tokens_cache_read or 0) + (usage.input_tokens_cache_write or 0)
            sample.used += self._rates(model).cost(model, tokens, read)
            sample.tokens += tokens
            sample.prompt += read

    def _rates(self, model: str) -> Rates:
        """What calls of a model cost."""
        if not self.prices:
            return TOKENS
        if model not in self.prices:
            _stop(f"there is no price of the model {model}, but of {', '.join(self.prices)}")
        return Rates({model: self.prices[model]})

    def _text(self, cost: int) -> str:
        return cost_with_unit(cost, self.result.unit)

    def failed(self, data: ModelRetry) -> None:
        """An attempt failed: it is free where the endpoint refused it."""
        sample = _current.get()
        if isinstance(sample, _Sample):
            task = anyio.get_current_task().id
            if data.status_code is not None and data.status_code not in UNKNOWN:
                sample.open.pop(task, None)
            sample.lose(task)

    def attempt(self, data: SampleAttemptStart) -> None:
        """A sample's solvers begin, perhaps not for the first time."""
        _current.set(self._samples.get(data.sample_id))

    async def end(self, sample_id: str, done: EvalSample | None) -> None:
        """Settle a sample.

        :param done: None: the run ended before it.
        """
        sample = self._samples.pop(sample_id, None)
        if sample is None:
            return
        for task in list(sample.open):
            sample.lose(task)
        error = "interrupted" if done is None else done.error.message if done.error else None
        text, full = ("", False) if done is None else (done.output.completion, _was_cut(done))
        name = sample.ticket.question.question_id
        self._known.replies[name] = Reply(
            text,
            None,
            sample.tokens,
            None,
            "error" if error else "length" if full else "stop",
            "reserved" if sample.unknown else "server" if sample.calls else "nothing",
            error,
            lost=sample.unknown > 0,
            attempts=sample.calls,
            prompt_tokens=sample.prompt or None,
            usd=sample.used / 10**6 if self.prices else None,
        )
        value = next((score.value for score in ((done and done.scores) or {}).values()), None)
        known = isinstance(value, (str, int, float))  # a value of several parts says nothing that an agent could learn
        self._right[name] = value_to_float()(value) >= self.correct_at if known else None
        ticket = sample.ticket
        if full and self.prices:  # money ran out before the tier's tokens did
            ticket = replace(ticket, cap=sample.tokens)
        self._keep((await self.session.finish(ticket))[0])
        self.session.widen(len(self.questions))
        self._known.replies.pop(name, None)
        self._right.pop(name, None)

    async def close(self) -> None:
        """Settle what is open, and be no part of later runs."""
        for name in list(self._samples):
            await self.end(name, None)
        self.active = False
        self.session.ledger.close()

    def _keep(self, row: Row) -> None:
        self.result.add(row)


def _questions(task: Task, group_by: str) -> Iterator[tuple[Question, int]]:
    """All samples of a task in the order of the run, epoch after epoch, and the most tokens that their inputs have."""
    epochs = task.epochs.epochs if isinstance(task.epochs, Epochs) else task.epochs or 1
    for epoch in range(1, epochs + 1):
        for number, sample in enumerate(task.dataset, 1):
            plain = {key: value for key, value in (sample.metadata or {}).items() if isinstance(value, (str, int))}
            turns = [ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else sample.input
            text = "\n".join(turn.text for turn in turns)
            target = sample.target if isinstance(sample.target, str) else "\n".join(sample.target)
            dataset = str(plain.get("dataset", task.dataset.name or task.name))
            name = _name(task.name, number if sample.id is None else sample.id, epoch)
            yield Question(dataset, name, text, target, plain), _most_prompt(turns)


def _name(task: str, sample: int | str, epoch: int) -> str:
    return f"{task}/{sample}/{epoch}"


def _most_prompt(turns: Sequence[ChatMessage], tools: Sequence[ToolInfo] = ()) -> int:
    """Most tokens that a call reads: no token is shorter than a byte."""
    size = TEMPLATE + sum(len(tool.model_dump_json().encode()) for tool in tools)
    for turn in turns:
        parts = [] if isinstance(turn.content, str) else turn.content
        media = [part.type for part in parts if part.type not in ("text", "reasoning")]
        if "image" in media:  # its data are no text
            turn = turn.model_copy(update={"content": [part for part in parts if part.type != "image"]})
        size += len(turn.model_dump_json(exclude=_UNSENT).encode()) + IMAGE * len(media)
    return size


def _was_cut(done: EvalSample) -> bool:
    return done.limit is not None or any(choice.stop_reason == "max_tokens" for choice in done.output.choices[:1])


def _asks(tier: ThinkingTier) -> dict[str, Any]:
    asked = {"reasoning_effort": tier.effort, "reasoning_tokens": tier.thinking or None}
    return {name: value for name, value in asked.items() if value is not None}


def _stop(reason: str, limit: int = 0) -> NoReturn:
    raise LimitExceededError("custom", value=limit, limit=limit, message=f"roi: {reason}")


def _hooks_of(budget: EvalBudget) -> type[Hooks]:
    """The class of hooks that Inspect makes itself. A fault in what holds the budget ends a sample: Inspect would only warn."""

    class Bound(Hooks):
        def enabled(self) -> bool:
            return budget.active

        async def on_task_start(self, data: TaskStart) -> None:
            budget.task(data)

        async def on_sample_start(self, data: SampleStart) -> None:
            try:
                await budget.begin(data)
            except Exception as error:
                raise _fault(error) from error

        async def on_sample_attempt_start(self, data: SampleAttemptStart) -> None:
            budget.attempt(data)

        async def on_before_model_generate(self, data: BeforeModelGenerate) -> None:
            try:
                await budget.call(data)
            except Exception as error:
                raise _fault(error) from error

        async def on_model_usage(self, data: ModelUsageData) -> None:
            budget.spent(data.model_name, data.usage)

        async def on_model_cache_usage(self, data: ModelCacheUsageData) -> None:
            budget.spent(data.model_name, ModelUsage())

        async def on_model_retry(self, data: ModelRetry) -> None:
            budget.failed(data)

        async def on_sample_scoring(self, data: SampleScoring) -> None:
            _current.set("scoring")

        async def on_sample_end(self, data: SampleEnd) -> None:
            await budget.end(data.sample_id, data.sample)

        async def on_run_end(self, data: RunEnd) -> None:
            await budget.close()

    return Bound


def _fault(error: Exception) -> LimitExceededError:
    if isinstance(error, LimitExceededError):
        return error
    text = f"roi: the budget cannot be kept: {type(error).__name__}: {error}"
    return LimitExceededError("custom", value=0, limit=0, message=text)
