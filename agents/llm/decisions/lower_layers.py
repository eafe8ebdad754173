"""Layers whose weights stay as they are: what they make of a question is computed once, in whatever states it is asked.

A question's keys and values are kept, and a state is read on them. Two uses: a whole model that is only asked, and the layers
below the first one that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from agents.llm.decisions.tag_logits import (
    Ids,
    Sequences,
    check_prompts,
    computing,
    hidden_states,
    pass_tokens,
    shared_start,
)
from roi_env.answering.models import below_head, kept, layers_of

KEPT_BYTES: Final = 2**31
"""Most memory of questions that are kept, and of states: when it is full, all are forgotten."""
_ENTRY_BYTES: Final = 500
"""About what an entry takes beside its numbers."""

_WATCHED: Final = 64
"""Prompts read between two calls of who watches."""

_Question = bytes
_Prompt = tuple[_Question, bytes]
"""Token ids (int64) of a question, with what all state lines begin with, and of the rest of a state line."""


class _Read(NamedTuple):
    """A question that was read: (L, hidden) what the last layer gave, and (L, heads, size) keys and values by layer."""

    hidden: torch.Tensor
    cache: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass
class Readings:
    """What one model's layers have read, by token ids; states: (S, hidden) what the last layer gave. Their sizes in bytes."""

    questions: dict[_Question, _Read] = field(default_factory=dict)
    states: dict[_Prompt, torch.Tensor] = field(default_factory=dict)
    questions_bytes: int = 0
    states_bytes: int = 0

    def add_question(self, question: _Question, read: _Read) -> None:
        """Keep it."""
        numbers = sum(one.nbytes for pair in read.cache for one in pair) + read.hidden.nbytes
        self.questions_bytes += numbers + len(question) + _ENTRY_BYTES
        self.questions[question] = read

    def add_state(self, prompt: _Prompt, hidden: torch.Tensor) -> None:
        """Keep it."""
        self.states_bytes += hidden.nbytes + sum(map(len, prompt)) + _ENTRY_BYTES
        self.states[prompt] = hidden

    def make_room(self) -> None:
        """Forget what is too much."""
        if self.states_bytes > KEPT_BYTES:
            self.states, self.states_bytes = {}, 0
        if self.questions_bytes > KEPT_BYTES:
            self.questions, self.questions_bytes = {}, 0


@lru_cache(maxsize=1)
def readings_of(model: str, written: tuple[int, ...], dtype: str, first: int) -> Readings:
    """Those that all policies of this process share which begin with the same files and train the same layers.

    :param written: when its files were.
    """
    return Readings()


class LowerLayers:
    """The layers below the first trained one, or all.

    Prompts that the model cannot read in parts (:class:`roi_env.answering.models.Kept`) are read whole; of a whole model, the answer is
    kept all the same.

    :param model: causal LM of Hugging Face.
    :param first: number of the first trained layer, at least 1; None: none is trained, and what is read is the last token of a
        prompt, after the final norm.
    :param shared: number of tokens that all state lines begin with (:attr:`agents.llm.decisions.tag_logits.PromptEncoder.shared`).
    :param readings: what was read before, of a model with the same weights below; default: nothing.
    :raises ValueError: where the model's layers are not one list of modules.
    """

    def __init__(self, model: Any, first: int | None, shared: int, readings: Readings | None = None) -> None:
        self._model, self.shared = model, shared
        self._below: list[nn.Module] = []
        self._next: nn.Module | None = None
        if first is not None:
            layers = layers_of(model)
            if layers is None:
                raise ValueError(f"{type(model).__name__} has no list of its layers: train all of them (layers=0)")
            self._below, self._next = list(layers[:first]), layers[first]
        self._kept = Readings() if readings is None else readings

    def reads(self, prompts: Ids) -> bool:
        """Whether (D, width) encoded prompts can be read in parts: what all states of a question share once."""
        return int((prompts >= 0).sum(1).max(initial=0)) <= kept(self._model).beside

    def read(self, prompts: Ids, question_width: int, watch: Callable[[int, int], None]) -> None:
        """Keep what the layers make of (D, width) encoded prompts.

        :param watch: is called with prompts read and their number.
        """
        if not self.reads(prompts):
            return
        asked = list(dict.fromkeys(self._asked(prompts, question_width)))
        for done in range(0, len(asked), _WATCHED):
            self._read(asked[done : done + _WATCHED])
            watch(min(done + _WATCHED, len(asked)), len(asked))

    def of(self, model: Any) -> LowerLayers:
        """The same layers of another model that has the same weights in them: what was read is shared."""
        return LowerLayers(model, len(self._below) if self._next else None, self.shared, self._kept)

    def last_hidden(self, prompts: Ids, question_width: int) -> torch.Tensor:
        """(D, hidden) what the layers give of the last token; of a whole model as
        :func:`agents.llm.decisions.tag_logits.last_hidden`."""
        asked = self._asked(prompts, question_width)
        if self.reads(prompts):
            self._read(asked)
        else:
            asked = [(b"", question + state) for question, state in asked]
            self._read_whole(asked)
        return torch.stack([self._kept.states[prompt][-1] for prompt in asked])

    def _asked(self, prompts: Ids, question_width: int) -> list[_Prompt]:
        check_prompts(self._model, prompts)
        moved, width = shared_start(prompts, question_width, self.shared)
        return [(_key(row[:width]), _key(row[width:])) for row in moved]

    def hidden_states(self, sequences: Sequences) -> torch.Tensor:
        """As :func:`agents.llm.decisions.tag_logits.hidden_states`: the trained layers, on what those below gave."""
        places = list(_places(sequences))
        ids = sequences.ids.numpy()
        asked = [(ids[row, known].tobytes(), ids[row, own].tobytes()) for row, known, own in places]
        self._read(asked)
        below = self._kept.states[asked[0]].new_zeros(*ids.shape, self._kept.states[asked[0]].shape[1])
        for (row, known, own), prompt in zip(places, asked, strict=True):
            below[row, known] = self._kept.questions[prompt[0]].hidden
            below[row, own] = self._kept.states[prompt]
        # Every lower layer gives what the last of them gave.
        with computing(self._below, lambda *given, **named: below):
            return hidden_states(self._model, sequences)

    def _read(self, asked: Sequence[_Prompt]) -> None:
        """See that all prompts are among the readings."""
        kept, asked = self._kept, list(dict.fromkeys(asked))

        def missing() -> list[_Prompt]:
            """A whole model needs questions for new states alone."""
            return [one for one in asked if one not in kept.states or (self._next and one[0] not in kept.questions)]

        if not missing():
            return
        kept.make_room()
        new = missing()
        # Tensors made in inference mode could not be learned from later.
        with torch.inference_mode(False), torch.no_grad():
            questions = {question for question, _ in new if question not in kept.questions}
            for part, ids in self._batches(sorted(questions), lambda question: question):
                self._read_questions(part, ids)
            for some, ids in self._batches([one for one in new if one not in kept.states], lambda one: one[1]):
                self._read_states(some, ids)

    def _read_whole(self, asked: Sequence[_Prompt]) -> None:
        """See that what the layers give of all prompts' last tokens is among the readings: prompts without a question."""
        self._kept.make_room()
        new = [prompt for prompt in dict.fromkeys(asked) if prompt not in self._kept.states]
        with torch.inference_mode(False), torch.no_grad():
            for some, ids in self._batches(new, lambda prompt: prompt[1]):
                length = torch.tensor([len(whole) for _, whole in some]) // np.dtype(np.int64).itemsize
                shown = torch.arange(ids.shape[1]) < length[:, None]
                hidden = self._layers(ids, {"attention_mask": shown.long().to(self._model.device), "use_cache": False})
                for row, prompt in enumerate(some):
                    self._kept.add_state(prompt, hidden[row, length[row] - 1][None].clone())

    def _batches(self, items: list[Any], tokens: Callable[[Any], bytes]) -> Iterator[tuple[list[Any], torch.Tensor]]:
        """Items of similar length, with (B, longest) ids of their tokens, padded on the right."""
        items = sorted(items, key=lambda one: -len(tokens(one)))
        while items:
            longest = len(tokens(items[0])) // np.dtype(np.int64).itemsize
            size = max(1, pass_tokens(self._model) // max(longest, 1))
            part, items = items[:size], items[size:]
            yield part, pad_sequence([torch.tensor(np.frombuffer(tokens(one), np.int64)) for one in part], True)

    def _read_questions(self, questions: list[_Question], ids: torch.Tensor) -> None:
        length = ids.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), -1, -1)
        cache = _cache()
        hidden = self._layers(ids, self._told(torch.arange(length).expand_as(ids), seen, cache))
        for row, question in enumerate(questions):
            own = slice(len(question) // np.dtype(np.int64).itemsize)
            pairs = ((layer.keys, layer.values) for layer in cache.layers)
            kept = tuple(tuple(one[row, :, own].transpose(0, 1).clone() for one in pair) for pair in pairs)
            self._kept.add_question(question, _Read(hidden[row, own].clone(), kept))  # type: ignore[arg-type]

    def _read_states(self, prompts: list[_Prompt], ids: torch.Tensor) -> None:
        read = [self._kept.questions[question] for question, _ in prompts]
        known = torch.tensor([len(one.hidden) for one in read])[:, None]
        cache = _cache()
        for number, pairs in enumerate(zip(*(one.cache for one in read), strict=True)):
            cache.update(*(pad_sequence(list(one), True).transpose(1, 2) for one in zip(*pairs, strict=True)), number)
        length, widest = ids.shape[1], int(known.max())
        before = (torch.arange(widest) < known)[:, None].expand(-1, length, -1)
        own = torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), -1, -1)
        hidden = self._layers(ids, self._told(known + torch.arange(length), torch.cat([before, own], 2), cache))
        for row, prompt in enumerate(prompts):
            stop = len(prompt[1]) // np.dtype(np.int64).itemsize
            start = stop - 1 if self._next is None else 0  # of a whole model the last token alone is asked for
            self._kept.add_state(prompt, hidden[row, start:stop].clone())

    def _told(self, positions: torch.Tensor, seen: torch.Tensor, cache: Any) -> dict[str, Any]:
        """How a model reads on in a cache; ``seen`` (B, L, before and L): what each token looks at."""
        model = self._model
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
        mask.masked_fill_(~seen.to(model.device), torch.finfo(model.dtype).min)
        return {
            "position_ids": positions.to(model.device),
            "attention_mask": mask[:, None],
            "cache": cache,
            "use_cache": True,
        }

    def _layers(self, ids: torch.Tensor, told: dict[str, Any]) -> torch.Tensor:
        """(B, L, hidden) what the layers give of (B, L) ids."""
        model, reached = self._model, []

        def stop(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            reached.append(given[0] if given else named["hidden_states"])
            raise _Reached

        def check(module: nn.Module, given: Any, made: Any) -> None:
            if not isinstance(made, torch.Tensor):
                raise ValueError(
                    f"layers of a {type(model).__name__} give more than hidden states: train all of them (layers=0)"
                )

        hooks: list[Any] = []
        if self._next is not None:
            hooks = [self._next.register_forward_pre_hook(stop, with_kwargs=True)]
            if "cache" in told:  # what is kept will stand for what they give
                hooks += [layer.register_forward_hook(check) for layer in self._below]
        try:
            return below_head(model)(input_ids=ids.to(model.device), **told).last_hidden_state  # type: ignore[no-any-return]
        except _Reached:
            return reached[0]  # type: ignore[no-any-return]
        finally:
            for hook in hooks:
                hook.remove()


class _Reached(Exception):
    """The first trained layer was reached."""


def _cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _key(ids: npt.NDArray[np.int32]) -> bytes:
    return ids[ids >= 0].astype(np.int64).tobytes()


def _places(sequences: Sequences) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Of every prompt: its sequence, and the places of its question's and of its state's tokens there."""
    part, states = sequences.part.numpy(), dict[int, int]()
    for row in sequences.row.tolist():
        states[row] = states.get(row, 0) + 1
        yield row, np.flatnonzero(part[row] == 0), np.flatnonzero(part[row] == states[row])
