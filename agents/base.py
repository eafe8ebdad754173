"""One interface for whoever takes an exam, and the registry of names.

An agent sees only what is public: :class:`Problem` (what holds for every exam of a kind), :class:`ExamsView` (a batch of
exams) and :class:`DecisionView` (a batch of decisions). It answers with action probabilities, a batch at a time. State
that lives across the decisions of a batch of exams is passed in and out, never kept in the agent.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.made_for import BUDGET, LENGTH, QUESTIONS, MadeFor, digest, warn_of_others
from agents.parameters import Word, as_params, checked
from roi_env.exams.arrivals import Arrivals, arrivals, order_key
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch
from roi_env.exams.observation import ObservationTables, observation_layout, observation_tables, observe
from roi_env.files import replacing
from roi_env.plugins import announced, import_file, stem_of
from roi_env.sources.source import Laws
from roi_env.sources.units import Unit

Probs: TypeAlias = npt.NDArray[np.float64]
"""(D, K + 1) action probabilities; rows sum to one and are zero where masked."""

HIDDEN = -1
"""Group of a task that is not shown yet (blind mode)."""


@dataclass(frozen=True)
class Problem:
    """What an agent may know of a kind of exam before it sees one.

    :param num_tasks: N.
    :param budget: tokens.
    :param decision_cost: tokens added to every action.
    :param order: order of presentation.
    :param preview: whether later tasks are shown.
    :param feedback: "cost" or "cost+correct".
    :param tier_names: K names, cheapest first.
    :param level_edges: (K,) int64 upper token edges of the announced levels.
    :param group_features: (G, F) float32 published features.
    :param group_weight: (G,) float64 reward weights.
    :param group_key: (G,) int32 published easy-to-hard rank.
    :param given_key: (G,) int32 published rank of the groups in the order "given".
    :param group_probability: (S, G) how often a group occurs in the population, per stratum (slot n: stratum n % S).
    :param min_cost: (G, K) int64: a tier is legal while this many tokens remain (decision cost included).
    :param beliefs: laws of an attempt given the group, or None (``beliefs="none"``: they must be learned).
    :param latent_beliefs: laws given (latent state, group), law ``latent * G + group``, where the family has an
        exam-level latent state (equally likely states); else None.
    :param num_latent: number of latent states.
    :param observation_tables: how the flat observation is written.
    :param observation_size: its length.
    :param guessed: whether ``beliefs`` are mere guesses, which nobody has measured.
    :param one_request: K caps of tiers that are one request cut at different lengths, 0 for other tiers; empty: none.
    :param unit: what costs and the budget count: tokens, or micro-dollars.
    :param source: name of the source of its questions.
    :param group_names: G names of the published groups.
    """

    num_tasks: int
    budget: int
    decision_cost: int
    order: str
    preview: bool
    feedback: str
    tier_names: tuple[str, ...]
    level_edges: npt.NDArray[np.int64]
    group_features: npt.NDArray[np.float32]
    group_weight: npt.NDArray[np.float64]
    group_key: npt.NDArray[np.int32]
    given_key: npt.NDArray[np.int32]
    group_probability: npt.NDArray[np.float64]
    min_cost: npt.NDArray[np.int64]
    beliefs: Laws | None
    latent_beliefs: Laws | None
    num_latent: int
    observation_tables: ObservationTables
    observation_size: int
    guessed: bool = False
    one_request: tuple[int, ...] = ()
    unit: Unit = "tokens"
    source: str = ""
    group_names: tuple[str, ...] = ()

    @property
    def num_tiers(self) -> int:
        """Number of tiers K."""
        return len(self.tier_names)

    @property
    def num_groups(self) -> int:
        """Number of published groups G."""
        return len(self.group_weight)

    @property
    def padded_size(self) -> int:
        """Width of the feature rows that observations are cut from."""
        return self.num_tasks * self.group_features.shape[1] + self.observation_tables.shown

    @cached_property
    def arrivals(self) -> Arrivals:
        """The law of the sequence of groups: what is known of later tasks where they are not shown."""
        key = order_key(self.order, self.group_key, self.given_key)
        return arrivals(self.num_tasks, self.group_probability, key)

    def require_beliefs(self, agent: str) -> Laws:
        """The published beliefs.

        :raises ValueError: where the problem publishes none.
        """
        if self.beliefs is None:
            raise ValueError(
                f"agent {agent!r} plans with published beliefs, but this problem has beliefs='none': choose an agent "
                "that learns (bwk-ucb, bwk-thompson, plugin-bellman) or publish beliefs"
            )
        return self.beliefs


def public_problem(spec: ExamSpec) -> Problem:
    """The public part of a specification."""
    source = spec.source
    published = spec.beliefs == "published"
    return Problem(
        num_tasks=spec.num_tasks,
        budget=spec.budget,
        decision_cost=spec.decision_cost,
        order=spec.order,
        preview=spec.preview,
        feedback=spec.feedback,
        tier_names=tuple(tier.name for tier in source.tiers),
        level_edges=source.level_edges,
        group_features=source.group_features,
        group_weight=source.group_weight,
        group_key=source.group_key,
        given_key=source.given_key,
        group_probability=source.group_probability,
        min_cost=spec.min_cost,
        beliefs=source.beliefs if published else None,
        latent_beliefs=source.published if published and source.num_latent > 1 else None,
        num_latent=source.num_latent,
        observation_tables=observation_tables(spec),
        observation_size=observation_layout(spec).size,
        guessed=source.guessed,
        one_request=source.one_request,
        unit=source.unit,
        source=source.name,
        group_names=source.group_names,
    )


def exams_of(problem: Problem, budgets: tuple[int, int] | None = None) -> MadeFor:
    """The kind of exam that a problem is.

    :param budgets: smallest and largest; None: the problem's.
    """
    groups = (problem.tier_names, problem.group_names, problem.group_weight.tolist(), problem.group_features.tolist())
    laws = problem.beliefs
    cells = None if laws is None else (laws.indptr, laws.cost, laws.prob, laws.success)
    return MadeFor(
        problem.source,
        digest(json.dumps(groups).encode()),
        None if cells is None else digest(*(values.tobytes() for values in cells)),
        problem.num_tasks,
        *(budgets or (problem.budget, problem.budget)),
        problem.unit,
    )


@dataclass(frozen=True)
class ExamsView:
    """The public part of E exams, before their first decision.

    :param problem: what holds for all of them.
    :param groups: (E, N) int32 published group of every task in presentation order; ``HIDDEN`` in blind mode.
    :param texts: question texts by exam and position where the source has them (None: it has not).
    """

    problem: Problem
    groups: npt.NDArray[np.int32]
    texts: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(E, N) float64 weights; 0 where hidden."""
        return np.where(self.groups == HIDDEN, 0.0, self.problem.group_weight[self.groups])


@dataclass(frozen=True)
class DecisionView:
    """D decisions to take; any mix of exams and budgets, all at one position or not.

    :param problem: what holds for all of them.
    :param exam: (D,) int64 row of the decision's exam in the :class:`ExamsView` given to ``start``.
    :param position: (D,) int64 index of the task to decide.
    :param remaining: (D,) int64 remaining budget in tokens.
    :param last_action: (D,) int64 previous action of the exam (0 at its start).
    :param last_tokens: (D,) int64 tokens paid by it.
    :param last_correct: (D,) bool whether it was right; always False unless ``problem.feedback`` tells.
    """

    problem: Problem
    exam: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    remaining: npt.NDArray[np.int64]
    last_action: npt.NDArray[np.int64]
    last_tokens: npt.NDArray[np.int64]
    last_correct: npt.NDArray[np.bool_]
    _all_groups: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.exam)

    @cached_property
    def group(self) -> npt.NDArray[np.int32]:
        """(D,) int32 published group of the task to decide."""
        return self._all_groups[self.exam, self.position]

    @cached_property
    def groups(self) -> npt.NDArray[np.int32]:
        """(D, N) int32 groups of all tasks; ``HIDDEN`` for later tasks in blind mode."""
        groups = self._all_groups[self.exam]
        if self.problem.preview:
            return groups
        later = np.arange(groups.shape[1]) > self.position[:, None]
        return np.where(later, np.int32(HIDDEN), groups)

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(D, K + 1) bool: legal actions; skip always is."""
        mask = np.ones((len(self), self.problem.num_tiers + 1), bool)
        np.less_equal(self.problem.min_cost[self.group], self.remaining[:, None], out=mask[:, 1:])
        return mask

    @cached_property
    def observations(self) -> npt.NDArray[np.float32]:
        """(D, size) float32: the environment's flat observations."""
        return observe(
            self._all_groups,
            np.zeros((len(self._all_groups), self.problem.padded_size), np.float32),
            self.exam,
            self.position,
            self.remaining,
            self.problem.budget,
            self.last_action,
            self.last_tokens,
            self.last_correct,
            self.problem.observation_tables,
            self.problem.observation_size,
        )


@dataclass(frozen=True)
class Feedback:
    """What the environment reveals after D decisions.

    :param view: the decisions' view.
    :param action: (D,) int64.
    :param tokens: (D,) int64 paid, decision cost included.
    :param correct: (D,) bool, or None where ``problem.feedback`` is "cost".
    :param overspent: (D,) bool: cut at the budget.
    :param failed: (D,) bool: attempts that gave no answer at all, which nobody needs to judge (cut at the tier's cap before
        anything was stated); None where nobody looked, as in exams of recorded outcomes.
    """

    view: DecisionView
    action: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_] | None
    overspent: npt.NDArray[np.bool_]
    failed: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Attempts:
    """A log of attempts at training tasks: the data of agents that learn laws.

    :param group: (n,) int32 published group of the task.
    :param tier: (n,) int64 tier tried, 0-based.
    :param tokens: (n,) int64 tokens generated (decision cost excluded).
    :param correct: (n,) bool.
    """

    group: npt.NDArray[np.int32]
    tier: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


class Practice(Protocol):
    """Training exams, disjoint from those that are reported."""

    @property
    def problem(self) -> Problem:
        """The kind of exam."""

    @property
    def spec(self) -> ExamSpec:
        """The training exams' specification: what agents that learn in the environment itself step through."""

    @property
    def seed(self) -> int:
        """Identity's seed of the training exams."""

    def exams(self, count: int, start: int = 0) -> ExamsView:
        """Training exams ``start .. start + count - 1``."""

    def attempts(self, count: int, strata: npt.NDArray[np.int64]) -> Attempts:
        """``count`` logged attempts, equally many a stratum of groups ((G,) numbers), each task at every offered tier."""

    def score(self, agent: Agent, count: int, start: int = 0) -> float:
        """Mean score of an agent over training exams."""

    def play(self, agent: Agent, count: int, start: int, state: Any) -> Any:
        """Let an agent with memory take training exams (as one batch); returns its state afterwards."""


class AgentError(ValueError):
    """An agent cannot take these exams, or what it is made of is not there; the message says what to do."""


State: TypeAlias = Any


class Agent(ABC):
    """Base class of agents. Sub-classes take ``problem`` and their parameters: as keywords, which :meth:`params` gives back, or,
    where there are many, as one frozen dataclass, see :attr:`settings`."""

    name: ClassVar[str]
    settings: Any = None
    """Where a class sets it to a dataclass of its default parameters, the constructor takes ``(problem, settings)`` and keeps
    them here; None: it takes keywords."""
    markov: ClassVar[bool] = True
    """Whether action probabilities depend on (exam, position, remaining budget) alone: then evaluation is exact."""
    earlier_params: ClassVar[dict[str, str]] = {}
    """What constructor parameters were called in files saved before, and what they are called now."""
    stepwise: ClassVar[bool] = False
    """Whether training steps through the environment, takes a parameter ``steps`` and reports its progress
    (:class:`agents.neural.NeuralAgent`)."""
    relies_on: ClassVar[tuple[str, ...]] = (QUESTIONS, LENGTH, BUDGET)
    """In what the exams that it takes must be those it was made for; where others differ in it, a warning says so
    (:mod:`agents.made_for`)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def train(self, practice: Practice, seed: int) -> None:  # noqa: B027 - nothing to learn by default
        """Learn from training exams; agents that do not learn keep this no-op.

        :param seed: of everything random in training but the exams.
        """

    def start(self, exams: ExamsView) -> State:
        """Prepare for a batch of exams; returns the state that ``act`` gets."""
        return None

    @abstractmethod
    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Return ``(probabilities (D, K + 1), state)``."""

    def observe(self, feedback: Feedback, state: State) -> State:
        """Take in what the decisions revealed; returns the new state."""
        return state

    def budgets(self) -> tuple[int, int]:
        """Smallest and largest budget of the exams that it was made for."""
        return self.problem.budget, self.problem.budget

    def params(self) -> dict[str, Any]:
        """All parameters by name (JSON values)."""
        return {} if self.settings is None else as_params(self.settings)

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """What training changed, as arrays."""
        return {}

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:  # noqa: B027 - nothing to restore by default
        """Put back what :meth:`learned` gave."""


def one_hot(action: npt.NDArray[np.integer], num_actions: int) -> Probs:
    """Probabilities (D, num_actions) that play ``action`` (D,)."""
    probs = np.zeros((len(action), num_actions))
    probs[np.arange(len(action)), action] = 1.0
    return probs


def save_agent(agent: Agent, path: str | Path) -> None:
    """Write an agent to one ``.npz`` file, atomically."""
    header, learned = {"agent": agent.name, "params": agent.params(), "unit": agent.problem.unit}, agent.learned()
    if learned:  # whoever learned nothing is made anew for the exams that it takes
        header["made_for"] = asdict(exams_of(agent.problem, agent.budgets()))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), allow_pickle=False, **learned)


def saved_name(path: str | Path) -> str:
    """The name under which a saved agent is registered.

    :raises ValueError: where the file is not a saved agent.
    """
    return str(_read_saved(path)[0]["agent"])


def _read_saved(path: str | Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """(header, what was learned)."""
    try:
        with np.load(path) as data:
            arrays = {key: data[key] for key in data.files}
        header = json.loads(str(arrays.pop("header")))
        if not {"agent", "params"} <= set(header):
            raise ValueError("its header names no agent")
        return header, arrays
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a saved agent ({error}); expected a .npz file written by save_agent") from error


def load_agent(path: str | Path, problem: Problem) -> Agent:
    """Read an agent back; a warning says where it learned for other exams (:class:`agents.made_for.OtherExams`).

    :raises ValueError: where the file is not a saved agent, or one of another unit of cost.
    """
    header, arrays = _read_saved(path)
    # Agents of before units are of tokens.
    if (unit := header.get("unit", "tokens")) != problem.unit:
        raise ValueError(
            f"{path}: this agent counts {unit}, the costs of these exams are {problem.unit}: train one on a table of that unit"
        )
    if ":" in header["agent"] and header["agent"] not in AGENTS:
        own = header["agent"].partition(":")
        raise ValueError(
            f"{path} was saved by the agent {header['agent']!r}, which is not known here, and a file never imports code by "
            f"itself: name what defines it, e.g. --import {own[0]}.py"
        )
    entry = find_agent(header["agent"])
    earlier: dict[str, str] = {} if entry is None else getattr(entry.load(), "earlier_params", {})
    params = {earlier.get(name, name): value for name, value in header["params"].items()}
    agent = make_agent(header["agent"], problem, **params)
    agent.restore(arrays)
    if "made_for" in header:  # files of before do not say
        warn_of_others(f"{path} ({agent.name})", agent.relies_on, MadeFor(**header["made_for"]), exams_of(problem))
    return agent


@dataclass(frozen=True)
class RegisteredAgent:
    """One registered agent: where its class lives and the parameters its name implies."""

    target: str
    summary: str
    params: dict[str, Any]
    privileged: bool = False
    """Uses the evaluated source's own laws (a reference, not a contestant)."""
    file: str | None = None
    """The file that brought it, for agents that are no part of an installed package."""

    def load(self) -> Callable[..., Agent]:
        """Import the class."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]

    @property
    def settings(self) -> type[Any] | None:
        """The dataclass of its parameters, see :attr:`Agent.settings`; None: keywords. Imports the class."""
        defaults = getattr(self.load(), "settings", None)
        return type(defaults) if is_dataclass(defaults) and not isinstance(defaults, type) else None

    @property
    def stepwise(self) -> bool:
        """Whether it learns in the environment, see :attr:`Agent.stepwise`; imports the class."""
        return bool(getattr(self.load(), "stepwise", False))


AGENTS: dict[str, RegisteredAgent] = {}
"""Registered agents by name; modules are imported when an agent is made."""


def register(name: str, target: str, summary: str, *, privileged: bool = False, **params: Any) -> None:
    """Register an agent under a name for the command line."""
    if name in AGENTS:
        raise ValueError(f"agent {name!r} is registered already")
    AGENTS[name] = RegisteredAgent(target, summary, params, privileged)


_NUMBERED = re.compile(r"(fixed)-([1-9][0-9]{0,2})")
"""Names that need no entry of their own: ``fixed-4``, ``fixed-5``, ... for as many tiers as a table has."""


def find_agent(name: str) -> RegisteredAgent | None:
    """The registered agent of a name; None where there is none. ``fixed-K`` exists for every K."""
    if name not in AGENTS:
        _look_outside(name)
    if name in AGENTS:
        return AGENTS[name]
    if match := _NUMBERED.fullmatch(name):
        number = int(match[2])
        return replace(AGENTS[match[1]], summary=f"always tier {number}", params={"tier": number})
    return None


def _look_outside(name: str) -> None:
    """Register an agent that an installed package announces (entry point ``roi.agents``), or that is named by its module."""
    module, _, attribute = name.partition(":")
    if not attribute:
        if (point := announced("roi.agents").get(name)) is not None:
            register(name, point.value, f"of {point.dist.name if point.dist else 'an installed package'}")
        return
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"agent {name!r} cannot be imported ({error}): name an installed module, or a file as in own.py:{attribute}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ValueError(f"{name!r} is no agent: it must be a subclass of agents.base.Agent")
    register(name, name, _first_line(found))


def _first_line(agent: type[Agent]) -> str:
    return (inspect.getdoc(agent) or agent.__name__).partition("\n")[0]


def use_file(path: str | Path) -> list[str]:
    """Import a Python file and register the agents that it defines; returns their names, ``FILE:CLASS`` without the ending.

    :raises ValueError: where it cannot be imported.
    """
    module = import_file(path)
    names = []
    for attribute, value in vars(module).items():
        own = isinstance(value, type) and issubclass(value, Agent) and value.__module__ == module.__name__
        if own and not inspect.isabstract(value):
            names.append(f"{stem_of(module)}:{attribute}")
            AGENTS[names[-1]] = RegisteredAgent(
                f"{module.__name__}:{attribute}", _first_line(value), {}, file=module.__file__
            )
    return names


def named_agent(text: str) -> str:
    """An agent's text with a file of its own imported: ``DIR/own.py:Mine(x=1)`` becomes ``own:Mine(x=1)``; others stay.

    :raises ValueError: where the file cannot be imported or has no such agent.
    """
    match = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)(\(.*\))?", text.strip(), re.DOTALL)
    if match is None:
        return text
    names = use_file(match[1])
    name = f"{Path(match[1]).stem}:{match[2]}"
    if name not in names:
        raise ValueError(f"{match[1]} has no agent {match[2]!r}; it has {[one.partition(':')[2] for one in names]}")
    return name + (match[3] or "")


def parse_agent(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``"roi(threshold=0.01)"`` into a registered name and parameters.

    :raises ValueError: for an unknown name (listing the known ones) or malformed parameters.
    """
    match = re.fullmatch(r"([\w-]+|[\w.]+:\w+)(?:\((.*)\))?", named_agent(text).strip(), re.DOTALL)
    if match is None or find_agent(match[1]) is None:
        name = text.partition("(")[0].strip()
        near = difflib.get_close_matches(name, [*AGENTS, *announced("roi.agents")], n=3, cutoff=0.5)
        raise ValueError(
            f"unknown agent {text!r}"
            + (f": did you mean {' or '.join(near)}? " if near else "; ")
            + "`roi agents` lists all names (fixed-K for every tier K); your own: FILE.py:CLASS"
        )
    try:
        call = ast.parse(f"_({match[2] or ''})", mode="eval").body
        named = isinstance(call, ast.Call) and not call.args and None not in [given.arg for given in call.keywords]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        named = False
    if not named:
        raise ValueError(f"agent {text!r}: parameter {match[2]!r} must read like name=1.5")
    assert isinstance(call, ast.Call)
    params: dict[str, Any] = {}
    for given in call.keywords:
        name = str(given.arg)
        if name in params:
            raise ValueError(f"agent {text!r}: parameter {name} is given twice")
        try:
            params[name] = ast.literal_eval(given.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            params[name] = Word(ast.unparse(given.value))
    return match[1], params


def agent_text(name: str, params: dict[str, Any]) -> str:
    """The text that :func:`parse_agent` reads back as ``(name, params)``."""
    return f"{name}({','.join(f'{key}={value!r}' for key, value in params.items())})" if params else name


def is_saved(text: str) -> bool:
    """Whether ``text`` names a file written by :func:`save_agent` rather than a registered agent."""
    return text.endswith(".npz")


def make_agent(text: str, problem: Problem, /, **params: Any) -> Agent:
    """Make a registered agent for a problem, or load a saved one.

    :param text: a name, perhaps with parameters, as in ``"roi(threshold=0.01)"``; or the path of a saved agent (``.npz``).
    :raises ValueError: for unknown names or parameters, or a file that is not a saved agent.
    """
    if is_saved(text):
        return load_agent(text, problem)
    name, inline = parse_agent(text)
    entry = find_agent(name)
    assert entry is not None, "parse_agent knows it"
    factory, settings = entry.load(), entry.settings
    given = checked(settings or factory, {**entry.params, **inline, **params}, f"agent {name!r}")
    agent = factory(problem, settings(**given)) if settings else factory(problem, **given)
    agent.name = name  # type: ignore[misc]
    return agent


def exams_view(batch: ExamBatch, problem: Problem) -> ExamsView:
    """The public part of drawn exams."""
    groups = batch.groups if problem.preview else np.full_like(batch.groups, HIDDEN)
    texts = batch.spec.source.texts
    shown = tuple(tuple(texts[i] for i in row) for row in batch.items) if texts and problem.preview else None
    return ExamsView(problem, groups, shown)
