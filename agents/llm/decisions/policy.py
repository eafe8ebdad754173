"""A causal LM as a policy over tiers: its own distribution over the level tags, and a value head where one is learned."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy.typing as npt
import torch
from torch import nn

from agents.base import Agent, AgentError, DecisionView, ExamsView, exams_of
from agents.llm.decisions.lower_layers import LowerLayers, readings_of
from agents.llm.decisions.tag_logits import (
    Ids,
    PromptEncoder,
    action_tags,
    check_levels,
    joined,
    last_hidden,
    shape_of,
    tag_head,
)
from agents.llm.prompts import LEVEL_TAGS, REFUSED
from agents.made_for import OtherExams, read_made_for, warn_of_others
from roi_env.answering.models import kept, open_causal, open_network, quiet_peft
from roi_env.answering.tokenizer import ModelError, open_tokenizer
from roi_env.files import writing

MODELS: Final = Path(__file__).parents[1] / "models"
"""Models that come with the package, by name."""


def model_source(model: str | os.PathLike[str]) -> str:
    """Where a model lies: a directory, the name of one that comes with the package, or else a hub id.

    :raises AgentError: for a path where no directory is.
    """
    bundled = MODELS / model
    if not Path(model).is_dir() and bundled.is_dir():
        return str(bundled)
    if not Path(model).is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model)) is None:
        raise AgentError(_no_model(model, "no such directory"))
    return str(model)


def _no_model(model: str | os.PathLike[str], why: str) -> str:
    bundled = ", ".join(sorted(path.name for path in MODELS.iterdir()))
    return (
        f"no model {str(model)!r}: it is neither a Hugging Face model directory, nor one of those that come with the "
        f"package ({bundled}), nor a hub id within reach ({why})"
    )


def _written(model: str) -> tuple[int, ...]:
    """When the files of a model directory were written."""
    folder = Path(model_source(model))
    return tuple(sorted(one.stat().st_mtime_ns for one in folder.iterdir())) if folder.is_dir() else ()


def weights_digest(model: str | os.PathLike[str]) -> str | None:
    """Short hash of the files with the weights of a model directory, by which it is told from others of its name; None for a hub id."""
    folder = Path(model_source(model))
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") or file.name == "adapter_config.json":
            digest.update(file.name.encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside, transformers draws no progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def reading(model: str) -> Iterator[None]:
    """Quietly read a model; what is not there is named.

    :raises AgentError: where there is none.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        with _without_bars():
            yield
    except (OSError, HFValidationError) as error:
        raise AgentError(_no_model(model, str(error))) from error
    except ModelError as error:
        raise AgentError(f"model {str(model)!r}: {error}") from error


@lru_cache(maxsize=4)
def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model; see :func:`model_source`.

    :raises ValueError: where there is none.
    """
    with reading(model):
        return open_tokenizer(model_source(model))


def own_device() -> str:
    """Where language models of this process compute: on its GPU, where it has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(model: str, dtype: str = "float32") -> Any:
    """The causal LM, ready to be read (no dropout), on the GPU where this process has one; see :func:`model_source`.

    :param dtype: of its weights; "auto": see :func:`_ready`.
    :raises ValueError: where there is none.
    """
    with reading(model):
        causal = open_causal(model_source(model), getattr(torch, dtype, dtype))
    return _ready(causal, dtype)


_in_use: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def load_frozen(model: str, dtype: str) -> Any:
    """:func:`load_model` for those who change no weights: they are in memory once, whoever else holds them."""
    name = (model_source(model), _written(model), dtype)
    found = _in_use.get(name)
    if found is None:
        _in_use[name] = found = load_model(model, dtype).requires_grad_(False)
    return found


@lru_cache(maxsize=2)
def load_encoder(model: str, dtype: str = "float32") -> Any:
    """The network below a model's head (an encoder, or a causal LM without its head), ready to be read.

    :param dtype: as of :func:`load_model`.
    :raises ValueError: where there is none.
    """
    with reading(model):
        network = open_network(model_source(model), getattr(torch, dtype, dtype))
    return _ready(network, dtype)


LARGE = 500_000_000
"""Weights from which on a model of dtype "auto" is left as it is stored: in float32 it would take twice the memory."""


def _ready(network: Any, dtype: str) -> Any:
    """On its device and without dropout; "auto" is float32, of a large model what its weights are stored in."""
    if dtype == "auto" and network.num_parameters() < LARGE:
        network = network.float()
    return network.to(own_device()).eval()


def question_texts(exams: ExamsView, agent: str) -> tuple[tuple[str, ...], ...]:
    """Question texts by exam and position.

    :param agent: who reads them, for the error.
    :raises AgentError: where the exams show none, or a question has none.
    """
    if exams.texts is None:
        raise AgentError(
            f"agent {agent!r} reads questions, and these exams show none: it needs recorded outcomes with question "
            "texts (ROIReasoning-TinyLM-v0, or `--table FILE`) and preview on"
        )
    if blank := sum(not text for texts in exams.texts for text in texts):
        raise AgentError(
            f"agent {agent!r} reads questions, and {blank} of these exams' have no text (of AIME the packaged recording has the number "
            "alone): choose other --dataset, or give a --table with all texts"
        )
    return exams.texts


def check_model(agent: Agent, model: str) -> None:
    """See that a model can announce the tiers of an agent's exams; a warning says where it was trained on others.

    :raises AgentError: where there are more tiers than levels.
    """
    tiers = agent.problem.num_tiers
    check_levels(tiers + 1)
    try:
        folder = Path(model_source(model))
    except AgentError:
        return  # that there is no model is said where it is read
    if (made := read_made_for(folder)) is not None:
        warn_of_others(f"model {str(model)!r}", agent.relies_on, made, exams_of(agent.problem))
    elif (folder / "mcft.json").exists() and tiers + 1 < len(LEVEL_TAGS):
        warnings.warn(
            f"model {str(model)!r} was taught {len(LEVEL_TAGS) - 1} levels and the refusal Level-{REFUSED}; these exams have {tiers} tier(s), so "
            f"its Level-{tiers} is read as the refusal",
            OtherExams,
            stacklevel=3,
        )


class ExamPrompts:
    """The decision prompts of a batch of exams.

    :param encoder: of the model's tokenizer.
    :param exams: with their texts.
    :param agent: its name, for the error.
    :raises ValueError: where the exams have no texts.
    """

    def __init__(self, encoder: PromptEncoder, exams: ExamsView, agent: str = "llm") -> None:
        rows = question_texts(exams, agent)
        self._encoder = encoder
        self._num_tasks = len(rows[0]) if rows else 0
        flat = [text for texts in rows for text in texts]
        self._questions = encoder.questions(flat).reshape(len(rows), self._num_tasks, -1)

    @property
    def question_width(self) -> int:
        """Width of the first part of the encoded prompts."""
        return int(self._questions.shape[2])

    def of(self, view: DecisionView, widths: tuple[int, int] | None = None) -> Ids:
        """(D, sum of widths) encoded prompts of D decisions; default: as wide as they need."""
        states = self._encoder.states(view.remaining, self._num_tasks - view.position)
        questions = self._questions[view.exam, view.position]
        return joined(questions, states, widths or (self.question_width, states.shape[1]))


class LMPolicy(nn.Module):
    """The distribution over actions that a causal LM gives to the level tags, and a value of its last hidden state.

    Stands in for :class:`agents.rllib.networks.PolicyNetwork` without memory; observations are encoded prompts. Dropout is off,
    in training as well: the policy that learns is the one that acted.

    :param model: see :func:`model_source`.
    :param actions: number of actions, skip included.
    :param question_width: of the encoded prompts' first part.
    :param critic: whether a value is learned.
    :param lora: rank of LoRA on all linear layers but the head; 0: all weights are trained.
    :param layers: number of last layers that LoRA is on, so that gradients end above the others; 0: all.
    :param keep: whether what the layers below those make of a prompt is kept (:mod:`agents.llm.decisions.lower_layers`).
    :param dtype: of the model's weights; LoRA's and the critic's are float32 always.
    :param recompute: see :func:`agents.llm.decisions.tag_logits.last_hidden`.
    :param threads: of the CPU that training computes on.
    :param temperature: of the distribution that acts and learns: above 1 an over-confident model explores.
    :param seed: of the new weights (the global generator is left alone).
    """

    memory = 0

    def __init__(
        self,
        model: str,
        actions: int,
        question_width: int = 0,
        *,
        critic: bool = False,
        lora: int = 0,
        layers: int = 0,
        keep: bool = True,
        dtype: str = "float32",
        recompute: bool = False,
        threads: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if layers and not lora:
            raise ValueError(f"layers={layers} says where LoRA is: give its rank, lora=16")
        self.temperature, self.threads = temperature, threads
        self.question_width, self.recompute, self.lora = question_width, recompute, lora
        self.tags = action_tags(load_tokenizer(model), actions)
        causal = load_model(model, dtype) if not lora else self._with_own_modules(load_frozen(model, dtype))
        shape_of(causal)  # refuses others before any work
        kept(causal)  # found out while the model is bare, as the former
        # Not config.hidden_size: OPT's last states may have another width than its layers.
        hidden = int(causal.get_output_embeddings().weight.shape[1])
        first = _first_trained(causal, layers) if lora else 0
        self.lower = None
        if keep and first:
            shared = PromptEncoder(load_tokenizer(model), levels=actions).shared
            self.lower = LowerLayers(causal, first, shared, readings_of(model, _written(model), dtype, first))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            self.lm = _with_lora(causal, lora, first) if lora else causal
            self.critic = nn.Linear(hidden, 1).to(causal.device) if critic else None
        if self.critic is not None:
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        # By name: a frozen copy (the reference of a divergence) has a state as well.
        self._learned = frozenset(name for name, weight in self.named_parameters() if weight.requires_grad)
        self.train(False)

    def _with_own_modules(self, whole: Any) -> Any:
        """A model of the same weights, for LoRA to be put into."""
        self._holds = [whole]  # as long as this lives; in a list, or it were a module of this one
        return copy.deepcopy(whole, {id(weight): weight for weight in (*whole.parameters(), *whole.buffers())})

    @property
    def causal(self) -> Any:
        """The model of Hugging Face, LoRA's layers inside."""
        return self.lm.get_base_model() if self.lora else self.lm

    def train(self, mode: bool = True) -> LMPolicy:
        """Never: see the class."""
        return super().train(False)

    def start(self, size: int) -> torch.Tensor:
        """(size, 0): no memory."""
        return torch.zeros(size, 0)

    def forward(
        self, observations: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """As :meth:`agents.rllib.networks.PolicyNetwork.forward`.

        :param observations: (B, width) int32 encoded prompts.
        """
        logits, values = self.heads(observations.cpu().numpy(), self.question_width)
        return logits / self.temperature, values, state

    def heads(self, prompts: Ids, question_width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The model's own logits (B, actions) of encoded prompts (B, width), and values (B,) or None."""
        lower = self.lower if self.lower is not None and self.lower.reads(prompts) else None
        states, shared = (None, None) if lower is None else (lower.hidden_states, lower.shared)
        hidden = last_hidden(
            self.causal, prompts, question_width, recompute=self.recompute, states=states, shared=shared
        )
        logits = tag_head(self.causal, hidden, self.tags)
        return logits, None if self.critic is None else self.critic(hidden.float()).squeeze(-1)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Inside, the model is what it was before LoRA."""
        with self.lm.disable_adapter():
            yield

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """What is trained, by name: all weights, or LoRA's; bfloat16 as its bits (uint16), which NumPy has no type for."""
        return {name: _array(weight) for name, weight in self.named_parameters() if name in self._learned}

    def set_weights(self, given: dict[str, npt.NDArray[Any]]) -> None:
        """Take what :meth:`weights` gave; the critic's may be missing.

        :raises ValueError: for other names or shapes (another model).
        """
        own = {name: weight for name, weight in self.named_parameters() if name in self._learned}
        missing = {name for name in own.keys() - given.keys() if not name.startswith("critic.")}
        if missing or (unknown := given.keys() - own.keys()):
            raise ValueError(f"weights of another model: {sorted(missing or unknown)[:3]} do not fit")
        with torch.no_grad():
            for name, array in given.items():
                value = torch.from_numpy(array.copy())
                value = value.view(torch.bfloat16) if value.dtype == torch.uint16 else value
                if value.shape != own[name].shape:
                    raise ValueError(f"weights of another model: {name} is {tuple(value.shape)}")
                own[name].copy_(value)

    def save(self, folder: Path, model: str) -> None:
        """Write a model directory of bfloat16 weights, LoRA's merged in, with the tokenizer of ``model``."""
        merged = copy.deepcopy(self.lm).merge_and_unload() if self.lora else copy.deepcopy(self.lm)
        with _without_bars(), writing(folder):
            merged.to(torch.bfloat16).save_pretrained(folder)
            load_tokenizer(model).save_pretrained(folder)


def _first_trained(causal: Any, layers: int) -> int:
    """Number of the first of so many last layers; 0 for 0, which are all."""
    count = int(causal.config.get_text_config().num_hidden_layers)
    if layers > count:
        raise ValueError(f"layers={layers}: the model has {count}")
    return count - layers if layers else 0


def _with_lora(causal: Any, rank: int, first: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    # A module of a layer has the layer's number in its name.
    below = [
        name
        for name, module in causal.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (number := re.search(r"\.(\d+)\.", name))
        and int(number[1]) < first
    ]
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", exclude_modules=below or None
    )
    with quiet_peft():
        return get_peft_model(causal, settings)


def _array(weight: torch.Tensor) -> npt.NDArray[Any]:
    weight = weight.detach().cpu()
    return (weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight).numpy().copy()
