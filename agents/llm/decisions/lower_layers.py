"""The layers below the first trained one: what they make of a prompt never changes, so it is computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.llm.decisions.tag_logits import Ids, Sequences, hidden_states, packed, pass_tokens, shared_start


class LowerLayers:
    """Hidden states of prompts where the first trained layer reads them.

    They are kept by prompt, whatever other prompts stood beside it: length x hidden numbers for every prompt ever read.

    :param model: causal LM of Hugging Face; nothing below layer ``first`` is ever trained.
    :param first: number of the first trained layer, at least 1.
    :raises ValueError: where the model's layers are not one list of modules.
    """

    def __init__(self, model: Any, first: int) -> None:
        count = int(model.config.get_text_config().num_hidden_layers)
        lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count]
        if not lists:
            raise ValueError(f"{type(model).__name__} has no list of its {count} layers: train all of them (layers=0)")
        self._model, self._below, self._above = model, list(lists[0][:first]), list(lists[0][first:])
        self._kept: dict[bytes, torch.Tensor] = {}

    def read(self, prompts: Ids, question_width: int, watch: Callable[[int, int], None]) -> None:
        """Keep the states of (D, width) encoded prompts: lower layers alone are run, and a question once for all its states.

        :param watch: is called with prompts read and their number.
        """
        distinct, done = np.unique(prompts, axis=0), 0
        for sequences in packed(*shared_start(distinct, question_width), pass_tokens(self._model)):
            with torch.no_grad(), _giving(self._above, lambda hidden, *given, **named: hidden):
                self.hidden_states(sequences)
            done += len(sequences.prompt)
            watch(done, len(distinct))

    def hidden_states(self, sequences: Sequences) -> torch.Tensor:
        """As :func:`agents.llm.decisions.tag_logits.hidden_states`; lower layers are run where a prompt is new."""
        places = list(_places(sequences))
        keys = [sequences.ids[row, place].numpy().tobytes() for row, place in places]
        if all(key in self._kept for key in keys):
            known = self._kept[keys[0]]
            below = known.new_zeros(*sequences.ids.shape, known.shape[1])
            for key, (row, place) in zip(keys, places, strict=True):
                below[row, place.to(below.device)] = self._kept[key]
            with _giving(self._below, lambda *given, **named: below):
                return hidden_states(self._model, sequences)
        made: list[torch.Tensor] = []
        handle = self._below[-1].register_forward_hook(lambda module, given, out: made.append(out.detach()))
        try:
            states = hidden_states(self._model, sequences)
        finally:
            handle.remove()
        for key, (row, place) in zip(keys, places, strict=True):
            self._kept.setdefault(key, made[0][row, place.to(made[0].device)])
        return states


@contextmanager
def _giving(layers: Sequence[nn.Module], what: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, layers give something else."""
    for layer in layers:
        layer.forward = what  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _places(sequences: Sequences) -> Iterator[tuple[int, torch.Tensor]]:
    """Of every prompt: its sequence, and the places of its tokens there, question and state."""
    state: dict[int, int] = {}
    for row in sequences.row.tolist():
        state[row] = state.get(row, 0) + 1
        part = sequences.part[row]
        yield row, ((part == 0) | (part == state[row])).nonzero()[:, 0]
