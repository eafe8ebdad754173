"""Policy networks in plain PyTorch: what RLlib trains and what an agent keeps of it (acting needs no Ray)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agents.base import Problem


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Compute on so many threads, whatever the machine has: the bits of a sum depend on their number, and small networks lose
    by more than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _perceptron(inputs: int, hidden: Sequence[int], outputs: int, gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise((inputs, *hidden)):
        layers += [_layer(width, following, math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*layers, _layer((inputs, *hidden)[-1], outputs, gain))


class PolicyNetwork(nn.Module):
    """Action logits and, with a critic, the value of a decision.

    Actor and critic are separate tanh perceptrons, initialised orthogonally with gains sqrt(2), 0.01 (actor's output)
    and 1 (critic's), as in CleanRL's ``ppo.py``. With ``memory`` both also read the state of a GRU that has read the
    exam's observations so far (the current one included).

    :param size: length of the observation.
    :param actions: number of actions, skip included.
    :param hidden: widths of the hidden layers.
    :param critic: whether a value is learned.
    :param memory: units of the GRU; 0: none.
    :param seed: of the initial weights (the global generator is left alone).
    :param centre: (size,) subtracted from observations (default 0); :func:`observation_statistics` gives it.
    :param spread: (size,) that they are then divided by (default 1).
    """

    threads = 1
    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(
        self,
        size: int,
        actions: int,
        hidden: Sequence[int],
        *,
        critic: bool,
        memory: int = 0,
        seed: int = 0,
        centre: npt.NDArray[np.float32] | None = None,
        spread: npt.NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("centre", torch.zeros(size) if centre is None else torch.from_numpy(centre.copy()))
        self.register_buffer("spread", torch.ones(size) if spread is None else torch.from_numpy(spread.copy()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.encoder = nn.Sequential(_layer(size, hidden[0], math.sqrt(2)), nn.Tanh()) if memory else None
            self.cell = nn.GRUCell(hidden[0], memory) if memory else None
            self.actor = _perceptron(size + memory, hidden, actions, 0.01)
            self.critic = _perceptron(size + memory, hidden, 1, 1.0) if critic else None

    def start(self, size: int) -> torch.Tensor:
        """(size, memory) float32 state before an exam's first decision."""
        return torch.zeros(size, self.memory)

    def _heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.actor(features), None if self.critic is None else self.critic(features).squeeze(-1)

    def forward(
        self, observations: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """One decision of B exams.

        :param observations: (B, size) float32.
        :param state: (B, memory) float32.
        :returns: logits (B, actions), unmasked; values (B,) or None; state (B, memory).
        """
        observations = (observations - self.centre) / self.spread
        if self.cell is None or self.encoder is None:
            return *self._heads(observations), state
        state = self.cell(self.encoder(observations), state)
        return *self._heads(torch.cat([observations, state], 1)), state

    def whole(self, observations: torch.Tensor, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All decisions of whole exams.

        :param observations: (T, size) float32, exam by exam, each from its first decision on.
        :param sequence: (T,) int64 ascending: the exam of every decision.
        :returns: logits (T, actions), unmasked; values (T,) or None.
        """
        observations = (observations - self.centre) / self.spread
        if self.cell is None or self.encoder is None:
            return self._heads(observations)
        length = torch.bincount(sequence)
        first = length.cumsum(0) - length
        encoded = self.encoder(observations)
        states = torch.zeros(len(observations), self.memory)
        state = self.start(len(length))
        for position in range(int(length.max())):
            alive = torch.nonzero(length > position).squeeze(1)
            state = state.index_copy(0, alive, self.cell(encoded[first[alive] + position], state[alive]))
            states = states.index_copy(0, first[alive] + position, state[alive])
        return self._heads(torch.cat([observations, states], 1))


def observation_statistics(problem: Problem) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Centre and spread, (size,) float32 each, of every part of the observation over the population of tasks.

    From what is published, so that no pass over data is needed: features and beliefs by how often their group occurs,
    fractions that move through [0, 1] as if uniform.
    """
    tables = problem.observation_tables
    share = problem.group_probability.mean(0)

    def moments(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        # Groups without a tier have unbounded costs there: they say nothing about its spread.
        known = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
        mean = share @ known
        deviation = np.sqrt(share @ (known - mean) ** 2)
        return mean, np.where(deviation > 1e-6, deviation, 1.0)

    fractions = 5 if tables.shows_feedback else 2
    believed, features = moments(tables.beliefs[:-1]), moments(tables.features)  # without the end of an exam
    shown = tables.shown // max(1, tables.features.shape[1])
    centre, spread = (
        np.concatenate([np.full(fractions, uniform), by_group, np.tile(feature, shown)]).astype(np.float32)
        for uniform, by_group, feature in zip((0.5, 1 / math.sqrt(12)), believed, features, strict=True)
    )
    return centre, spread
