"""Live exams: a solver answers as the agent decides. ``gym.make("ROIReasoning-Live-v0", ...)``.

The problem is the same as everywhere (:class:`~roi_env.exams.config.ExamSpec`, observation, mask, rules); only outcomes come from
a :class:`~roi_env.answering.base.LiveSolver` and a grader instead of a table. What is believed of the tiers comes from a
recorded table, or, without one, from :func:`default_laws`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from roi_env.answering.answers import stated, states_answer
from roi_env.answering.base import Ask, LiveSolver, Question, Reply, ThinkingTier
from roi_env.answering.prices import TOKENS, Rates
from roi_env.envs.base import ExamEnv
from roi_env.exams.config import MissingArgument, exam_spec
from roi_env.exams.rewards import REFUSAL_BONUS
from roi_env.exams.rules import transition
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source
from roi_env.sources.source import Laws, Source, Tier, laws_from_cells
from roi_env.sources.units import UNIT_NAMES, Unit, cost_with_unit

_Result = TypeVar("_Result")
_LENGTHS = ("short", "middle", "long")


def default_laws(
    tiers: Sequence[ThinkingTier], hardness: Sequence[float], rates: Rates = TOKENS, prompt: int = 0
) -> Laws:
    """Beliefs where nothing is known: wide, and meant to be updated (agent ``online-lp``).

    Success rises from .4 at the cheapest tier to .8 at the dearest, times (1 - hardness / 4). Costs are those of eighths of
    the tier's cap, spread evenly, shifted up with hardness; 2 % of the mass is at one token, so that a tier is legal
    while anything is left. These are guesses, not measurements.

    :param hardness: of every group, in [0, 1].
    :param rates: what tiers cost.
    :param prompt: tokens that a question's prompt may have.
    """
    cells = []
    for hard in hardness:
        for k, tier in enumerate(tiers):
            eighths = np.ceil(tier.most_tokens * np.arange(1, 9) / 8).astype(int).tolist()
            cost = np.unique([max(1, rates.cost(tier.name, tokens, prompt)) for tokens in eighths]).astype(np.int32)
            prob = 1.0 + (2 * hard - 1) * np.linspace(-0.5, 0.5, len(cost))
            prob = 0.98 * prob / prob.sum()
            least = np.int32(max(1, rates.cost(tier.name, 1, 0)))
            if cost[0] > least:
                cost, prob = np.append(least, cost).astype(np.int32), np.append(0.02, prob)
            prob /= prob.sum()
            success = (0.4 + 0.4 * k / max(len(tiers) - 1, 1)) * (1 - hard / 4)
            cells.append((cost, prob, prob * success))
    return laws_from_cells(cells, len(tiers))


def length_groups(questions: Sequence[Question]) -> npt.NDArray[np.int64]:
    """(n,) group of every question by the length of its text: 0 short, 1 middle, 2 long (thirds of the batch)."""
    lengths = np.array([len(question.text) for question in questions])
    edges = np.quantile(lengths, (1 / 3, 2 / 3))
    return np.asarray((lengths[:, None] > edges).sum(1))


def _one_request(tiers: Sequence[ThinkingTier], models: Sequence[str]) -> tuple[int, ...]:
    """Caps of tiers without a thought that differ in their cap alone: the endpoint gets one request, cut at several lengths."""
    whose = models or ("",) * len(tiers)
    asked = [(tier.thinking, tier.effort, model) for tier, model in zip(tiers, whose, strict=True)]
    alike = [sum(one == (0, effort, model) for one in asked) for _, effort, model in asked]
    return tuple(tier.answer if tier.thinking == 0 and many > 1 else 0 for tier, many in zip(tiers, alike, strict=True))


@dataclass(frozen=True)
class KnownGroups:
    """Groups of questions, and what is believed of them, where something else than a table tells them.

    :param tiers: K names of the tiers that are believed in, cheapest first.
    :param names: G.
    :param laws: (G,).
    :param key: (G,) rank of difficulty.
    :param share: (G,) how often they came so far; sums to one.
    :param group: texts, and values of further columns by name, to the (n,) groups of these questions.
    :param unit: what costs count.
    """

    tiers: tuple[str, ...]
    names: tuple[str, ...]
    laws: Laws
    key: npt.NDArray[np.int32]
    share: npt.NDArray[np.float64]
    group: Callable[[Sequence[str], Mapping[str, Sequence[str]]], npt.NDArray[np.int64]]
    unit: Unit = "tokens"

    def of(self, questions: Sequence[Question]) -> npt.NDArray[np.int64]:
        """(n,) groups; columns that all questions have are read too."""
        return self.group([question.text for question in questions], shared_columns(questions))


def shared_columns(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Values of the columns that all questions have, the data set among them."""
    extra = [{**question.extra, "dataset": question.dataset} for question in questions]
    shared = set.intersection(*(set(columns) for columns in extra)) if extra else set()
    return {name: [str(one[name]) for one in extra] for name in sorted(shared)}


def live_source(
    questions: Sequence[Question],
    tiers: Sequence[ThinkingTier],
    *,
    table: OutcomeTable | str | None = None,
    menu: str | None = None,
    group_by: str = "dataset",
    known: KnownGroups | None = None,
    rates: Rates = TOKENS,
    models: Sequence[str] = (),
    prompt: Callable[[Ask], int] = lambda ask: 0,
) -> Source:
    """Questions to be answered live, as a source without outcomes.

    Without a table groups are thirds by length of text, with :func:`default_laws`. With one, groups, features and beliefs
    are those of its train split (what an agent trained on that table has seen); a question belongs to the group of its
    value of ``group_by`` (its dataset, or an extra column). ``known`` groups stand in place of both.

    :param rates: what tiers cost; the unit of the source.
    :param models: K names of who answers a tier, where they are several.
    :param prompt: most tokens of a request's prompt.
    :raises ValueError: where the table's tiers are not these, it counts another unit, or a question has a value that the
        table has not.
    """
    names = [tier.name for tier in tiers]
    prompts = [[prompt(Ask(question, tier, tier.most_tokens)) for tier in tiers] for question in questions]
    longest = [max(column) for column in zip(*prompts, strict=True)]
    most = [max(1, rates.cost(t.name, t.most_tokens, size)) for t, size in zip(tiers, longest, strict=True)]
    for name, cost in zip(names, most, strict=True):
        if cost >= 2**30:
            raise ValueError(
                f"tier {name!r} may cost {cost_with_unit(cost, rates.unit)}, it must stay below 2**30 {rates.unit}"
            )
    group_names: tuple[str, ...]
    key: npt.NDArray[Any]
    if known is not None:
        _check_tiers("predictor", known.tiers, names)
        if known.unit != rates.unit:
            raise ValueError(
                f"the predictor's costs are {UNIT_NAMES[known.unit]}, those of the tiers {UNIT_NAMES[rates.unit]}: fit one on a "
                "table of that unit"
            )
        groups, laws, group_names, key = known.of(questions), known.laws, known.names, known.key
        features, feature_names = np.eye(len(group_names), dtype=np.float32), [f"group={name}" for name in group_names]
    elif table is None:
        # What a prompt really has is about a quarter of its bytes.
        typical = round(float(np.mean(prompts)) / 4)
        laws = default_laws(tiers, np.linspace(0, 1, len(_LENGTHS)).tolist(), rates, typical)
        groups = length_groups(questions)
        features, feature_names = np.eye(len(_LENGTHS), dtype=np.float32), [f"text={name}" for name in _LENGTHS]
        group_names, key = _LENGTHS, np.arange(len(_LENGTHS))
    else:
        recorded = recorded_source(table, menu=menu, group_by=group_by, split="train")
        if recorded.unit != rates.unit:
            raise ValueError(
                f"the table's costs are {UNIT_NAMES[recorded.unit]}, those of the tiers {UNIT_NAMES[rates.unit]}: "
                + ("give the tiers prices" if rates.unit == "tokens" else "import one with --unit micro-usd")
            )
        _check_tiers("table", [tier.name for tier in recorded.tiers], names)
        place = {name: number for number, name in enumerate(recorded.group_names)}
        values = [
            q.dataset if group_by == "dataset" else str(q.extra.get(group_by, f"(no {group_by})")) for q in questions
        ]
        if absent := sorted(set(values) - set(place)):
            raise ValueError(f"the table has no group {group_by}={absent[0]!r}; it has {sorted(place)}")
        groups = np.array([place[value] for value in values])
        laws, features, feature_names = recorded.beliefs, recorded.group_features, list(recorded.feature_names)
        group_names, key = recorded.group_names, recorded.group_key
    size, empty = len(questions), np.zeros(len(questions) * len(tiers), np.int32)
    return Source(
        name="live",
        tiers=tuple(Tier(name, edge, cost) for name, edge, cost in zip(names, _ascending(most), most, strict=True)),
        row_item=np.arange(size, dtype=np.int32),
        row_group=groups.astype(np.int32),
        row_given=np.arange(size, dtype=np.int32),
        strata=np.array([0, size], np.int32),
        replacement=False,
        outcome_start=empty,
        outcome_count=empty,
        outcomes=np.zeros(0, np.uint32),
        num_latent=1,
        coupling="independent",
        group_features=np.asarray(features, np.float32),
        feature_names=tuple(feature_names),
        group_weight=np.ones(len(group_names)),
        group_key=np.asarray(key, np.int32),
        group_names=tuple(group_names),
        published=laws,
        beliefs=laws,
        paired=False,
        synthetic=False,
        question_ids=tuple(question.question_id for question in questions),
        texts=tuple(question.text for question in questions),
        guessed=table is None and known is None,
        one_request=_one_request(tiers, models) if rates.unit == "tokens" else (),
        unit=rates.unit,
    )


def _ascending(costs: Sequence[int]) -> list[int]:
    """Level edges, which must grow."""
    edges: list[int] = []
    for cost in costs:
        edges.append(max(cost, edges[-1] + 1 if edges else cost))
    return edges


def _check_tiers(whose: str, known: Sequence[str], names: Sequence[str]) -> None:
    if list(known) != list(names):
        raise ValueError(f"the {whose}'s tiers are {list(known)}, the live ones {list(names)}: name them alike")


def judged(reply: Reply, cap: int, tier: ThinkingTier, remaining: int, decision_cost: int) -> tuple[int, bool]:
    """What a reply is in the exam's terms: ``(cost, cut)``.

    Generation that reached a cap below the tier's own was cut at the budget: its cost exceeds what was left. An endpoint
    that overshot is taken at its word.

    :param cap: most tokens that were allowed.
    :param remaining: tokens left before the decision.
    """
    cut = reply.finish == "length" and cap < tier.most_tokens and reply.tokens >= cap
    return (remaining + 1 if cut else reply.tokens + decision_cost), cut


def gave_nothing(reply: Reply) -> bool:
    """Whether a reply is a failure that needs no grader: no answer is in it, or it was cut before it stated one."""
    if reply.finish == "length":
        return not states_answer(reply.full_text)
    return stated(reply.full_text).form == "none"


class LoopThread:
    """An event loop in a thread of its own, for callers that have none, or one that is busy (notebooks)."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="live-solver", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run to the end; an interruption here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


class ROIReasoningLiveEnv(ExamEnv):
    """An exam of real questions, answered by a real model as the agent decides.

    Action Space, Observation Space, Starting State and Episode End are those of :class:`roi_env.envs.single.ROIReasoningEnv`; so
    is the rule of the budget. Every request is sent with the tier's thinking cap and a total cap of what is left. An
    answer that the endpoint failed to give costs what it may have cost and is wrong (``info["reply"].error`` says why).

    ## Rewards
    "score", "rational", "overspend_penalty(lambda)" or "cost_shaped(lambda)". "refusal_bonus" needs outcomes of tiers that
    were not chosen, which nobody knows here.

    ## Arguments
    * `questions`: :class:`~roi_env.answering.base.Question` objects, or a source as in
      :func:`roi_env.answering.questions.read_questions`.
    * `tiers`: :class:`~roi_env.answering.base.ThinkingTier`, cheapest first.
    * `solver`: a :class:`~roi_env.answering.base.LiveSolver`.
    * `grader`: a name of :mod:`roi_env.answering.grading`, or a callable ``(question, text) -> bool``.
    * `num_tasks`: N (default: 10, at most the number of questions).
    * `table`, `menu`, `group_by`, `known`: where beliefs come from, see :func:`live_source`.
    * `budget`, `order`, `preview`, `beliefs`, `reward`, `feedback`, `decision_cost`: as in
      :class:`~roi_env.envs.single.ROIReasoningEnv`.

    An exam's identity fixes its questions; what the model answers is sampled anew every time.

    ## Version History
    * v0: initial version.
    """

    def __init__(
        self,
        questions: Sequence[Question] | str | None = None,
        tiers: Sequence[ThinkingTier] | None = None,
        solver: LiveSolver | None = None,
        grader: str | Callable[[Question, str], bool] = "exact",
        *,
        num_tasks: int | None = None,
        table: OutcomeTable | str | None = None,
        menu: str | None = None,
        group_by: str = "dataset",
        known: KnownGroups | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        """See the class docstring.

        :raises gymnasium.error.MissingArgument: without questions, tiers or solver.
        :raises ValueError: for arguments out of range.
        """
        needed = {"questions": questions, "tiers": tiers, "solver": solver}
        if questions is None or tiers is None or solver is None:
            missing = ", ".join(name for name, value in needed.items() if value is None)
            raise MissingArgument(f"ROIReasoning-Live-v0 needs {missing}: gym.make(..., {missing.split(', ')[0]}=...)")
        if isinstance(questions, str):
            from roi_env.answering.questions import read_questions

            questions = read_questions(questions)
        source = live_source(questions, tiers, table=table, menu=menu, group_by=group_by, known=known)
        spec = exam_spec(source, num_tasks=min(10, len(questions)) if num_tasks is None else num_tasks, **kwargs)
        if spec.reward.kind == REFUSAL_BONUS:
            raise ValueError("reward 'refusal_bonus' needs outcomes of tiers that were not chosen: not in live exams")
        super().__init__(spec, render_mode)
        self.questions, self.tiers, self.solver = list(questions), tuple(tiers), solver
        self._pool: Any = None
        if isinstance(grader, str):
            from roi_env.answering.grading import GradingPool

            self._pool = grader = GradingPool(grader)
        self._check = grader
        self._loop: LoopThread | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start the next exam; see :meth:`roi_env.envs.single.ROIReasoningEnv.reset`.

        :param options: ``exam_ids``: one non-negative integer.
        :raises ValueError: for a bad seed or option.
        """
        if isinstance(options, Mapping) and "replicates" in options:
            raise ValueError(
                f"reset options of live exams are 'exam_ids' alone (answers are new every time), got {options!r:.200}"
            )
        return super().reset(seed=seed, options=options)

    @property
    def question(self) -> Question:
        """The task to decide."""
        if self._over:
            raise gym.error.ResetNeeded("the exam is over (or has not begun): call reset()")
        return self.questions[self._exams.items[self._exam, self._position]]

    def step(self, action: np.int64 | int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action in ``0..K``: an action above 0 waits for the solver's answer.

        ``info``: ``tokens`` paid, ``correct``, ``overspent``, ``overshoot`` (tokens that the endpoint generated beyond
        what was left), ``reply``; at the end ``score`` and ``spent``.

        :raises ValueError: for an action that is no integer in ``0..K``.
        :raises gymnasium.error.ResetNeeded: before a reset or after the end of an exam.
        """
        choice = self._number_of(action)
        question, spec = self.question, self.exam_spec
        cost, correct, reply = spec.decision_cost, False, None
        room = self._remaining - spec.decision_cost
        if choice > 0 and room <= 0:
            cost = self._remaining + 1  # nothing can be generated
        elif choice > 0:
            tier = self.tiers[choice - 1]
            cap = min(tier.most_tokens, room)
            reply = self._answer(Ask(question, tier, cap))
            cost, cut = judged(reply, cap, tier, self._remaining, spec.decision_cost)
            correct = not cut and reply.error is None and bool(self._check(question, reply.full_text))
        paid, right, overspent, terminated = transition(cost, correct, self._remaining, self._position, spec.num_tasks)
        reward = self._reward(choice, cost, paid, right, overspent)
        info = self._move_on(choice, paid, right, overspent, terminated)
        info["reply"] = reply
        info["overshoot"] = max(0, reply.tokens - room) if reply is not None else 0
        return self._observe(), reward, terminated, False, info

    def close(self) -> None:
        """Close the solver, the grader and the loop."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._loop is not None:
            self._loop.run(self.solver.close())
            self._loop.close()
            self._loop = None

    def _answer(self, ask: Ask) -> Reply:
        if self._loop is None:
            self._loop = LoopThread()
        return self._loop.run(self.solver.answer(ask))
