"""A causal LM as a policy over tiers: its own distribution over the level tags, and a value head where one is learned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from agents.base import DecisionView, ExamsView
from agents.llm.decisions import Ids, PromptEncoder, joined

MODELS: Final = Path(__file__).parent / "models"
"""Models that come with the package, by name."""


def model_source(model: str | os.PathLike[str]) -> str:
    """Where a model lies: a directory, the name of one that comes with the package, or else a hub id."""
    bundled = MODELS / model
    return str(bundled) if not Path(model).is_dir() and bundled.is_dir() else str(model)


@contextmanager
def _reading(model: str) -> Iterator[None]:
    """Quietly read a model; what is not there is named.

    :raises ValueError: where there is none.
    """
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, HFValidationError) as error:
        bundled = ", ".join(sorted(path.name for path in MODELS.iterdir()))
        raise ValueError(
            f"no model {model!r}: it is neither a Hugging Face model directory, nor one of those that come with the "
            f"package ({bundled}), nor a hub id within reach ({error})"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()


@lru_cache(maxsize=4)
def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model; see :func:`model_source`.

    :raises ValueError: where there is none.
    """
    from transformers import AutoTokenizer

    with _reading(model):
        return AutoTokenizer.from_pretrained(model_source(model))


def load_model(model: str, dtype: str = "float32") -> Any:
    """The causal LM, ready to be read (no dropout); see :func:`model_source`.

    :raises ValueError: where there is none.
    """
    from transformers import AutoModelForCausalLM

    with _reading(model):
        return AutoModelForCausalLM.from_pretrained(model_source(model), dtype=getattr(torch, dtype)).eval()


class ExamPrompts:
    """The decision prompts of a batch of exams.

    :param encoder: of the model's tokenizer.
    :param exams: with their texts.
    :param agent: its name, for the error.
    :raises ValueError: where the exams have no texts.
    """

    def __init__(self, encoder: PromptEncoder, exams: ExamsView, agent: str = "llm") -> None:
        if exams.texts is None:
            raise ValueError(
                f"agent {agent!r} reads questions, and these exams show none: it needs recorded outcomes with question "
                "texts (ROIReasoning-TinyLM-v0, or `--table FILE`) and preview on"
            )
        self._encoder = encoder
        self._num_tasks = len(exams.texts[0]) if exams.texts else 0
        flat = [text for texts in exams.texts for text in texts]
        self._questions = encoder.questions(flat).reshape(len(exams.texts), self._num_tasks, -1)

    @property
    def question_width(self) -> int:
        """Width of the first part of the encoded prompts."""
        return int(self._questions.shape[2])

    def of(self, view: DecisionView, widths: tuple[int, int] | None = None) -> Ids:
        """(D, sum of widths) encoded prompts of D decisions; default: as wide as they need."""
        states = self._encoder.states(view.remaining, self._num_tasks - view.position)
        questions = self._questions[view.exam, view.position]
        return joined(questions, states, widths or (self.question_width, states.shape[1]))
