"""Policy networks in plain PyTorch: what RLlib trains and what an agent keeps of it (acting needs no Ray)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from agents.rllib.losses import sequence_sum


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: small networks lose by more, and the bits of a sum depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    """

    def __init__(
        self, size: int, actions: int, hidden: Sequence[int], *, critic: bool, memory: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.memory = memory
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
        if self.cell is None or self.encoder is None:
            return self._heads(observations)
        length = sequence_sum(torch.ones_like(sequence), sequence)
        first = length.cumsum(0) - length
        encoded = self.encoder(observations)
        states = torch.zeros(len(observations), self.memory)
        state = self.start(len(length))
        for position in range(int(length.max())):
            alive = torch.nonzero(length > position).squeeze(1)
            state = state.index_copy(0, alive, self.cell(encoded[first[alive] + position], state[alive]))
            states = states.index_copy(0, first[alive] + position, state[alive])
        return self._heads(torch.cat([observations, states], 1))
