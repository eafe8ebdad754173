"""Bid-price rules: pay at most the price of a token, play the tier with the largest value - price x tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from agents.base import DecisionView, ExamsView, Problem, Probs, State, one_hot
from agents.made_for import LENGTH, QUESTIONS
from agents.parameters import Count, NonNegative
from agents.planners.lp import PopulationCurve, bid, lookahead_kernel, make_plan, price_kernel, prices
from agents.planners.menu import Planner, population


class BidPrice(Planner):
    """Static bid price (Talluri and van Ryzin, Management Science 44(11), 1998): the fluid LP's price at the start.

    Preview: the LP of this exam's N tasks at B. Blind: the LP of the population at B / N a task.
    """

    name: ClassVar[str] = "bid-price"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)

    def start(self, exams: ExamsView) -> State:
        """(E, N) price and rounding of every task."""
        problem, shape = exams.problem, (len(exams), exams.problem.num_tasks)
        if not problem.preview:
            curve = PopulationCurve(self.menu, population(problem))
            initial = float(curve(problem.budget / problem.num_tasks - problem.decision_cost))
            return np.full(shape, initial), np.zeros(shape, np.bool_)
        exam = np.repeat(np.arange(len(exams)), problem.num_tasks)
        zero, budget = np.zeros(len(exam), np.int64), np.full(len(exam), problem.budget, np.int64)
        ahead = np.zeros(shape, np.int64)
        for n in range(1, problem.num_tasks):
            ahead[:, n] = (exams.groups[:, :n] == exams.groups[:, n : n + 1]).sum(1)
        plan, groups = make_plan(exams, self.menu), exams.groups.ravel()
        price, up = price_kernel(self.menu, plan, exam, zero, groups, budget, ahead.ravel(), problem.num_tasks)
        return price.reshape(shape), up.reshape(shape)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Bid at the exam's price."""
        price, up = (part[view.exam, view.position] for part in state)
        return one_hot(bid(self.menu, view, price, up=up), view.problem.num_tiers + 1), state


class PopulationBidPrice(Planner):
    """Price of the population's LP at remaining / (tasks left), with values and costs as the budget cuts them.

    Needs no preview: the re-solved bid price (Talluri and van Ryzin 1998; Jasin and Kumar 2012) of an exam whose
    later tasks are average, and the truncation guard p -> P(correct and cost <= remaining), c -> E min(cost,
    remaining) for the current one. Position-ignorant by definition: sorted orders mislead it. One of the two rules of
    the gate.
    """

    name: ClassVar[str] = "population-bid-price"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.curve = PopulationCurve(self.menu, population(problem))

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Bid at the population's price."""
        share = view.remaining / (view.problem.num_tasks - view.position) - view.problem.decision_cost
        return one_hot(bid(self.menu, view, self.curve(share), guard=True), view.problem.num_tiers + 1), state


class DualDescent(Planner):
    """Multiplicative dual pacing (dual mirror descent with entropy; Balseiro, Lu, Mirrokni, arXiv 2011.10124).

    After every task the price is multiplied by exp(eta (spent on it - rho) / rho), rho = B / N, from the population's
    price at rho. Spends add up, so the price is a function of (position n, remaining b):
    lambda_0 exp(eta ((B - b) N / B - n)).

    :param eta: step size.
    """

    name: ClassVar[str] = "dual-descent"

    def __init__(self, problem: Problem, eta: NonNegative = 0.1) -> None:
        super().__init__(problem)
        self.eta = float(eta)
        curve = PopulationCurve(self.menu, population(problem))
        self.initial = float(curve(problem.budget / problem.num_tasks - problem.decision_cost))

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Bid at the paced price."""
        problem = view.problem
        ahead = (problem.budget - view.remaining) * problem.num_tasks / problem.budget - view.position
        price = self.initial * np.exp(np.clip(self.eta * ahead, -300.0, 300.0))
        return one_hot(bid(self.menu, view, price), problem.num_tiers + 1), state

    def params(self) -> dict[str, Any]:
        """The step size."""
        return {"eta": self.eta}


class Resolve(Planner):
    """Certainty equivalent: the fluid LP of the current and all later tasks, solved again at every task.

    Jasin and Kumar, A Re-Solving Heuristic with Bounded Revenue Loss for Network Revenue Management with Customer
    Choice, Mathematics of Operations Research 37, 2012. The LP's fractional increment is rounded to the nearest. One of
    the two rules of the gate. Blind: later tasks are the population of their position.
    """

    name: ClassVar[str] = "resolve"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)
    guard: ClassVar[bool] = False

    def start(self, exams: ExamsView) -> State:
        """Sorted increments of every exam."""
        return make_plan(exams, self.menu)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Bid at the price of the rest."""
        price, up = prices(self.menu, state, view)
        return one_hot(bid(self.menu, view, price, up=up, guard=self.guard), view.problem.num_tiers + 1), state


class ResolveGuarded(Resolve):
    """``resolve`` that values the current attempt as the budget cuts it: P(correct, cost <= b), E min(cost, b)."""

    name: ClassVar[str] = "resolve-guarded"
    guard: ClassVar[bool] = True


class ResolveFew(Resolve):
    """``resolve`` that solves its LP only ``times`` times, at positions floor(i N / times), and keeps the price
    between.

    A few well placed solutions lose no more than constant re-solving: Jasin and Kumar 2012 construct a schedule,
    Bumpensanti and Wang (arXiv 1802.06192) another that is densest near the end, with thresholded probabilities. Here
    they are evenly spaced, as suits exams of tens of tasks. Keeps a price in between, so it has a memory.

    :param times: number of solutions.
    """

    name: ClassVar[str] = "resolve-few"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS, LENGTH)
    markov: ClassVar[bool] = False

    def __init__(self, problem: Problem, times: Count = 4) -> None:
        super().__init__(problem)
        if isinstance(times, bool) or times < 1:
            raise ValueError(f"times must be an integer >= 1, got {times!r}")
        self.times = int(times)
        schedule = np.zeros(problem.num_tasks, bool)
        schedule[np.arange(self.times) * problem.num_tasks // self.times] = True
        self.schedule: npt.NDArray[np.bool_] = schedule
        """(N,) whether the LP is solved at a position."""

    def start(self, exams: ExamsView) -> State:
        """Sorted increments of every exam and (E,) prices."""
        return make_plan(exams, self.menu), np.zeros(len(exams))

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Bid at the last solution's price; in between, ties go to the smallest value."""
        plan, last = state
        price, up = prices(self.menu, plan, view)
        solve = self.schedule[view.position]
        price = np.where(solve, price, last[view.exam])
        last = last.copy()
        last[view.exam] = price
        return one_hot(bid(self.menu, view, price, up=up & solve), view.problem.num_tiers + 1), (plan, last)

    def params(self) -> dict[str, Any]:
        """The number of solutions."""
        return {"times": self.times}


class LPLookahead(Planner):
    """One exact step, then the fluid LP: the reference planner.

    Maximises E[weight x correct within the budget + LP value of the later tasks at what remains] over the joint law
    of tokens and correctness of the current task; an attempt that is cut earns nothing and ends the exam. One-step
    roll-out on a certainty-equivalent value (Bertsekas and Castanon, Rollout Algorithms for Stochastic Scheduling
    Problems, Journal of Heuristics 5, 1999). Ties go to the cheaper action.
    """

    name: ClassVar[str] = "lp-lookahead"
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS,)

    def start(self, exams: ExamsView) -> State:
        """Sorted increments of every exam."""
        return make_plan(exams, self.menu)

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Look one attempt ahead."""
        action = lookahead_kernel(
            self.menu,
            state,
            view.exam,
            view.position,
            view.group,
            view.remaining,
            view.mask,
            view.problem.num_tasks,
        )
        return one_hot(action, view.problem.num_tiers + 1), state
