"""A causal language model trained from nothing on worked solutions, as an ordinary Hugging Face model directory.

Three kinds of examples: the whole solution; *direct*, an empty think block and the answer; *cut*, the think block closed
at a random place and the answer, without which forced answers are garbage. What is forced at generation (the closing of
the block in direct and cut examples) carries no loss. Hidden matrices are trained by Muon, the rest by AdamW.

Training is a function of its recipe alone (up to floating point): data come in *chunks* whose examples depend on (seed, chunk), and a
run that was interrupted goes on from its last whole chunk. On a GPU, where there is one, other processes prepare the chunks: one
alone could not keep it busy.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from agents.llm.decisions.policy import own_device
from agents.llm.prompts import END, END_THINK, Completion, exam_prompt, render
from agents.llm.small_model.solutions import solution
from agents.llm.small_model.tasks import FAMILIES, Task, TaskSplit, check_families, tasks
from agents.llm.small_model.tokenizer import PAD, prompt_text, train_tokenizer
from agents.parameters import check_numbers
from roi_env.files import replacing, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

RECIPE, STATE = "recipe.json", "training.pt"
IGNORED = -100
"""Label of a token without loss."""
_CORPUS = 200
"""Tasks of every family and difficulty that the tokenizer is trained on."""
_VALIDATION = 12
"""Tasks of every family and difficulty in the validation loss."""
_WORKERS = 8
"""Most processes that prepare chunks for a GPU."""

# Examples of a family (times those of a difficulty): hard arithmetic needs more of them.
_FAMILY_WEIGHT = {"legs": 1.0, "sum1": 0.6, "sum2": 1.0, "prod": 1.0, "gcd": 2.5, "factor": 2.0, "ab": 0.8}
_DIFFICULTY_WEIGHT = {("prod", 1): 0.5, ("prod", 2): 5.0, ("prod", 3): 0.5, ("factor", 2): 0.25}


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that a pre-trained model depends on.

    :param tokens: training length (prompt and padding included).
    :param batch_tokens: of one update.
    :param chunk_batches: updates between two saved states.
    :param muon_lr: peak, for hidden matrices; scaled to the size of AdamW's updates.
    :param adam_lr: peak, for embeddings and norms.
    :param warmup: updates of linear warm-up; then constant to ``decay_from`` of the training, then linear to ``final``.
    :param direct_short: share of direct examples where the solution has at most ``short`` tokens; ``direct_long`` elsewhere.
    :param cut: share of cut examples.
    :param max_length: longer examples are left out.
    :param families: names to train on; empty: all.
    """

    seed: int = 0
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 384
    vocabulary: int = 640
    tokens: int = 8_000_000
    batch_tokens: int = 4096
    chunk_batches: int = 32
    muon_lr: float = 8e-3
    adam_lr: float = 3e-3
    warmup: int = 50
    decay_from: float = 0.3
    final: float = 0.02
    direct_short: float = 0.45
    direct_long: float = 0.12
    short: int = 24
    cut: float = 0.12
    max_length: int = 320
    families: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_families(self.families)
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        sizes = (
            "layers",
            "heads",
            "feed_forward",
            "vocabulary",
            "tokens",
            "batch_tokens",
            "chunk_batches",
            "max_length",
        )
        check_numbers(self, positive=(*sizes, "warmup", "muon_lr", "adam_lr"))
        if self.hidden < self.heads or self.hidden // self.heads % 2:
            raise ValueError(f"hidden / heads must be an even number, got {self.hidden} / {self.heads}")
        if self.decay_from >= 1:
            raise ValueError(f"decay_from must be a share of the training below 1, got {self.decay_from}")

    @property
    def kinds(self) -> list[tuple[str, int, float]]:
        """(family, difficulty, weight) of the training examples."""
        return [
            (name, difficulty, _FAMILY_WEIGHT[name] * _DIFFICULTY_WEIGHT.get((name, difficulty), 1.0))
            for name in self.families or FAMILIES
            for difficulty in FAMILIES[name].taught
        ]


class Example(NamedTuple):
    """Token ids and the targets of the loss (``IGNORED`` where there is none), both (length,)."""

    ids: list[int]
    labels: list[int]


@dataclass
class Training:
    """How far a training is: what ``watch`` of :func:`pretrain` gets."""

    tokens: int = 0
    updates: int = 0
    chunks: int = 0
    cpu_seconds: float = 0.0
    """Of this process."""
    device: str = "CPU"
    loss: float = float("nan")
    validation: dict[str, float] = field(default_factory=dict)
    """Nats a token on validation tasks, by family, when last measured."""


def pretrain(
    recipe: PretrainingRecipe, folder: Path, watch: Callable[[Training], None] = lambda progress: None
) -> Training:
    """Train, or go on training, in a folder; at the end it is a model directory with a model card.

    :param watch: called after every chunk.
    :raises ValueError: where the folder holds a training with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file, state_file = folder / RECIPE, folder / STATE
    if recipe_file.exists():
        if json.loads(recipe_file.read_text())["recipe"] != json.loads(json.dumps(asdict(recipe))):
            raise ValueError(f"{folder} holds a training with another recipe: choose another folder, or delete it")
        if not state_file.exists() and (folder / "model.safetensors").exists():
            return Training(**json.loads(recipe_file.read_text())["training"])
    torch.manual_seed(recipe.seed)
    cuda = own_device() == "cuda"
    tokenizer = _make_tokenizer(recipe)
    model: Any = make_model(recipe, tokenizer).to(own_device())
    muon, adam = optimizers(model, recipe.muon_lr, recipe.adam_lr)
    progress = Training()
    if state_file.exists():
        state = torch.load(state_file, map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        progress = Training(**state["progress"])
    else:
        _write_recipe(recipe_file, recipe, progress)
    progress.device = torch.cuda.get_device_name() if cuda else "CPU"
    validation = _validation_examples(recipe, tokenizer)
    peak = [group["initial_lr"] for optimizer in (muon, adam) for group in optimizer.param_groups]
    before = time.process_time() - progress.cpu_seconds
    model.train()
    workers = min(_WORKERS, os.cpu_count() or 1) if cuda else 0
    for chunk in chunks(recipe, tokenizer, progress.chunks, workers):
        if progress.tokens >= recipe.tokens:
            break
        losses = []
        for ids, labels in chunk:
            scale = _schedule(recipe, progress)
            groups = [group for optimizer in (muon, adam) for group in optimizer.param_groups]
            for group, lr in zip(groups, peak, strict=True):
                group["lr"] = lr * scale
            loss = _loss(model, ids.to(model.device), labels.to(model.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in (muon, adam):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            progress.tokens += ids.numel()
            progress.updates += 1
        progress.chunks += 1
        progress.loss = float(torch.stack(losses).mean())
        if not math.isfinite(progress.loss):
            raise ValueError(
                f"the loss is {progress.loss} after {progress.tokens:,} tokens, training diverged: choose a smaller muon_lr= and adam_lr= and "
                "another folder, or delete this one"
            )
        if progress.chunks % 8 == 0 or progress.tokens >= recipe.tokens:
            progress.validation = _validate(model, validation, recipe)
        progress.cpu_seconds = time.process_time() - before
        with replacing(state_file) as path:
            torch.save(
                {
                    "model": model.state_dict(),
                    "muon": muon.state_dict(),
                    "adam": adam.state_dict(),
                    "progress": asdict(progress),
                },
                path,
            )
        watch(progress)
    _finish(recipe, folder, model, tokenizer, progress)
    state_file.unlink(missing_ok=True)
    return progress


def chunks(
    recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast, first: int, workers: int
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The :func:`batches` of one chunk after the other, for ever.

    :param workers: processes that prepare them; 0: this one does, when asked.
    """
    yield from DataLoader(_Chunks(recipe, tokenizer), batch_size=None, sampler=count(first), num_workers=workers)


class _Chunks(Dataset[list[tuple[torch.Tensor, torch.Tensor]]]):
    """The batches of every chunk, by its number."""

    def __init__(self, recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self._recipe, self._tokenizer = recipe, tokenizer

    def __getitem__(self, chunk: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(self._recipe, self._tokenizer, chunk))


def make_model(recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained Qwen3 with tied embeddings."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        max_new_tokens=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def example(task: Task, tokenizer: PreTrainedTokenizerFast, rng: Random, recipe: PretrainingRecipe) -> Example:
    """A training example of a random kind."""
    end_think = int(tokenizer.convert_tokens_to_ids(END_THINK))
    prompt = _encode(tokenizer, prompt_text(tokenizer, task.question))
    thought = _encode(tokenizer, solution(task, rng))
    after = _encode(tokenizer, render(Completion("", task.answer)) + END)[1:]
    kind = rng.random()
    direct = recipe.direct_short if len(thought) <= recipe.short else recipe.direct_long
    forced = kind < direct + recipe.cut
    if kind < direct:
        thought = []
    elif forced:
        thought = thought[: rng.randrange(1, max(2, len(thought)))]
    return Example(
        [*prompt, *thought, end_think, *after],
        [IGNORED] * len(prompt) + thought + [IGNORED if forced else end_think] + after,
    )


def batches(
    recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast, chunk: int, split: TaskSplit = "pretrain"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of a chunk in random order: ids and labels, (rows, length) int64, right padding."""
    rng = Random(1_000_003 * recipe.seed + chunk)
    kinds = recipe.kinds
    # Seeds of different chunks do not meet: no chunk takes 20,000 examples of one kind.
    streams = {(name, d): tasks(name, d, split, start=20_000 * chunk) for name, d, _ in kinds}
    wanted = recipe.chunk_batches * recipe.batch_tokens
    examples: list[Example] = []
    size = 0
    while size < wanted:
        name, difficulty, _ = rng.choices(kinds, [weight for *_, weight in kinds])[0]
        made = example(next(streams[name, difficulty]), tokenizer, rng, recipe)
        if len(made.ids) <= recipe.max_length:
            examples.append(made)
            size += len(made.ids)
    groups = _grouped(examples, recipe.batch_tokens)
    rng.shuffle(groups)
    pad = int(tokenizer.convert_tokens_to_ids(PAD))
    for group in groups:
        yield _tensors(group, pad)


def _grouped(examples: list[Example], batch_tokens: int) -> list[list[Example]]:
    groups: list[list[Example]] = [[]]
    for made in sorted(examples, key=lambda made: len(made.ids)):
        if (len(groups[-1]) + 1) * len(made.ids) > batch_tokens and groups[-1]:
            groups.append([])
        groups[-1].append(made)
    return groups


def _tensors(examples: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(made.ids) for made in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORED)
    for row, made in enumerate(examples):
        ids[row, : len(made.ids)] = torch.tensor(made.ids)
        labels[row, : len(made.ids)] = torch.tensor(made.labels)
    return ids, labels


def _loss(model: PreTrainedModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean nats a target token. Right padding and causal attention: no mask is needed."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _make_tokenizer(recipe: PretrainingRecipe) -> PreTrainedTokenizerFast:
    rng = Random(recipe.seed)
    texts = []
    for name, difficulty, _ in recipe.kinds:
        for task in islice(tasks(name, difficulty, "pretrain"), _CORPUS):
            # The words of exams are learned later, but they should not cost a token a letter then.
            exam = exam_prompt([task.question], rng.randrange(1000))
            worked = solution(task, rng)
            state = f"Tokens left: {rng.randrange(1000)}. Tasks left: 1. {task.question}"
            texts += [task.question, worked, state, exam]
    return train_tokenizer(texts, recipe.vocabulary)


def optimizers(
    model: torch.nn.Module, muon_lr: float, adam_lr: float, weight_decay: float = 0.0
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for matrices other than embeddings, its updates as large as AdamW's; AdamW for the rest."""
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (hidden if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    muon = torch.optim.Muon(hidden, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return muon, adam


def _schedule(recipe: PretrainingRecipe, progress: Training) -> float:
    done = progress.tokens / recipe.tokens
    decay = min(1.0, max(0.0, (done - recipe.decay_from) / (1 - recipe.decay_from)))
    return min((progress.updates + 1) / recipe.warmup, 1 - (1 - recipe.final) * decay)


def _validation_examples(
    recipe: PretrainingRecipe, tokenizer: PreTrainedTokenizerFast
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    rng = Random(recipe.seed)
    pad = int(tokenizer.convert_tokens_to_ids(PAD))
    found: dict[str, list[Example]] = {}
    for name, difficulty, _ in recipe.kinds:
        for task in islice(tasks(name, difficulty, "validation"), _VALIDATION):
            found.setdefault(name, []).append(example(task, tokenizer, rng, recipe))
    return {name: _tensors(examples, pad) for name, examples in found.items()}


@torch.no_grad()
def _validate(
    model: PreTrainedModel, validation: dict[str, tuple[torch.Tensor, torch.Tensor]], recipe: PretrainingRecipe
) -> dict[str, float]:
    device = model.device
    return {
        name: round(_loss(model, ids.to(device), labels.to(device)).item(), 4)
        for name, (ids, labels) in validation.items()
    }


def _write_recipe(path: Path, recipe: PretrainingRecipe, progress: Training) -> None:
    text = json.dumps({"recipe": asdict(recipe), "training": asdict(progress)}, indent=1)
    # A loss is not a number before the first update; JSON has no such thing.
    with replacing(path) as temporary:
        temporary.write_text(text.replace("NaN", "null") + "\n")


def _finish(
    recipe: PretrainingRecipe,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    progress: Training,
) -> None:
    with writing(folder):
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_card(recipe, sum(p.numel() for p in model.parameters()), progress))
    _write_recipe(folder / RECIPE, recipe, progress)


def _card(recipe: PretrainingRecipe, parameters: int, progress: Training) -> str:
    losses = "\n".join(f"| {name} | {loss:.3f} |" for name, loss in progress.validation.items())
    settings = " ".join(f"{name}={value}" for name, value in asdict(recipe).items() if name != "families")
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# A small reasoning model, made from nothing

{parameters:,} parameters (Qwen3, bfloat16), trained on worked solutions of procedurally generated tasks
({", ".join(recipe.families or FAMILIES)}; generators of reasoning-gym): it thinks in a `<think>` block, longer for harder tasks,
and answers in `<answer>` tags. `enable_thinking=False` in the chat template makes it answer at once. It knows nothing else.

Recipe (`{RECIPE}`; `roi llm pretrain --out FOLDER`): {settings}

{progress.updates:,} updates, {progress.tokens:,} tokens, {progress.cpu_seconds:.0f} CPU seconds of the training process ({progress.device}). Loss on validation tasks, nats a token:

| family | loss |
|---|---|
{losses}
"""
