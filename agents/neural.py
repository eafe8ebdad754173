"""Policy networks behind the agents' interface: what SB3's and RLlib's agents share.

PyTorch's kernels depend on the shape of a batch in their last bits. A network is therefore always asked in padded chunks
of one size, so that its probabilities do not depend on who else is in the batch (identical on one kind of CPU).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from agents.base import Agent, DecisionView, Practice, Problem, Probs, State, exams_of, one_hot, public_problem
from roi_env.exams.config import ExamSpec

CHUNK: Final = 1024
"""Rows of every forward pass."""


class CheckpointError(ValueError):
    """A checkpoint of another run, or a file that is none."""


def kind_of(spec: ExamSpec) -> dict[str, Any]:
    """What a checkpoint keeps of the kind of its training exams, as JSON values."""
    return {**asdict(exams_of(public_problem(spec))), "order": spec.order, "reward": str(spec.reward)}


def check_header(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run.

    :raises CheckpointError: naming what differs.
    """
    found = {
        name: wanted[name] for name in ("kind", "weights") if name in wanted
    } | found  # checkpoints of before do not say it
    if found != wanted:
        differing = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        raise CheckpointError(
            f"{path}: a checkpoint of another run ({', '.join(differing)} differ): train with the same settings, or "
            "delete it to begin anew"
        )


@dataclass(frozen=True)
class Progress:
    """How far a training run is.

    :param steps: environment steps (decisions) taken so far.
    :param total_steps: environment steps of the whole run.
    :param updates: gradient updates (optimiser steps) so far.
    :param cpu_seconds: CPU time of training so far, runners and learners included, reports excluded.
    :param score: mean score of the training exams finished since the last report (nan: none).
    """

    steps: int
    total_steps: int
    updates: int
    cpu_seconds: float
    score: float


Report: TypeAlias = Callable[[Progress], None]
"""Called during training between updates: the agent under training may be evaluated or saved inside, not changed."""


def in_chunks(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    observations: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Apply ``forward`` to D rows in padded chunks of :data:`CHUNK`, without gradients.

    :param forward: (CHUNK, size) float32 and (CHUNK, K + 1) bool to (CHUNK, K + 1).
    :param observations: (D, size) float32.
    :param mask: (D, K + 1) bool legal actions.
    :returns: (D, K + 1) float64.
    """
    size, actions = mask.shape
    out = np.empty((size, actions))
    rows = torch.zeros(CHUNK, observations.shape[1])
    legal = torch.ones(CHUNK, actions, dtype=torch.bool)
    with torch.no_grad():
        for first in range(0, size, CHUNK):
            count = min(CHUNK, size - first)
            rows[:count] = torch.from_numpy(observations[first : first + count])
            legal[:count] = torch.from_numpy(mask[first : first + count])
            out[first : first + count] = forward(rows, legal)[:count].double().numpy()
    return out


class NeuralAgent(Agent):
    """An agent whose action preferences come from a network that sees the flat observation alone.

    :param settings: a dataclass of all parameters; None: the class's defaults. Where it has a field ``greedy``, that says
        whether to play the most probable legal action (ties: the first) or the distribution itself; without it: the former.
    """

    stepwise: ClassVar[bool] = True
    distributed: ClassVar[bool] = False
    """Whether ``train`` also takes ``runners``, ``learners`` and ``address``: where to train, not what."""
    search_space: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Values that `roi tune` draws from, by parameter."""
    training_only: ClassVar[tuple[str, ...]] = ()
    """First parts of the names of weights that acting does not need (a critic's): they are not saved."""

    def __init__(self, problem: Problem, settings: Any = None) -> None:
        super().__init__(problem)
        if settings is not None:
            self.settings = settings
        self.greedy: bool = getattr(self.settings, "greedy", True)

    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The network, trained or not; what acting needs of its ``state_dict`` is saved."""

    @abstractmethod
    def preferences(self, observations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Action probabilities (or values, for agents that are greedy by nature).

        :param observations: (B, size) float32.
        :param mask: (B, K + 1) bool legal actions.
        :returns: (B, K + 1); the largest legal entry is the greedy action. Rows of probabilities sum to one over the
            legal actions.
        """

    @abstractmethod
    def train(
        self, practice: Practice, seed: int, report: Report | None = None, checkpoint: str | Path | None = None
    ) -> None:
        """Train on ``practice.spec`` (exams of ``practice.seed``).

        :param seed: of initial weights, exploration and minibatches.
        :param report: called between updates.
        :param checkpoint: where to save with every report, and to continue from where it exists.
        """

    def check(self, practice: Practice, seed: int, **where: Any) -> None:
        """Refuse, before anything is done, settings that :meth:`train` could not begin with.

        :param where: further arguments of :meth:`train`.
        :raises ValueError: saying what does not fit.
        """

    def export(self, folder: Path) -> None:
        """Write into a run folder what others than us can read of what was trained."""

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        """Ask the network."""
        mask = view.mask
        preferences = np.where(mask, in_chunks(self.preferences, view.observations, mask), -np.inf)
        if self.greedy:
            return one_hot(preferences.argmax(1), mask.shape[1]), state
        probs = np.where(mask, preferences, 0.0)
        return probs / probs.sum(1, keepdims=True), state

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """The weights that acting needs, by name."""
        state = self.network().state_dict()
        return {k: v.detach().cpu().numpy() for k, v in state.items() if not k.startswith(self.training_only)}

    def restore(self, learned: dict[str, npt.NDArray[Any]]) -> None:
        """Load the network's weights; those that only training needs stay as they are where they are not given.

        :raises ValueError: where names or shapes do not fit the network (another problem, another architecture).
        """
        network = self.network()
        kept = {k: v for k, v in network.state_dict().items() if k.startswith(self.training_only)}
        given = {name: torch.from_numpy(value.copy()) for name, value in learned.items()}
        try:
            network.load_state_dict(kept | given)
        except RuntimeError as error:
            raise ValueError(f"saved weights of agent {self.name!r} do not fit this problem: {error}") from error
