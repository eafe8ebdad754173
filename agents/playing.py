"""Where agents meet exams: sampled episodes, exact evaluation, practice.

Between the agents' interface and the forward pass and episodes of :mod:`roi_env.exact.evaluation` and
:mod:`roi_env.measures.episodes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from agents.base import (
    Agent,
    AgentError,
    Attempts,
    DecisionView,
    ExamsView,
    Feedback,
    Problem,
    Probs,
    exams_of,
    exams_view,
    public_problem,
)
from agents.made_for import warn_of_others
from agents.one_pass import ExamTaker, mark
from roi_env.exact.evaluation import (
    MAX_STATES,
    Decide,
    Evaluation,
    Law,
    TooManyStates,
    check_distribution,
    default_law,
    evaluate_markov,
)
from roi_env.exams import random
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.measures.episodes import Outcome, Player, Records, play, sample, summarise
from roi_env.sources.source import NOT_OFFERED


@njit(cache=True)
def action_numbers(
    seed: np.uint64, exam_ids: npt.NDArray[np.int64], replicates: npt.NDArray[np.int64], num_tasks: int
) -> npt.NDArray[np.float64]:
    """(D, N) uniform numbers in [0, 1) that pick actions."""
    out = np.empty((len(exam_ids), num_tasks))
    for d in range(len(exam_ids)):
        key = random.draw(random.draw(random.exam_key(seed, exam_ids[d]), random.ACTIONS), np.uint64(replicates[d]))
        for n in range(num_tasks):
            out[d, n] = float(random.draw(key, np.uint64(n)) >> np.uint64(11)) * 2.0**-53
    return out


@njit(cache=True)
def pick_actions(probs: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(D,) int64 actions: the first with positive probability whose cumulative probability exceeds ``uniform`` (D,)."""
    actions = np.zeros(len(probs), np.int64)
    for d in range(len(probs)):
        total = 0.0
        for a in range(probs.shape[1]):
            if probs[d, a] > 0:
                total += probs[d, a]
                actions[d] = a  # rounding may leave the total below ``uniform``: then the last possible action
                if uniform[d] < total:
                    break
    return actions


def check_problem(agent: Agent, problem: Problem) -> None:
    """Refuse an agent that was made for exams of other groups, tiers or units: it would plan with the wrong numbers.

    A warning says where they differ otherwise (:class:`agents.made_for.OtherExams`).

    :raises AgentError: naming what differs.
    """
    made = getattr(agent, "problem", problem)  # one of a user's own may keep none
    name = getattr(agent, "name", type(agent).__name__)
    for what, own, asked in (
        ("groups", made.num_groups, problem.num_groups),
        ("tiers", made.num_tiers, problem.num_tiers),
        ("unit", made.unit, problem.unit),
    ):
        if own != asked:
            raise AgentError(
                f"agent {name!r} was made for other exams ({what}: {own}, here {asked}): "
                "make it of public_problem(spec) of the exams that it takes"
            )
    if made is not problem:
        warn_of_others(f"agent {name!r}", agent.relies_on, exams_of(made, agent.budgets()), exams_of(problem))


def check_probs(agent: Agent, probs: Probs, view: DecisionView) -> Probs:
    """Return ``probs`` if they are what the interface asks for.

    :raises AgentError: naming the agent, where shape, sum, sign or mask is violated.
    """
    name = f"agent {getattr(agent, 'name', type(agent).__name__)!r}"
    try:
        probs = check_distribution(probs, (len(view), view.problem.num_tiers + 1), name)
    except (TypeError, ValueError) as error:
        raise AgentError(str(error)) from error
    if probs[~view.mask].any():  # none is negative
        raise AgentError(f"{name} gives probability to a masked action")
    return probs


class _Episodes:
    """An agent that takes D episodes: keeps its state and what every episode's last action revealed.

    :param groups: (E, N) groups of the exams given to ``start``; episode d is of row ``row[d]``.
    :param numbers: (D, N) uniform numbers that pick actions.
    :param reveal_correct: whether the agent is told if its answers were right.
    """

    def __init__(
        self,
        agent: Agent,
        problem: Problem,
        groups: npt.NDArray[np.int32],
        row: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.float64],
        state: Any,
        reveal_correct: bool,
    ) -> None:
        self.agent, self.problem, self.groups, self.row, self.numbers = agent, problem, groups, row, numbers
        self.state, self.reveal_correct = state, reveal_correct
        size = len(row)
        self.last_action, self.last_tokens = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.last_correct = np.zeros(size, np.bool_)

    def decide(
        self, position: int, episode: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Ask the agent and draw from its probabilities."""
        self.view = DecisionView(
            self.problem,
            self.row[episode],
            np.full(len(episode), position, np.int64),
            remaining,
            self.last_action[episode],
            self.last_tokens[episode],
            self.last_correct[episode],
            self.groups,
        )
        probs, self.state = self.agent.act(self.view, self.state)
        return pick_actions(check_probs(self.agent, probs, self.view), self.numbers[episode, position])

    def learn(self, outcome: Outcome) -> None:
        """Tell the agent."""
        right = outcome.correct if self.reveal_correct else None
        feedback = Feedback(self.view, outcome.action, outcome.tokens, right, outcome.overspent)
        self.state = self.agent.observe(feedback, self.state)
        self.last_action[outcome.episode], self.last_tokens[outcome.episode] = outcome.action, outcome.tokens
        if self.problem.feedback == "cost+correct":
            self.last_correct[outcome.episode] = outcome.correct

    @property
    def player(self) -> Player:
        """As :mod:`roi_env.measures.episodes` asks for it."""
        return Player(self.decide, self.learn)


def rollout(
    agent: Agent,
    batch: ExamBatch,
    *,
    replicates: int = 1,
    seed: int = 0,
    law: Law = "true",
    chunk: int | None = None,
) -> Records:
    """Let an agent take every exam ``replicates`` times.

    Outcomes are the batch's potential outcomes (the same for every agent), replicate ``batch.replicates + r``; actions
    are drawn from the agent's probabilities with numbers named by (seed, exam id, replicate, position).

    :param law: "true": the exams' own tasks, as in the environment; "published": hidden tasks and latent state are
        drawn anew in every replicate (:func:`roi_env.measures.episodes.redraw_hidden`), the same for every agent.

    :param chunk: most episodes a batch (memory only; the records do not depend on it).
    :raises ValueError: where the agent's probabilities break the interface.

    Who takes exams in one pass (:class:`agents.one_pass.ExamTaker`) writes anew in every replicate, with numbers named the
    same way; potential outcomes play no part then.
    """
    if isinstance(agent, ExamTaker):
        return _take_in_one_pass(agent, batch, replicates, seed, law)
    problem = public_problem(batch.spec)
    check_problem(agent, problem)

    def enter(some: ExamBatch, episodes: ExamBatch, row: npt.NDArray[np.int64]) -> Player:
        # A memory belongs to an episode: agents with state see every episode as an exam of its own.
        seen, place = (some, row) if agent.markov else (episodes, np.arange(len(episodes)))
        numbers = action_numbers(np.uint64(seed), episodes.exam_ids, episodes.replicates, batch.spec.num_tasks)
        state = agent.start(exams_view(seen, problem))
        told = problem.feedback == "cost+correct"
        return _Episodes(agent, problem, seen.groups, place, numbers, state, told).player

    return sample(enter, batch, replicates=replicates, law=law, chunk=chunk)


def _take_in_one_pass(agent: ExamTaker, batch: ExamBatch, replicates: int, seed: int, law: Law) -> Records:
    """:func:`rollout` of whom takes whole exams."""
    if law != "true":
        raise ValueError(f"agent {agent.name!r} writes its own answers to the exams' own tasks: there is no other law")
    episodes = batch.repeated(replicates)
    # One number a token: no exam has more tokens than its budget.
    numbers = action_numbers(np.uint64(seed), episodes.exam_ids, episodes.replicates, batch.spec.budget)
    papers = agent.take(exams_view(episodes, public_problem(batch.spec)), numbers)
    return mark(papers, episodes, agent.grader, np.repeat(np.arange(len(batch)), replicates))


def evaluate_sampled(
    agent: Agent, batch: ExamBatch, *, law: Law | None = None, replicates: int = 100, seed: int = 0
) -> Evaluation:
    """Evaluate by sampled episodes; ``law`` as in :func:`rollout`, default :func:`default_law`. Who takes exams in one pass
    takes each as often as it says itself, at most."""
    law = law or default_law(batch.spec)
    if isinstance(agent, ExamTaker):
        replicates = min(replicates, agent.replicates)
    return summarise(rollout(agent, batch, replicates=replicates, seed=seed, law=law), batch, law)


def evaluate_exact(
    agent: Agent, batch: ExamBatch, *, law: Law | None = None, max_states: int = MAX_STATES
) -> Evaluation:
    """Expectations of a Markov agent, by carrying probability forward through every reachable (task, remaining budget).

    Exams that look alike and have the same laws are evaluated once. Under the published law an exam-level latent state
    is averaged over (equally likely states), under the true law it is the exam's own.

    :param law: "published" or "true"; default :func:`default_law`.
    :param max_states: most (exam, position, remaining) states to ask the agent about.
    :raises TooManyStates: above ``max_states``.
    :raises ValueError: for an agent with memory, or probabilities that break the interface.
    """
    if not agent.markov:
        raise ValueError(f"agent {agent.name!r} has a memory: use evaluate_sampled")
    problem = public_problem(batch.spec)
    check_problem(agent, problem)

    def policy(some: ExamBatch) -> Decide:
        groups, state = some.groups, agent.start(exams_view(some, problem))

        def decide(position: int, exam: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]) -> Probs:
            none = np.zeros(len(exam), np.int64)
            view = DecisionView(
                problem, exam, np.full_like(exam, position), remaining, none, none, none.astype(bool), groups
            )
            return check_probs(agent, agent.act(view, state)[0], view)

        return decide

    try:
        return evaluate_markov(policy, batch, law=law, max_states=max_states)
    except TooManyStates as error:
        raise TooManyStates(f"agent {agent.name!r}: {error}") from None


def evaluate(
    agent: Agent,
    batch: ExamBatch,
    *,
    law: Law | None = None,
    max_states: int = MAX_STATES,
    replicates: int = 100,
    seed: int = 0,
) -> Evaluation:
    """Evaluate exactly where the agent allows it within ``max_states``, else by sampling; the result says which."""
    if agent.markov:
        try:
            return evaluate_exact(agent, batch, law=law, max_states=max_states)
        except TooManyStates:
            pass
    return evaluate_sampled(agent, batch, law=law, replicates=replicates, seed=seed)


# ---------------------------------------------------------------------------------------------------------------------
# Practice


def practice_seed(seed: int) -> int:
    """Seed of the training exams that belong to reported exams of ``seed``: another key, by a hash."""
    return int.from_bytes(hashlib.sha256(f"train {seed}".encode()).digest()[:8], "little")


class TrainingExams:
    """Training exams of one kind (:class:`agents.base.Practice`), under another key than the reported ones.

    For recorded sources pass a specification over the train split: then questions are disjoint as well.

    :param spec: kind of exam.
    :param seed: seed of the reported exams (or of the training run).
    :param max_states: limit of exact scoring; above it scores are sampled.
    :param replicates: episodes an exam when sampled.
    """

    def __init__(self, spec: ExamSpec, seed: int, *, max_states: int = MAX_STATES, replicates: int = 8) -> None:
        self.spec = spec
        self.seed = practice_seed(seed)
        self.max_states = max_states
        self.replicates = replicates
        self._problem = public_problem(spec)

    @property
    def problem(self) -> Problem:
        """The kind of exam."""
        return self._problem

    def batch(self, count: int, start: int = 0) -> ExamBatch:
        """Training exams ``start .. start + count - 1`` with everything hidden in them."""
        return draw_exams(self.spec, self.seed, np.arange(start, start + count))

    def exams(self, count: int, start: int = 0) -> ExamsView:
        """The public part of training exams ``start .. start + count - 1``."""
        return exams_view(self.batch(count, start), self._problem)

    def attempts(self, count: int, strata: npt.NDArray[np.int64]) -> Attempts:
        """``count`` logged attempts, equally many for every stratum of groups that can occur and offers a tier.

        Tasks come in the order of the training exams; each is tried at every tier it offers, and passed over once its
        stratum has its share. Counting errors are then equal across strata, and what a task adds to the error of one
        tier it adds to the others, so that their order is learned sooner than from as many independent attempts.

        :param strata: (G,) int64 stratum of every group, numbered from 0.
        :raises ValueError: where the source offers no tier at all.
        """
        problem = self._problem
        offers = problem.min_cost < NOT_OFFERED
        occurs = problem.group_probability[: problem.num_tasks].sum(0) > 0
        found = np.unique(strata[occurs & offers.any(1)])
        if not len(found):
            raise ValueError("no task of these training exams offers a tier")
        missing = np.zeros(int(strata.max()) + 1, np.int64)
        missing[found] = count // len(found)
        missing[found[: count % len(found)]] += 1
        parts: list[Attempts] = []
        size = -(-count // problem.num_tasks)
        start = 0
        while missing.any():
            batch = self.batch(size, start)
            start += size
            tokens, correct = batch.outcomes()
            group = batch.groups.ravel()
            for stratum in np.flatnonzero(missing):
                task, tier = np.nonzero(offers[group] & (strata[group] == stratum)[:, None])
                task, tier = task[: missing[stratum]], tier[: missing[stratum]]
                missing[stratum] -= len(task)
                parts.append(
                    Attempts(
                        group[task],
                        tier,
                        tokens.reshape(-1, problem.num_tiers)[task, tier].astype(np.int64),
                        correct.reshape(-1, problem.num_tiers)[task, tier],
                    )
                )
        names = [field.name for field in dataclasses.fields(Attempts)]
        return Attempts(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def score(self, agent: Agent, count: int, start: int = 0) -> float:
        """Mean score over training exams: exact under the published laws where the problem publishes beliefs and the
        agent has no memory, else sampled (an agent without beliefs must learn from what happens)."""
        batch = self.batch(count, start)
        if agent.markov and self._problem.beliefs is not None:
            evaluation = evaluate(
                agent,
                batch,
                law="published",
                max_states=self.max_states,
                replicates=self.replicates,
                seed=self.seed,
            )
        else:
            evaluation = evaluate_sampled(agent, batch, replicates=self.replicates, seed=self.seed)
        return float(evaluation.score.mean())

    def play(self, agent: Agent, count: int, start: int, state: Any) -> Any:
        """Let an agent take training exams as one batch, from ``state``; returns its state afterwards.

        In practice the agent is told whether its own answers were right, whatever the exams' feedback is: unknown laws
        could not be learned otherwise.
        """
        batch = self.batch(count, start)
        uniform = action_numbers(np.uint64(self.seed), batch.exam_ids, batch.replicates, self.spec.num_tasks)
        row = np.arange(len(batch))
        taking = _Episodes(agent, self._problem, batch.groups, row, uniform, state, reveal_correct=True)
        play(taking.player, batch, self.spec.reward, row)
        return taking.state
