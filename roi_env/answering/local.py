"""A Hugging Face causal LM in this process: batched generation with a KV cache and budget forcing.

One reasoning serves all tiers of a (question, sample): it is generated once at the largest cap; tiers whose cap it exceeds
get it cut there and an answer forced, as the model's :class:`~roi_env.answering.dialect.Dialect` says. Random numbers depend on (seed, question, sample, tier) and the position alone, so what is
generated does not depend on batches or on an interruption (up to floating point).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache as cached
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from roi_env.answering.base import Ask, Finish, Generation, Question, Reply, Request, ThinkingTier
from roi_env.answering.branching import Branch, Text, generate
from roi_env.answering.dialect import (
    Dialect,
    DialectError,
    beginning,
    ids_after,
    named_dialect,
    single_token,
    unheeded_end,
)
from roi_env.answering.kv_cache import growing_cache, keep
from roi_env.answering.models import check_cached, check_read, ends, open_causal
from roi_env.answering.tokenizer import open_tokenizer

_COMPACT = 0.8
"""Finished rows leave the batch when fewer than this share of its rows go on."""

_PROMPTS = 32
"""Prompts read together: a batch is sorted by their lengths, so that few of these rows are padded."""


class _Asked(NamedTuple):
    """What tiers share a reasoning of: a question's sample. The text tells questions of one id apart, which share random numbers."""

    dataset: str
    question_id: str
    sample: int
    text: str


def _asked(request: Request) -> _Asked:
    question = request.question
    return _Asked(question.dataset, question.question_id, request.sample, question.text)


class _Job(NamedTuple):
    """A row to generate: token ids before it, most tokens to the end of thinking (0: it is over) and of the answer."""

    prefix: list[int]
    thinking: int
    answer: int
    noise: npt.NDArray[np.float64]


def _joined(parts: Sequence[Cache]) -> Cache:
    """One cache of all rows; shorter ones get empty columns on the left."""
    width = max(part.get_seq_length() for part in parts)
    whole = growing_cache()
    for index in range(len(parts[0].layers)):
        keys, values = (
            torch.cat([F.pad(state, (0, 0, width - state.shape[2], 0)) for state in states])
            for states in zip(*((part.layers[index].keys, part.layers[index].values) for part in parts), strict=True)
        )
        whole.update(keys, values, index)
    return whole


_BATCH = {"thinking": 256, "instruct": 64}
"""Rows generated together: thoughts of the small model are short, and its weights are."""
_DRAWN_TOGETHER = 2**23
"""Numbers of logits that tokens are drawn from at a time."""
_BLOCK = 1024
"""Numbers that are summed before they are added up: only one block of a row is looked at number by number."""


@cached
def cpu_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies it clearly faster than float32; measured once a process, in some milliseconds."""
    spent = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.Linear(1024, 4096, bias=False, dtype=dtype)
        rows = torch.ones(32, 1024, dtype=dtype)
        times = []
        with torch.inference_mode():
            for _ in range(6):
                begun = time.perf_counter()
                layer(rows)
                times.append(time.perf_counter() - begun)
        spent[dtype] = min(times)
    return torch.bfloat16 if spent[torch.bfloat16] < 0.8 * spent[torch.float32] else torch.float32


class TransformersSolver:
    """Answers by a model directory or hub id.

    :param model: directory or id.
    :param name: of the model in tables; default: the last part of ``model``.
    :param temperature: of sampling; 0: the most likely token.
    :param batch: rows generated together; default: by the dialect.
    :param seed: of the samples.
    :param device: of PyTorch.
    :param dialect: how the model speaks, or its name; ``auto``: by its tokenizer and chat template.
    :param prompt: what a question is asked with, ``{question}`` stands for its text; default: the dialect's.
    :param system: system message; default: the chat template's own.
    :param force: the text that an answer is forced by; default: the dialect's.
    :param dtype: ``float32`` or ``bfloat16``; ``auto``: bfloat16 on a GPU, and on a CPU that multiplies it faster; models
        that think in a block stay at float32 on CPUs, where their recordings can be made again bit by bit.
    :raises ValueError: where it is no causal LM that can generate here (:mod:`roi_env.answering.models`), its tokenizer has no
        single token for the ends of thinking, or a name is unknown.
    """

    paired = True

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        name: str | None = None,
        temperature: float = 0.7,
        batch: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        dialect: str | Dialect = "auto",
        prompt: str | None = None,
        system: str | None = None,
        force: str | None = None,
        dtype: str = "auto",
    ) -> None:
        if temperature < 0 or (batch is not None and batch < 1):
            raise ValueError(f"temperature must be >= 0 and batch >= 1, got {temperature} and {batch}")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype must be auto, float32 or bfloat16, got {dtype!r}")
        self.name = name or os.path.basename(os.path.normpath(model))
        self.temperature, self.seed, self.device = temperature, seed, torch.device(device)
        self.system = system
        self.tokenizer: Any = open_tokenizer(model)
        spoken = named_dialect(dialect, self.tokenizer) if isinstance(dialect, str) else dialect
        self._end_think = self._single_token(spoken.closing) if spoken.closing else None
        self.dialect = replace(spoken, prompt=prompt or spoken.prompt, force=force or spoken.force)
        self.batch = batch or _BATCH[self.dialect.name if self.dialect.name in _BATCH else "instruct"]
        if dtype != "auto":
            chosen = getattr(torch, dtype)
        elif self.device.type != "cpu":
            chosen = torch.bfloat16
        else:
            chosen = torch.float32 if self.dialect.closing else cpu_dtype()
        self.model = open_causal(model, chosen).to(self.device)
        check_cached(self.model)
        self._force = ids_after(self.tokenizer, self.dialect.force)
        self._stops = ends(self.model, self.tokenizer)
        self.warning: str | None = None
        """What a user should know of the model."""
        if (end := unheeded_end(self.tokenizer, self._stops)) is not None:
            self.warning = (
                f"model {self.name!r}: its chat template ends an answer with {end}, at which generation does not stop, so answers may go "
                "on to their caps: name that token among eos_token_id in its generation_config.json"
            )

    def _single_token(self, text: str) -> int:
        token = single_token(self.tokenizer, text)
        if token is None:
            raise ValueError(
                f"model {self.name!r} has no single token {text!r}: its thinking cannot be cut by force. Models that reason "
                "in the open speak the dialect `instruct`"
            )
        return token

    @property
    def settings(self) -> dict[str, Any]:
        """What generations depend on beside the weights, temperature, seed and tiers; empty for what always was so."""
        said = {} if self.system is None else {"system": self.system}
        if self.dialect.closing:
            plain = named_dialect(self.dialect.name, self.tokenizer)
            said |= {} if self.dialect.prompt == plain.prompt else {"prompt": self.dialect.prompt}
            said |= {} if self.dialect.force == plain.force else {"force": self.dialect.force}
            return said | ({} if self.model.dtype == torch.float32 else {"dtype": str(self.model.dtype)[6:]})
        spoken = {"dialect": self.dialect.name, "prompt": self.dialect.prompt, "force": self.dialect.force}
        return {**said, **spoken, "dtype": str(self.model.dtype)[6:]}

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights: names the model that results depend on."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def reads(self) -> str:
        """Short hash of what tokenizer and chat template make of a question and of the forced text."""
        return hashlib.sha256(str((self.prompt("What is 12 + 3?"), self._force)).encode()).hexdigest()[:16]

    def prompt(self, question: str) -> list[int]:
        """Token ids of the chat prompt, its reasoning begun where the dialect says how; without a chat template the bare text.

        :raises ValueError: where the chat template takes no system message and one is set.
        """
        messages = [{"role": "user", "content": self.dialect.asked(question)}]
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        try:
            text = self.dialect.rendered(self.tokenizer, messages)
        except DialectError as error:
            raise ValueError(f"model {self.name!r}: {error}") from error
        return [*beginning(self.tokenizer), *self.tokenizer(text, add_special_tokens=False).input_ids]

    def check(self, tiers: Sequence[ThinkingTier], questions: Sequence[Question] = ()) -> None:
        """Refuse tiers that leave no token to answer, and questions that are too long for the model.

        :raises ValueError: naming the first of them.
        """
        self.dialect.check(tiers, len(self._force))
        # The end of a block that never opened is the prompt's.
        most = max((tier.most_tokens for tier in tiers), default=0) + bool(self.dialect.closing)
        for question in questions:
            ids = self.prompt(question.text)
            what = f"the prompt of question {question.question_id!r} ({question.dataset})"
            check_read(self.model, len(ids), max(ids, default=0), what, most)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation for each request, in their order."""
        found = dict(one for ready in self.finished(requests) for one in ready)
        return [found[number] for number in range(len(requests))]

    def finished(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Generation]]]:
        """Generations and the numbers of their requests, as they are finished: all of a question's sample together.

        :raises ValueError: see :meth:`check`.
        """
        asked = dict.fromkeys(request.question for request in requests)
        self.check(list(dict.fromkeys(request.tier for request in requests)), list(asked))
        return self._branched(requests) if self._end_think is None else iter([list(enumerate(self._closed(requests)))])

    def _branched(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Generation]]]:
        """Reasoning in the open: all tiers of a sample in one batch."""
        of_text: dict[_Asked, list[int]] = {}  # numbers of its requests
        for number, request in enumerate(requests):
            of_text.setdefault(_asked(request), []).append(number)
        prompts = {text: tuple(self.prompt(text)) for text in {key.text for key in of_text}}
        texts, tiers_of, asked_of = [], [], list(of_text.values())
        for key, asked in of_text.items():
            tiers = list(dict.fromkeys(requests[number].tier for number in asked))
            branches = tuple(
                Branch(self.dialect.reasoning(tier), self._room(tier), self._noise(key, tier.name, tier))
                for tier in tiers
            )
            longest = max(tiers, key=lambda tier: tier.most_tokens)
            texts.append(Text(prompts[key.text], branches, self._noise(key, "", longest)))
            tiers_of.append(tiers)
        for ready in generate(self.model, texts, self._force, self._stops, self._choose, self.batch):
            yield [
                (number, self._answered(made.ids, made.answers[tiers_of[text].index(tier)], tier))
                for text, made in ready
                for number, tier in ((number, requests[number].tier) for number in asked_of[text])
            ]

    def _answered(self, ids: list[int], answer: list[int] | None, tier: ThinkingTier) -> Generation:
        """Reasoning that ended by itself within a tier (``answer`` None), or that was cut there and the forced answer."""
        if answer is None:
            return Generation(self._text(ids), len(ids), False)
        cut = ids[: self.dialect.reasoning(tier)]
        # What is forced costs as if the model had written it: a cap is a cap of all that stands in the model's turn.
        text = self._text([*cut, *self._force, *answer])
        return Generation(text, len(cut) + len(self._force) + len(answer), bool(cut))

    def _closed(self, requests: Sequence[Request]) -> list[Generation]:
        """Reasoning in a block: first the thoughts, then the answers where one must be closed by force."""
        rows: dict[_Asked, list[Request]] = {}
        for request in requests:
            rows.setdefault(_asked(request), []).append(request)
        keys = list(rows)
        prompts = {text: self.prompt(text) for text in {key.text for key in keys}}

        # The thoughts, each with the answer that follows it by itself, as long as any tier lets it be.
        most = {
            key: ThinkingTier("", max(r.tier.thinking for r in rows[key]), max(r.tier.answer for r in rows[key]))
            for key in keys
        }
        thinkers = [key for key in keys if most[key].thinking]
        thoughts = dict(
            zip(
                thinkers,
                self._run(
                    [
                        _Job(prompts[key.text], most[key].thinking, most[key].answer, self._noise(key, "", most[key]))
                        for key in thinkers
                    ]
                ),
                strict=True,
            )
        )

        # The answers that must be forced.
        forced: dict[tuple[_Asked, ThinkingTier], _Job] = {}
        for key in keys:
            for request in rows[key]:
                cut = self._cut(thoughts.get(key, []), request.tier)
                if cut is not None:
                    noise = self._noise(key, request.tier.name, request.tier)
                    prefix = [*prompts[key.text], *cut, *self._force]
                    forced[key, request.tier] = _Job(prefix, 0, self._room(request.tier), noise)
        answers = dict(zip(forced, self._run(list(forced.values())), strict=True))

        done, end = [], self._end_think
        for request in requests:
            key = _asked(request)
            tier, ids = request.tier, thoughts.get(key, [])
            cut = self._cut(ids, tier)
            if cut is None and end is not None and end in ids:
                ids = ids[: ids.index(end) + 1 + tier.answer]
                done.append(Generation(self._text(ids), len(ids), False))
            elif cut is None:
                # The prompt opened the block, so nothing in the text says that all of it is thought.
                done.append(Generation("", len(ids), False, self._text(ids)))
            else:
                # The forced end of a think block that was begun is paid for; a block that never opened is the prompt's.
                text = self._text([*cut, *self._force, *answers[key, tier]])
                paid = len(cut) + len(self._force) - (not cut) + len(answers[key, tier])
                done.append(Generation(text, paid, tier.thinking > 0))
        return done

    def _room(self, tier: ThinkingTier) -> int:
        return self.dialect.room(tier, len(self._force))

    def _cut(self, generated: list[int], tier: ThinkingTier) -> list[int] | None:
        """The thought that must be cut at the tier's cap; None where it ended by itself within it."""
        head = generated[: tier.thinking]
        return None if self._end_think in head or not set(self._stops).isdisjoint(head) else head

    def _text(self, ids: list[int]) -> str:
        kept = ids[:-1] if ids and ids[-1] in self._stops else ids
        text: str = self.tokenizer.decode(kept, clean_up_tokenization_spaces=False)
        return text

    def _noise(self, key: _Asked, stream: str, tier: ThinkingTier) -> npt.NDArray[np.float64]:
        name = "\0".join([str(self.seed), key.dataset, key.question_id, str(key.sample), stream])
        bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))
        return np.random.Generator(bits).random(tier.most_tokens)

    def _run(self, jobs: list[_Job]) -> list[list[int]]:
        """Generated ids of each job, the end of the turn included."""
        order = sorted(range(len(jobs)), key=lambda index: len(jobs[index].prefix))
        done: list[list[int]] = [[] for _ in jobs]
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            for index, ids in zip(chosen, self._run_batch([jobs[index] for index in chosen]), strict=True):
                done[index] = ids
        return done

    @torch.inference_mode()
    def _run_batch(self, jobs: list[_Job]) -> list[list[int]]:
        longest = max(len(job.noise) for job in jobs)
        noise = torch.tensor(np.stack([np.pad(job.noise, (0, longest - len(job.noise))) for job in jobs]))
        thinking = torch.tensor([job.thinking > 0 for job in jobs])
        answer = torch.tensor([job.answer for job in jobs])
        limit = torch.tensor([job.thinking or job.answer for job in jobs])
        rows = torch.arange(len(jobs))  # of the jobs still in the batch
        out = torch.full((len(jobs), longest), self._stops[0])
        length = torch.zeros(len(jobs), dtype=torch.long)
        prompts = [self._read(jobs[start : start + _PROMPTS]) for start in range(0, len(jobs), _PROMPTS)]
        cache = _joined([part for part, _, _ in prompts])
        width = cache.get_seq_length()
        mask = torch.cat([F.pad(shown, (width - shown.shape[1], 0)) for _, shown, _ in prompts])
        logits = torch.cat([following for _, _, following in prompts])
        for step in range(longest):
            token = self._choose(logits, noise[rows, step])
            alive = step < limit[rows]
            out[rows[alive], step] = token[alive]
            length[rows[alive]] = step + 1
            ended = alive & thinking[rows] & (token == self._end_think)
            thinking[rows[ended]] = False
            limit[rows[ended]] = step + 1 + answer[rows[ended]]
            limit[rows[alive & torch.isin(token, torch.tensor(self._stops))]] = 0
            alive = step + 1 < limit[rows]
            if not alive.any():
                break
            if alive.float().mean() < _COMPACT:
                kept = alive.nonzero()[:, 0]
                first = int(mask[kept].any(0).int().argmax())
                keep(cache, kept.to(self.device), first)
                rows, token, mask = rows[kept], token[kept], mask[kept, first:]
            mask = F.pad(mask, (0, 1), value=1)
            logits = self._logits(token[:, None], mask, cache)
        return [out[row, : length[row]].tolist() for row in range(len(jobs))]

    def _read(self, jobs: list[_Job]) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """Cache, mask (rows, columns) and logits (rows, vocabulary) after the prefixes, which are padded on the left."""
        width = max(len(job.prefix) for job in jobs)
        ids, mask = torch.zeros((2, len(jobs), width), dtype=torch.long)
        for row, job in enumerate(jobs):
            ids[row, width - len(job.prefix) :] = torch.tensor(job.prefix)
            mask[row, width - len(job.prefix) :] = 1
        cache = growing_cache()
        return cache, mask, self._logits(ids, mask, cache)

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
        """(rows, vocabulary) logits after the last columns of the mask, whose tokens are ``ids``; appends to the cache."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits: torch.Tensor = self.model(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=positions.to(self.device),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits

    def _choose(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return choose(logits, noise, self.temperature)


def choose(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """(rows,) tokens of (rows, vocabulary) logits by (rows,) uniform numbers: inversion of the cumulative distribution.

    :param temperature: 0: the most likely tokens.
    """
    if temperature == 0:
        return logits.argmax(-1).cpu()
    together = max(1, _DRAWN_TOGETHER // logits.shape[-1])
    parts = zip(logits.split(together), noise.split(together), strict=True)
    return torch.cat([_draw(*rows, temperature) for rows in parts])


def _draw(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    # Double precision where the logits have single precision; bfloat16 has no more than 8 bits itself.
    exact = torch.float64 if logits.dtype == torch.float32 else torch.float32
    weight = logits.to(exact)
    weight = weight.sub_(weight.amax(-1, keepdim=True)).div_(temperature).exp_()
    blocks = F.pad(weight, (0, -weight.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    upto = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (rows, blocks)
    goal = noise[:, None].to(upto) * upto[:, -1:]
    block = (upto <= goal).sum(-1).clamp(max=upto.shape[-1] - 1)
    row = torch.arange(len(block), device=block.device)
    goal -= torch.where(block > 0, upto[row, (block - 1).clamp(min=0)], 0)[:, None]
    inside = (blocks[row, block].double().cumsum(-1) <= goal).sum(-1).clamp(max=_BLOCK - 1)
    return (block * _BLOCK + inside).clamp(max=logits.shape[-1] - 1).cpu()


class LocalLive:
    """The same model as a :class:`roi_env.answering.base.LiveSolver`: requests that wait are generated as one batch.

    A request whose generation exceeds its cap is cut there: it costs the cap and has no answer, as in the exam.

    :param solver: the model; conversations (``Ask.messages``) are not for it.
    """

    def __init__(self, solver: TransformersSolver) -> None:
        self.solver, self.name = solver, solver.name
        self._waiting: list[tuple[Ask, asyncio.Future[Reply]]] = []
        self._work: asyncio.Task[None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on, as far as it is known at once: the model by its name."""
        return {"model": self.name, "temperature": self.solver.temperature, **self.solver.settings}

    async def answer(self, ask: Ask) -> Reply:
        """Answer within the cap."""
        if ask.messages is not None:
            return Reply("", None, 0, None, "error", "nothing", "a local model takes single questions", attempts=0)
        try:  # by itself: others that are answered with it do not suffer
            self.solver.check([ask.tier], [ask.question])
        except ValueError as error:
            return Reply("", None, 0, None, "error", "nothing", str(error), attempts=0)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._generate())
        return await future

    async def close(self) -> None:
        """Wait for the batch under way."""
        if self._work is not None:
            await self._work

    async def _generate(self) -> None:
        await asyncio.sleep(0)  # what is asked in the same moment is one batch
        while self._waiting:
            batch, self._waiting = self._waiting, []
            requests = [Request(ask.question, ask.tier, ask.sample) for ask, _ in batch]
            try:
                made = await asyncio.to_thread(self.solver.generate, requests)
                replies = [
                    _reply(ask, generation, self.solver.dialect.closing)
                    for (ask, _), generation in zip(batch, made, strict=True)
                ]
            except (ValueError, RuntimeError) as error:
                replies = [Reply("", None, 0, None, "error", "nothing", str(error), attempts=0)] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)


def _reply(ask: Ask, made: Generation, closing: str) -> Reply:
    thought, closed, text = made.text.rpartition(closing) if closing else ("", "", made.text)
    reasoning = made.reasoning or thought or None
    if made.tokens > ask.cap:
        return Reply("", reasoning or (None if closing else made.text), ask.cap, None, "length", "tokenizer")
    finish: Finish = "length" if made.tokens == ask.tier.most_tokens else "stop"
    return Reply(text if closed else made.text, reasoning, made.tokens, None, finish, "tokenizer")
