"""Batched generation of texts and of what is forced from them: one text, cut at several lengths, each with an answer.

All rows of a batch go on together, whatever they do: rows that are read, that write, or that a forced text is put into.
Every few steps the batch is put together anew: finished rows leave, waiting ones come in, and where a text reached a
length at which an answer is to be forced, a copy of its row goes on from there, so that nothing is read twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache

from roi_env.answering.kv_cache import growing_cache

_STEPS = 8
"""Steps between two arrangements of the batch: each copies its cache."""
_PROMPTS = 16
"""Prompts read together."""

Noise = npt.NDArray[np.float64]
Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows, vocabulary) logits and (rows,) uniform numbers -> (rows,) tokens."""


class Branch(NamedTuple):
    """An answer that is forced where the text has ``after`` tokens and has not ended.

    :param answer: most tokens after the forced text.
    :param noise: (answer,) uniform numbers that its tokens are drawn by.
    """

    after: int
    answer: int
    noise: Noise


class Text(NamedTuple):
    """What to generate.

    :param prompt: token ids before it.
    :param branches: the text goes on to the last of them.
    :param noise: uniform numbers that its tokens are drawn by, one for each token to the last branch.
    """

    prompt: tuple[int, ...]
    branches: tuple[Branch, ...]
    noise: Noise

    @property
    def length(self) -> int:
        """Most tokens of the text."""
        return max(branch.after for branch in self.branches)


@dataclass
class Made:
    """What came of a text.

    :param ids: token ids, the end of the turn included.
    :param answers: of each branch: token ids after the forced text; None where the text had ended before.
    """

    ids: list[int]
    answers: list[list[int] | None]


@dataclass
class _Row:
    """A row of the batch.

    :param number: of the text.
    :param branch: that it is the answer of; None: the text itself.
    :param columns: of the cache that are its own: the last ones.
    :param made: token ids that it wrote.
    :param limit: most of them.
    :param forced: token ids that are still to be put in.
    """

    number: int
    branch: int | None
    columns: int
    made: list[int]
    limit: int
    noise: Noise
    forced: deque[int] = field(default_factory=deque)
    ended: bool = False


class _Source(NamedTuple):
    """Where a row of the next batch is copied from: a row of a cache, without so many of its last columns."""

    cache: Cache
    row: int
    without: int
    logits: torch.Tensor | None
    """(vocabulary,); None where a forced token comes next."""


@torch.inference_mode()
def generate(
    model: Any, texts: Sequence[Text], force: Sequence[int], stops: Sequence[int], choose: Choose, rows: int
) -> Iterator[list[tuple[int, Made]]]:
    """Generate all texts: those, by number, that were finished together, as they are finished.

    :param model: causal LM of Hugging Face.
    :param force: token ids that are put in where an answer is forced.
    :param stops: token ids that end a text or an answer.
    :param rows: in a batch at most, before answers branch off.
    """
    yield from _Batch(model, texts, force, stops, choose, rows).run()


class _Batch:
    def __init__(
        self, model: Any, texts: Sequence[Text], force: Sequence[int], stops: Sequence[int], choose: Choose, rows: int
    ) -> None:
        self.model, self.texts, self.force, self.stops, self.choose = model, texts, list(force), set(stops), choose
        self.most = rows
        self.done = [Made([], [None] * len(text.branches)) for text in texts]
        self.rows: list[_Row] = []
        self.cache = growing_cache()
        self.logits = torch.empty(0)
        # Texts of one prompt together, so that it is read once.
        prompts: dict[tuple[int, ...], list[int]] = {}
        for number, text in enumerate(texts):
            prompts.setdefault(text.prompt, []).append(number)
        self.waiting = deque(sorted(prompts.items(), key=lambda item: len(item[0])))

    def run(self) -> Iterator[list[tuple[int, Made]]]:
        branched: list[tuple[_Row, _Source]] = []
        while self.rows or branched or self.waiting:
            self._arrange(branched)
            branched = self._steps()
            going = {row.number for row in self.rows if not row.ended} | {row.number for row, _ in branched}
            if finished := {row.number for row in self.rows} - going:
                yield [(number, self.done[number]) for number in sorted(finished)]

    # -- the batch is put together anew -----------------------------------------------------------------------------

    def _arrange(self, branched: list[tuple[_Row, _Source]]) -> None:
        """Leave out what has ended; take in branches, and texts where there is room."""
        coming = [
            (row, _Source(self.cache, place, 0, self.logits[place]))
            for place, row in enumerate(self.rows)
            if not row.ended
        ]
        coming += branched
        while self.waiting and len(coming) < self.most:
            taken = [self.waiting.popleft()]
            size = len(taken[0][1])
            while self.waiting and len(taken) < _PROMPTS and len(coming) + size < self.most:
                taken.append(self.waiting.popleft())
                size += len(taken[-1][1])
            coming += self._read(taken)
        self.rows = [row for row, _ in coming]
        if coming:
            self._copy([source for _, source in coming])

    def _read(self, prompts: Sequence[tuple[tuple[int, ...], list[int]]]) -> list[tuple[_Row, _Source]]:
        """Read prompts (padded on the left); the rows of their texts."""
        width = max(len(prompt) for prompt, _ in prompts)
        ids, mask = torch.zeros((2, len(prompts), width), dtype=torch.long)
        for place, (prompt, _) in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        cache = growing_cache()
        logits = self._forward(ids, mask, cache)
        found = []
        for place, (prompt, numbers) in enumerate(prompts):
            for number in numbers:
                text = self.texts[number]
                source = _Source(cache, place, 0, logits[place])
                if text.length:
                    found.append((_Row(number, None, len(prompt), [], text.length, text.noise), source))
                found += [
                    (self._answer(number, branch, len(prompt)), source)
                    for branch, there in enumerate(text.branches)
                    if there.after == 0
                ]
        return found

    def _answer(self, number: int, branch: int, columns: int) -> _Row:
        there = self.texts[number].branches[branch]
        return _Row(number, branch, columns, [], there.answer, there.noise, deque(self.force))

    def _copy(self, sources: Sequence[_Source]) -> None:
        """A new cache of all rows, each in the last columns, with room for the steps to come."""
        width = max(row.columns for row in self.rows)
        cache = growing_cache()
        first = sources[0].cache.layers
        for index, layer in enumerate(first):
            heads, dims = layer.keys.shape[1], (layer.keys.shape[3], layer.values.shape[3])
            # Zeros, as what is masked is multiplied by nought all the same.
            keys, values = (layer.keys.new_zeros(len(sources), heads, width + _STEPS, dim) for dim in dims)
            for place, (row, source) in enumerate(zip(self.rows, sources, strict=True)):
                old = source.cache.layers[index]
                stop = old.keys.shape[2] - source.without
                own = slice(width - row.columns, width)
                keys[place, :, own] = old.keys[source.row, :, stop - row.columns : stop]
                values[place, :, own] = old.values[source.row, :, stop - row.columns : stop]
            cache.update(keys[:, :, :width], values[:, :, :width], index)
            cache.layers[index].buffers = (keys, values)  # type: ignore[attr-defined]
        empty = next((source.logits for source in sources if source.logits is not None), None)
        if empty is not None:
            self.logits = torch.stack([empty if source.logits is None else source.logits for source in sources])
        else:
            self.logits = torch.zeros(len(sources), 1, device=first[0].keys.device)
        self.cache = cache

    # -- steps ------------------------------------------------------------------------------------------------------

    def _steps(self) -> list[tuple[_Row, _Source]]:
        """Go on until the batch is to be put together anew; the answers that branched off."""
        branched: list[tuple[_Row, int, int]] = []  # row, place of its text, steps since
        width = self.cache.get_seq_length()
        columns = torch.tensor([row.columns for row in self.rows])
        mask = (torch.arange(width + _STEPS)[None] >= width - columns[:, None]).long()
        for step in range(_STEPS):
            token = self._next()
            now: list[tuple[_Row, int, int]] = []
            for place, row in enumerate(self.rows):
                if not row.ended:
                    now += [(answer, place, step) for answer in self._written(row, int(token[place]))]
            branched += now
            if all(row.ended for row in self.rows) and not now:
                break
            self.logits = self._forward(token[:, None], mask[:, : width + step + 1], self.cache)
            for row in self.rows:
                row.columns += 1
        end = self.cache.get_seq_length() - width
        return [(row, _Source(self.cache, place, end - 1 - step, None)) for row, place, step in branched]

    def _next(self) -> torch.Tensor:
        """(rows,) tokens that come next; those of rows that have ended are of no account."""
        drawing = [place for place, row in enumerate(self.rows) if not row.forced and not row.ended]
        token = torch.zeros(len(self.rows), dtype=torch.long)
        if drawing:
            noise = torch.tensor([self.rows[place].noise[len(self.rows[place].made)] for place in drawing])
            logits = self.logits if len(drawing) == len(self.rows) else self.logits[drawing]
            token[drawing] = self.choose(logits, noise)
        for place, row in enumerate(self.rows):
            if row.forced and not row.ended:
                token[place] = row.forced[0]
        return token

    def _written(self, row: _Row, token: int) -> list[_Row]:
        """Take the token that a row goes on with; the answers that branch off after it."""
        if row.forced:
            row.forced.popleft()
            return []
        row.made.append(token)
        made, text = self.done[row.number], self.texts[row.number]
        row.ended = token in self.stops or len(row.made) == row.limit
        if row.branch is not None:
            if row.ended:
                made.answers[row.branch] = row.made
            return []
        if row.ended:
            made.ids = row.made
        if token in self.stops:
            return []
        # The token itself is read in the step to come.
        return [
            self._answer(row.number, branch, row.columns + 1)
            for branch, there in enumerate(text.branches)
            if there.after == len(row.made)
        ]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
        """(rows, vocabulary) logits after the last columns of the mask, whose tokens are ``ids``; appends to the cache."""
        device = self.model.device
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits: torch.Tensor = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits
