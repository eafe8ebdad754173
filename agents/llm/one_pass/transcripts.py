"""Whole exams as token ids: prompts, batched generation with a KV cache, log-probabilities, and what a transcript says.

A transcript is everything that a model writes after an exam's prompt, cut at the budget. **Every generated token counts, the
end of the turn included**; it is charged to the problem on which the model was when it wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

from agents.llm.decisions.tag_logits import (
    PADDING,
    Ids,
    Sequences,
    agents_model,
    hidden_states,
    packed,
    shaped_logits,
    taught_tags,
)
from agents.llm.prompts import NUM_LEVELS, REFUSED, THINK, Part, boxed_parts, exam_prompt, tagged_parts
from agents.llm.small_model.tokenizer import prompt_text
from agents.one_pass import Papers
from roi_env.answering.dialect import beginning, dialect_of
from roi_env.answering.kv_cache import growing_cache, keep
from roi_env.answering.local import choose
from roi_env.answering.models import check_cached, check_read, ends

BATCH: Final = 128
"""Rows generated together."""
_HALF: Final = "\ufffd"
"""What a token is decoded to that is a part of a character."""
_COMPACT: Final = 0.9
"""Finished rows leave the batch when fewer than this share of its rows go on."""


def boxed_form(tokenizer: Any) -> bool:
    """Whether a model answers exams in boxes: it reasons in the open, and was not taught the level tags."""
    return not dialect_of(tokenizer).closing and not taught_tags(tokenizer)


def exam_ids(tokenizer: Any, questions: Sequence[str], budget: int, strategy: str = "taught") -> list[int]:
    """Token ids of an exam's prompt, the assistant's turn begun with no think block opened.

    :param strategy: see :data:`agents.llm.prompts.STRATEGIES`.
    """
    text = prompt_text(tokenizer, exam_prompt(questions, budget, strategy, boxed_form(tokenizer)))
    begun = text.rstrip().removesuffix(THINK) if text.rstrip().endswith(THINK) else text
    return [*beginning(tokenizer), *tokenizer(begun, add_special_tokens=False).input_ids]


def turn_ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end the model's turn.

    :raises AgentError: where there are none.
    """
    with agents_model(model):
        return ends(model, tokenizer)


class Generated(NamedTuple):
    """What D rows wrote.

    :param ids: (D, budget) int32, :data:`agents.llm.decisions.tag_logits.PADDING` after the last token.
    :param logp: (D, budget) float32 log-probabilities when the tokens were drawn (0 where there is none).
    """

    ids: Ids
    logp: npt.NDArray[np.float32]

    @property
    def length(self) -> npt.NDArray[np.int64]:
        """(D,) tokens written."""
        return np.asarray((self.ids != PADDING).sum(1))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    row: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.float64],
    *,
    stops: Sequence[int],
    temperature: float,
    batch: int = BATCH,
) -> Generated:
    """Write after prompts until the end of the turn, or until as many tokens are written as there are numbers.

    A token is the first whose cumulative probability exceeds its number: what a row writes depends on its prompt and its numbers
    alone, up to the last bits of sums.

    :param model: causal LM of Hugging Face.
    :param row: (D,) prompt of every row; each prompt is read once a batch.
    :param numbers: (D, budget) uniform numbers.
    :param stops: tokens that end a turn.
    :param temperature: of the distribution; 0: the most likely token (log-probabilities are 0 then).
    :param batch: most rows in one batch.
    :raises AgentError: where the model cannot generate here, or a prompt and what may follow are too long for it.
    """
    with agents_model(model):
        check_cached(model)
        longest, largest = max(map(len, prompts)), max(map(max, prompts))
        check_read(model, longest, largest, "an exam's prompt", numbers.shape[1])
    ids = np.full(numbers.shape, PADDING, np.int32)
    logp = np.zeros(numbers.shape, np.float32)
    order = np.argsort([len(prompts[at]) for at in row], kind="stable")
    for first in range(0, len(row), batch):
        some = order[first : first + batch]
        distinct, place = np.unique(row[some], return_inverse=True)
        ids[some], logp[some] = _generate(
            model, [prompts[at] for at in distinct], place.ravel(), numbers[some], stops, temperature
        )
    return Generated(ids, logp)


@torch.inference_mode()
def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    row: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.float64],
    stops: Sequence[int],
    temperature: float,
) -> Generated:
    size, budget = numbers.shape
    device = model.device
    width = max(map(len, prompts))
    step = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(step)
    for at, prompt in enumerate(prompts):
        step[at, width - len(prompt) :] = torch.tensor(prompt)
        mask[at, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    uniform = torch.from_numpy(numbers)
    ids, logp = torch.full((size, budget), PADDING, dtype=torch.int32), torch.zeros(size, budget)
    cache: Any = growing_cache()
    rows = torch.arange(size)
    members = torch.from_numpy(row)  # from prompts to rows after the first pass
    alive = torch.ones(size, dtype=torch.bool)
    for place in range(budget):
        logits = model(
            input_ids=step.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if place == 0:
            keep(cache, members.to(device))
            logits, mask, positions = logits[members.to(device)], mask[members], positions[members]
        token, chosen = _choose(logits, uniform[rows, place], temperature)
        ids[rows[alive], place], logp[rows[alive], place] = token[alive].int(), chosen[alive]
        alive &= ~torch.isin(token, torch.tensor(stops))
        if not alive.any():
            break
        positions = positions[:, -1:] + 1
        if alive.float().mean() < _COMPACT:
            kept = alive.nonzero()[:, 0]
            keep(cache, kept.to(device))
            rows, token, mask, positions, alive = rows[kept], token[kept], mask[kept], positions[kept], alive[kept]
        mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=torch.long)], dim=1)
        step = token[:, None]
    return Generated(ids.numpy(), logp.numpy())


def written_logp(
    model: Any, rows: Ids, prompt_width: int, *, temperature: float = 1.0, recompute: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every generated token and entropy of what it was drawn from: (G,) float32 each, row by row.

    Equal rows are read once, and so is a prompt that several rows share: its tokens once, what was written after it in rows beside
    one another, each seeing the prompt and itself alone (:func:`agents.llm.decisions.tag_logits.packed`).

    :param rows: (D, width) int32 token ids in two parts, padded with :data:`agents.llm.decisions.tag_logits.PADDING`: the prompt,
        ``prompt_width`` wide, and what was written after it, at least one token.
    :param temperature: that the tokens were drawn at.
    :param recompute: see :func:`agents.llm.decisions.tag_logits.last_hidden`.
    """
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    head = model.get_output_embeddings()

    def of(sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, place, token = _predictors(sequences, distinct, prompt_width)
        logits = (
            shaped_logits(model, head(hidden_states(model, sequences)[sequence, place].to(head.weight.dtype)))
            / temperature
        )
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, token.to(logp.device)[:, None]).squeeze(1), entropy

    logp, entropy, order = [], [], []
    for sequences in packed(model, distinct, prompt_width):
        recomputed = recompute and torch.is_grad_enabled()
        one, other = checkpoint(of, sequences, use_reentrant=False) if recomputed else of(sequences)
        logp.append(one)
        entropy.append(other)
        order.append(sequences.prompt.numpy())
    # From the tokens of distinct rows in the order of the chunks to those of all rows in theirs.
    length = (distinct[:, prompt_width:] != PADDING).sum(1)
    chunked = np.concatenate(order)
    first = np.empty(len(distinct), np.int64)
    first[chunked] = np.cumsum(length[chunked]) - length[chunked]
    row = inverse.ravel()
    within = np.arange(length[row].sum()) - np.repeat(np.cumsum(length[row]) - length[row], length[row])
    place = torch.from_numpy(np.repeat(first[row], length[row]) + within).to(logp[0].device)
    return torch.cat(logp)[place], torch.cat(entropy)[place]


def _predictors(sequences: Sequences, rows: Ids, prompt_width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every written token of the packed rows: its sequence, the place whose hidden state predicts it, its id."""
    sequence, place, tokens = [], [], []
    known = (sequences.part == 0).sum(1).numpy()
    for at, row, last in zip(*(x.tolist() for x in (sequences.prompt, sequences.row, sequences.last)), strict=True):
        written = rows[at, prompt_width:]
        written = written[written != PADDING]
        # The prompt's last token predicts the first; each token the next.
        place.append(np.concatenate([[known[row] - 1], np.arange(last + 1 - len(written), last)]))
        sequence.append(np.full(len(written), row))
        tokens.append(written.astype(np.int64))
    return tuple(torch.from_numpy(np.concatenate(parts)) for parts in (sequence, place, tokens))  # type: ignore[return-value]


def _choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows,) tokens by inversion of the cumulative distribution, and their log-probabilities."""
    if temperature == 0:
        return logits.argmax(-1).cpu(), torch.zeros(len(logits))
    token = choose(logits, uniform, temperature)
    scaled = logits.float() / temperature
    chosen = scaled.gather(1, token[:, None].to(scaled.device)).squeeze(1)
    return token, (chosen - scaled.logsumexp(-1)).cpu()


class Reader:
    """Reads transcripts: which tokens were written on which problem, what was announced and answered.

    :param tokenizer: of the model that wrote them.
    :param stops: tokens that end its turn, beside the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[int] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, {tokenizer.eos_token_id, *stops}
        self._boxed = boxed_form(tokenizer)
        self._pieces: dict[int, str] = {}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of every token; of a character that is several tokens, all of it at the last of them."""
        # After another token: SentencePiece drops the space before a text's first.
        first = self._tokenizer("a", add_special_tokens=False).input_ids

        def text(more: list[int]) -> str:
            return str(self._tokenizer.decode(first + more, clean_up_tokenization_spaces=False))

        before = text([])
        for token in set(ids) - self._pieces.keys():
            self._pieces[token] = text([token]).removeprefix(before)
        found = [self._pieces[token] for token in ids]
        begun: int | None = None
        for at in range(len(found) + 1):
            if at < len(found) and _HALF in found[at]:
                begun = at if begun is None else begun
            elif begun is not None:
                found[begun:at] = [""] * (at - 1 - begun) + [text(list(ids[begun:at])).removeprefix(before)]
                begun = None
        return found

    def parts(self, ids: Sequence[int], problems: int) -> list[Part]:
        """What a transcript has on each problem, by tags or by boxes."""
        return (boxed_parts if self._boxed else tagged_parts)(self.pieces(ids), problems)

    def problem_of(self, written: Ids, problems: int) -> npt.NDArray[np.int64]:
        """(D, budget) int64 problem that every token is charged to; -1 where there is none."""
        out = np.full(written.shape, -1)
        for at, row in enumerate(written):
            for number, part in enumerate(self.parts(row[row != PADDING].tolist(), problems)):
                out[at, part.segment.start : part.segment.stop] = number
        return out

    def papers(self, written: Ids, problems: int) -> Papers:
        """What D transcripts hand in.

        A problem that the budget's end left unfinished is cut; one that was finished with the last token is not, whether or not the
        turn could still be ended.

        :param written: (D, budget) token ids, :data:`agents.llm.decisions.tag_logits.PADDING` after the last.
        """
        shape = (len(written), problems)
        action, tokens = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        announced, cut = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        answers = []
        for at, row in enumerate(written):
            ids = row[row != PADDING].tolist()
            parts = self.parts(ids, problems)
            answers.append(tuple(part.answer for part in parts))
            reached = [number for number, part in enumerate(parts) if part.segment.stop > part.segment.start]
            for number in reached:
                segment, level, *_ = parts[number]
                tokens[at, number] = segment.stop - segment.start
                announced[at, number] = level is not None
                action[at, number] = REFUSED if level is None else (level + 1) % NUM_LEVELS
            out_of_tokens = len(ids) == written.shape[1] and ids[-1] not in self._stops
            cut[at, reached[-1]] = out_of_tokens and not parts[reached[-1]].finished
        return Papers(action, tokens, tokens > 0, announced, cut, tuple(answers))
