"""Decision prompts as token ids, and a causal LM's logits over the level tags, or over the digits of tags that are text.

An encoded prompt is a row of two parts, padded with :data:`PADDING`: the question, and the *state line* (tokens left, tasks
left) with the end of the turn. All states of a question are read in one sequence: the question and what all states begin with once, the
states after it, each seeing that and itself alone. That is where the time goes otherwise: most of a prompt is its question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

from agents.base import AgentError
from agents.llm.prompts import LEVEL_OPENING, LEVEL_TAGS, NUM_LEVELS, THINK, levels_explained, state_line
from roi_env.answering.dialect import beginning, chat_text, ids_after
from roi_env.answering.models import below_head, check_read, kept, layers_of
from roi_env.answering.tokenizer import ModelError

PADDING: Final = -1
"""Token id where a part of an encoded prompt has ended."""
STATES_TOGETHER: Final = 8
"""Most states of a question in one sequence: attention grows with their square."""
CHUNK_TOKENS: Final = 2048
"""Most tokens of one forward pass on a CPU, padding included (a longer sequence goes alone): activations stay in its cache."""
CHUNK_NUMBERS: Final = 2**22
"""Most numbers of one layer's hidden states in a forward pass on a GPU, where larger passes pay."""

Ids = npt.NDArray[np.int32]

_QUESTION = "0QUESTION0"


def bucketed(remaining: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """Tokens left as prompts name them: rounded down to ``bits`` binary digits (0: not at all).

    With 4 bits: exact below 16, in steps of 2 below 32, of 4 below 64, and so on. Fewer prompts differ then.
    """
    if bits == 0:
        return remaining
    length = np.frexp(remaining.astype(np.float64))[1]  # number of binary digits
    shift = np.maximum(length - bits, 0)
    return (remaining >> shift) << shift


def taught_tags(tokenizer: Any) -> bool:
    """Whether the level tags are tokens of the vocabulary; else they are text, and a level is read at its digit."""
    encoded = tokenizer(list(LEVEL_TAGS), add_special_tokens=False).input_ids
    # A tokenizer may also have one token for everything that it does not know.
    return all(
        len(ids) == 1 and tokenizer.decode(ids).strip() == tag for ids, tag in zip(encoded, LEVEL_TAGS, strict=True)
    )


def check_levels(num_actions: int) -> None:
    """Check that there are as many levels as actions.

    :raises AgentError: where there are not.
    """
    if num_actions > len(LEVEL_TAGS):
        raise AgentError(
            f"a language model announces {len(LEVEL_TAGS) - 1} levels and the refusal, and these exams have {num_actions - 1} tiers: choose "
            f"{len(LEVEL_TAGS) - 1} of them (--tier NAME, or tiers=[...])"
        )


def action_tags(tokenizer: Any, num_actions: int) -> list[int]:
    """Token ids that announce actions 0 (skip) .. K: of Level-K, Level-0, .. Level-(K-1).

    They are the tags where the model was taught them, else the digits that follow what every tag begins with.

    :raises ValueError: where there are more levels than tags, or tags are neither tokens nor text whose digit is a token.
    """
    check_levels(num_actions)
    levels = [num_actions - 1, *range(num_actions - 1)]
    if taught_tags(tokenizer):
        return [int(ids[0]) for ids in tokenizer([LEVEL_TAGS[i] for i in levels], add_special_tokens=False).input_ids]
    begin, *begun = tokenizer(
        [LEVEL_OPENING, *(f"{LEVEL_OPENING}{level}" for level in levels)], add_special_tokens=False
    ).input_ids
    if any(ids[:-1] != begin or tokenizer.decode(ids[-1:]) != str(i) for ids, i in zip(begun, levels, strict=True)):
        raise ValueError(
            f"this model's vocabulary has no single token for {LEVEL_TAGS[levels[0]]!r} and the other level tags, and no token "
            f"of its own for a digit after {LEVEL_OPENING!r}: fine-tune it with `roi mcft`, which adds tags"
        )
    return [int(ids[-1]) for ids in begun]


class PromptEncoder:
    """Token ids of decision prompts: the chat template's user turn with
    :func:`agents.llm.prompts.state_line`, then the assistant's turn with no think block opened.

    A model that was not taught the level tags is told of them, and its turn begins with the text of a tag up to its digit.

    :param tokenizer: of Hugging Face; without a chat template the prompt is bare text.
    :param bits: see :func:`bucketed`.
    :param levels: that an untaught model is told of, the refusal included.
    """

    def __init__(self, tokenizer: Any, bits: int = 0, levels: int = NUM_LEVELS) -> None:
        if bits < 0:
            raise ValueError(f"bits must be at least 0, got {bits}")
        self.bits = bits
        self._tokenizer = tokenizer
        template = f"{_QUESTION}\n"
        if tokenizer.chat_template:
            template = chat_text(tokenizer, [{"role": "user", "content": _QUESTION}])
        if _QUESTION not in template:
            raise ValueError(f"this model's chat template does not write what the user says: {template!r}")
        self._begin = beginning(tokenizer)
        self._head, _, tail = template.partition(_QUESTION)
        self._tail = tail.rstrip().removesuffix(THINK) if tail.rstrip().endswith(THINK) else tail
        self._told = ""
        if not taught_tags(tokenizer):
            self._told, self._tail = levels_explained(levels), self._tail + LEVEL_OPENING
        self._questions: dict[str, list[int]] = {}
        self._states: dict[tuple[int, int], list[int]] = {}

    def questions(self, texts: Sequence[str]) -> Ids:
        """(Q, width) questions, as wide as the longest."""
        new = [text for text in dict.fromkeys(texts) if text not in self._questions]
        if new:
            encoded = self._tokenizer([self._head + text for text in new], add_special_tokens=False).input_ids
            self._questions.update((text, self._begin + ids) for text, ids in zip(new, encoded, strict=True))
        return _padded([self._questions[text] for text in texts])

    def states(self, remaining: npt.NDArray[np.int64], tasks_left: npt.NDArray[np.int64]) -> Ids:
        """(D, width) state lines of (D,) tokens and tasks left, as wide as the longest."""
        pairs, inverse = np.unique(
            np.stack([bucketed(remaining, self.bits), tasks_left], 1), axis=0, return_inverse=True
        )
        named = [(int(left), int(tasks)) for left, tasks in pairs]
        new = [pair for pair in named if pair not in self._states]
        self._states |= {pair: ids_after(self._tokenizer, self._told + state_line(*pair) + self._tail) for pair in new}
        return _padded([self._states[pair] for pair in named])[inverse.ravel()]

    def prompts(self, texts: Sequence[str], remaining: npt.ArrayLike, tasks_left: npt.ArrayLike) -> tuple[Ids, int]:
        """(D, width) encoded prompts of D questions, and the width of the questions.

        :param remaining: tokens left, one number or one a question; ``tasks_left`` likewise.
        """
        questions = self.questions(texts)
        states = self.states(*(np.broadcast_to(one, len(texts)) for one in (remaining, tasks_left)))
        return joined(questions, states, (questions.shape[1], states.shape[1])), questions.shape[1]

    @property
    def shared(self) -> int:
        """Number of tokens that all state lines begin with: up to the number of tokens left."""
        left = 2 ** np.arange(10)  # rounded down to any number of binary digits they stay what they are
        return _shared(self.states(left, np.ones_like(left)))

    def state_width(self, budget: int, num_tasks: int) -> int:
        """Width of the longest state line of exams with this budget."""
        remaining, tasks_left = np.meshgrid(
            np.unique(bucketed(np.arange(budget + 1), self.bits)), np.arange(1, num_tasks + 1), indexing="ij"
        )
        return self.states(remaining.ravel(), tasks_left.ravel()).shape[1]


def _padded(rows: list[list[int]]) -> Ids:
    width = max((len(row) for row in rows), default=0)
    return np.array([row + [PADDING] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


def joined(questions: Ids, states: Ids, widths: tuple[int, int]) -> Ids:
    """(D, sum of ``widths``) encoded prompts of (D, .) questions and (D, .) state lines."""
    out = np.full((len(questions), sum(widths)), PADDING, np.int32)
    out[:, : questions.shape[1]] = questions
    out[:, widths[0] : widths[0] + states.shape[1]] = states
    return out


class Sequences(NamedTuple):
    """R packed sequences of one forward pass, right padding, length L.

    :param ids: (R, L) int64.
    :param positions: (R, L) int64: every state goes on where the question ended.
    :param part: (R, L) int64: 0 the question, 1, 2, .. the states; -1 padding.
    :param prompt: (P,) rows of the encoded prompts answered here.
    :param row: (P,) their sequences.
    :param last: (P,) places of their last tokens.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    part: torch.Tensor
    prompt: torch.Tensor
    row: torch.Tensor
    last: torch.Tensor

    def mask(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(R, 1, L, L) added to attention scores: a token sees its own part and the question, up to itself."""
        part, length = self.part.to(device), self.ids.shape[1]
        same = part[:, :, None] == part[:, None, :]
        earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        seen = (same | (part[:, None, :] == 0)) & earlier
        mask = torch.zeros(len(part), length, length, dtype=dtype, device=device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def pass_tokens(model: Any) -> int:
    """Most tokens of one forward pass of a causal LM of Hugging Face where it is now."""
    if model.device.type == "cpu":
        return CHUNK_TOKENS
    return max(CHUNK_TOKENS, CHUNK_NUMBERS // int(model.config.get_text_config().hidden_size))


def check_prompts(model: Any, prompts: Ids) -> None:
    """Refuse (P, width) encoded prompts, or exams, that are too long for a model, or of another vocabulary.

    :raises AgentError: for the longest of them, or the largest token id.
    """
    with agents_model(model):
        check_read(model, int((prompts >= 0).sum(1).max()), int(prompts.max()), "a prompt")


@contextmanager
def agents_model(model: Any) -> Iterator[None]:
    """Inside, what is wrong with a model is an agent's error, which names it.

    :raises AgentError: for a :class:`roi_env.answering.tokenizer.ModelError`.
    """
    try:
        yield
    except ModelError as error:
        raise AgentError(f"model {model.name_or_path!r}: {error}") from error


def packed(model: Any, prompts: Ids, question_width: int) -> Iterator[Sequences]:
    """Pack *distinct* encoded prompts (P, width), sorted so that those of one question follow one another. Where the model cannot
    read them so (:class:`roi_env.answering.models.Kept`), every prompt is a sequence.

    :param model: causal LM of Hugging Face, for passes of :func:`pass_tokens`; a longer sequence goes alone.
    :raises AgentError: see :func:`check_prompts`.
    """
    most_tokens = pass_tokens(model)
    length = (prompts >= 0).sum(1)
    check_prompts(model, prompts)
    together = STATES_TOGETHER if length.max() <= kept(model).beside else 1
    question_length = (prompts[:, :question_width] >= 0).sum(1)
    state_length = length - question_length
    changed = np.ones(len(prompts), bool)
    changed[1:] = (prompts[1:, :question_width] != prompts[:-1, :question_width]).any(1)
    first = np.flatnonzero(changed)
    size = np.diff(np.append(first, len(prompts)))
    # Sequences: a question and some of its states.
    begin = np.concatenate([np.arange(f, f + s, together) for f, s in zip(first, size, strict=True)])
    end = np.append(begin[1:], len(prompts))
    total = np.concatenate([[0], state_length.cumsum()])
    width = question_length[begin] + total[end] - total[begin]
    chunk: list[int] = []
    for sequence in np.argsort(width, kind="stable"):
        if chunk and (len(chunk) + 1) * width[sequence] > most_tokens:
            yield _sequences(prompts, question_width, question_length, state_length, begin[chunk], end[chunk])
            chunk = []
        chunk.append(int(sequence))
    if chunk:
        yield _sequences(prompts, question_width, question_length, state_length, begin[chunk], end[chunk])


def _sequences(
    prompts: Ids,
    question_width: int,
    question_length: npt.NDArray[np.int64],
    state_length: npt.NDArray[np.int64],
    begin: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
) -> Sequences:
    count = end - begin
    prompt = np.repeat(begin, count) + np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    row = np.repeat(np.arange(len(begin)), count)
    through = state_length[prompt].cumsum()
    before = np.concatenate([[0], through])[np.concatenate([[0], count.cumsum()[:-1]])]
    last = question_length[prompt] + through - before[row] - 1
    length = int(last.max()) + 1
    ids = np.zeros((len(begin), length), np.int64)
    positions = np.zeros_like(ids)
    part = np.full_like(ids, -1)
    for place, start in enumerate(begin):
        known = question_length[start]
        ids[place, :known] = prompts[start, :known]
        positions[place, :known] = np.arange(known)
        part[place, :known] = 0
    for sequence, at, p in zip(row, last, prompt, strict=True):
        own = slice(at + 1 - state_length[p], at + 1)
        ids[sequence, own] = prompts[p, question_width : question_width + state_length[p]]
        positions[sequence, own] = question_length[p] + np.arange(state_length[p])
        part[sequence, own] = p - begin[sequence] + 1
    return Sequences(*map(torch.from_numpy, (ids, positions, part, prompt, row, last)))


def shared_start(prompts: Ids, question_width: int, most: int | None = None) -> tuple[Ids, int]:
    """The same prompts with what all state lines begin with moved to the questions, so that it is read once a sequence; their
    new width.

    :param most: tokens to move at most.
    """
    states = prompts[:, question_width:]
    common = min(_shared(states), int((states >= 0).sum(1).min()) - 1)
    common = common if most is None else min(common, most)
    place = (prompts[:, :question_width] >= 0).sum(1)[:, None] + np.arange(common)
    moved = prompts.copy()
    moved[:, question_width : question_width + common] = PADDING
    moved[np.arange(len(prompts))[:, None], place] = states[0, :common]
    return moved, question_width + common


def _shared(rows: Ids) -> int:
    """Number of first columns in which all rows agree."""
    same = (rows == rows[0]).all(0)
    return len(same) if same.all() else int(same.argmin())


def hidden_states(model: Any, sequences: Sequences) -> torch.Tensor:
    """(R, L, hidden) hidden states of packed sequences, after the model's final norm."""
    device, ids = model.device, sequences.ids.to(model.device)
    if int(sequences.positions.max()) < kept(model).beside:
        told = {"position_ids": sequences.positions.to(device), "attention_mask": sequences.mask(model.dtype, device)}
    else:  # a prompt a row
        told = {"attention_mask": (sequences.part >= 0).long().to(device)}
    return below_head(model)(input_ids=ids, **told, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def last_hidden(
    model: Any,
    prompts: Ids,
    question_width: int,
    *,
    recompute: bool = False,
    states: Callable[[Sequences], torch.Tensor] | None = None,
    shared: int | None = None,
) -> torch.Tensor:
    """(D, hidden) hidden state of the last token of every encoded prompt, after the model's final norm.

    Equal prompts are read once, and so is every question. Rows do not depend on the others but for the last bits.

    :param model: causal LM of Hugging Face.
    :param prompts: (D, width) encoded prompts.
    :param recompute: compute every forward pass anew when gradients flow back: memory of one pass instead of all.
    :param states: another way to :func:`hidden_states`.
    :param shared: see :func:`shared_start`.
    """
    distinct, inverse = np.unique(prompts, axis=0, return_inverse=True)
    parts: list[torch.Tensor] = []
    order: list[torch.Tensor] = []

    def forward(sequences: Sequences) -> torch.Tensor:
        with _feeding_forward_at_last(model, sequences):
            found = hidden_states(model, sequences) if states is None else states(sequences)
        return found[sequences.row, sequences.last]

    for sequences in packed(model, *shared_start(distinct, question_width, shared)):
        recomputed = recompute and torch.is_grad_enabled()
        parts.append(checkpoint(forward, sequences, use_reentrant=False) if recomputed else forward(sequences))
        order.append(sequences.prompt)
    place = torch.cat(order).argsort()[torch.from_numpy(inverse.ravel())]
    return torch.cat(parts)[place.to(parts[0].device)]


@contextmanager
def _feeding_forward_at_last(model: Any, sequences: Sequences) -> Iterator[None]:
    """Inside, the feed-forward part of the last layer, most of its work, is computed for the tokens alone whose states are asked
    for: other tokens do not see what it makes of one."""
    layers = layers_of(model)
    part = getattr(layers[-1], "mlp", None) if layers else None
    if part is None:
        yield
        return
    whole, row, last = part.forward, sequences.row.to(model.device), sequences.last.to(model.device)

    def at_last(states: torch.Tensor, *given: Any, **named: Any) -> Any:
        if given or named or states.dim() != 3:
            return whole(states, *given, **named)
        made = whole(states[row, last][None])
        if not isinstance(made, torch.Tensor):  # experts that tell how they were chosen
            return whole(states)
        return states.new_zeros(states.shape).index_put((row, last), made[0])

    with computing([part], at_last):
        yield


@contextmanager
def computing(modules: Iterable[Any], forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, modules compute something else than their own forward pass."""
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward


class _Shape(NamedTuple):
    """What a model makes of its head's logits: ``cap * tanh(scale * x / cap)``, without a cap ``scale * x``."""

    scale: float
    cap: float

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits if self.scale == 1 else self.scale * logits
        return logits if self.cap == inf else self.cap * torch.tanh(logits / self.cap)


_shapes: WeakKeyDictionary[Any, _Shape] = WeakKeyDictionary()


def shape_of(model: Any) -> _Shape:
    """What a model makes of its head's logits, found out by what becomes of known numbers in their place: some scale logits (Cohere, Granite), some cap them (Gemma 2).

    :raises AgentError: for a model that does something else.
    """
    if model not in _shapes:
        head, network = model.get_output_embeddings(), below_head(model)
        known = torch.linspace(-40, 40, head.weight.shape[0], device=model.device)
        known[:2] = torch.tensor([1e9, 1e-2])
        seen: dict[str, torch.Tensor] = {}

        def replaced(module: Any, given: tuple[torch.Tensor], made: torch.Tensor) -> torch.Tensor:
            seen["head"] = given[0][0, -1]
            return known.expand_as(made)

        def states(module: Any, given: Any, made: Any) -> None:
            seen["network"] = made[0][0, -1]

        hooks = [head.register_forward_hook(replaced), network.register_forward_hook(states)]
        try:
            with torch.inference_mode():
                ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
                found = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        finally:
            for hook in hooks:
                hook.remove()
        capped = bool(found[0] < 1e7)
        shape = (
            _Shape(round(float(found[1]) / 1e-2, 4), float(found[0])) if capped else _Shape(float(found[0]) / 1e9, inf)
        )
        given, plain = seen.get("head"), False
        if given is not None:
            plain = torch.equal(given, seen.get("network", given).to(given.dtype))
        if not plain or not torch.allclose(shape(known), found, rtol=1e-2, atol=1e-3):
            raise AgentError(
                f"what a {type(model).__name__} makes of its last hidden states is not known here: its level tags cannot be read"
            )
        _shapes[model] = shape
    return _shapes[model]


def shaped_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """Float32 logits of a model, of those that its head gives."""
    return shape_of(model)(logits.float())


def tag_head(model: Any, hidden: torch.Tensor, tags: Sequence[int]) -> torch.Tensor:
    """(D, len(tags)) float32 logits over ``tags`` of (D, hidden) final hidden states: no others of the vocabulary are computed."""
    head = model.get_output_embeddings()
    bias = None if getattr(head, "bias", None) is None else head.bias[list(tags)]
    # Mamba's states are float32 whatever its weights are.
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight[list(tags)], bias)
    return shaped_logits(model, logits)


def tag_logits(model: Any, prompts: Ids, question_width: int, tags: Sequence[int]) -> torch.Tensor:
    """(D, len(tags)) float32 logits of the next token over ``tags`` for (D, width) encoded prompts."""
    return tag_head(model, last_hidden(model, prompts, question_width), tags)
