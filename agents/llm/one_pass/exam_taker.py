"""A language model that takes exams in one pass: everything in one prompt, everything in one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import torch

    from agents.llm.decisions.agent import loaded
    from agents.llm.decisions.policy import check_model, load_tokenizer, question_texts
    from agents.llm.one_pass.transcripts import BATCH, Reader, exam_ids, generate, turn_ends
    from agents.llm.prompts import NUM_LEVELS, STRATEGIES
    from agents.rllib.networks import on_threads
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"language models need more packages ({error}): pip install 'roi-reasoning[llm]'"
    ) from error

from agents.base import ExamsView, Problem
from agents.one_pass import ExamTaker, Papers
from agents.parameters import Count, NonNegative
from roi_env.answering.grading import load_grader


def write_exams(
    model: Any,
    tokenizer: Any,
    exams: ExamsView,
    numbers: npt.NDArray[np.float64],
    *,
    name: str,
    strategy: str = "taught",
    temperature: float,
    batch: int = BATCH,
) -> Papers:
    """Let a causal LM take exams, once each; see :meth:`agents.one_pass.ExamTaker.take`.

    :raises ValueError: where the exams show no texts, or have other than three tiers.
    """
    texts, budget = exam_texts(exams, name), exams.problem.budget
    distinct = {row: number for number, row in enumerate(dict.fromkeys(texts))}
    prompts = [exam_ids(tokenizer, row, budget, strategy) for row in distinct]
    place = np.array([distinct[row] for row in texts])
    stops = turn_ends(model, tokenizer)
    with torch.inference_mode(), on_threads(1):
        written = generate(model, prompts, place, numbers, stops=stops, temperature=temperature, batch=batch)
    return Reader(tokenizer, stops).papers(written.ids, exams.problem.num_tasks)


def exam_texts(exams: ExamsView, name: str) -> tuple[tuple[str, ...], ...]:
    """Question texts by exam and position.

    :raises ValueError: see :func:`write_exams`.
    """
    texts = question_texts(exams, name)
    if exams.problem.num_tiers != NUM_LEVELS - 1:
        raise ValueError(
            f"agent {name!r} announces {NUM_LEVELS - 1} solving levels, and these exams have {exams.problem.num_tiers} "
            "tiers: choose three of them (tiers=[...])"
        )
    return texts


class LMExamTaker(ExamTaker):
    """A model directory (or hub id) as it is; nothing is trained here.

    :param model: see :func:`agents.llm.decisions.policy.model_source`.
    :param strategy: what the prompt says, see :data:`agents.llm.prompts.STRATEGIES`.
    :param temperature: of sampling; 0: the most likely token.
    :param replicates: how often an evaluation lets it take every exam, at most.
    :param grader: who judges, see :mod:`roi_env.answering.grading`.
    :param batch: rows generated together.
    """

    name = "exam-taker"

    def __init__(
        self,
        problem: Problem,
        *,
        model: str = "tinylm-mcft",
        strategy: str = "taught",
        temperature: NonNegative = 0.7,
        replicates: Count = 4,
        grader: str = "exact",
        batch: Count = BATCH,
    ) -> None:
        super().__init__(problem)
        if temperature < 0 or replicates < 1 or batch < 1:
            raise ValueError(
                f"temperature must be >= 0, replicates and batch >= 1, got {temperature}, {replicates} and {batch}"
            )
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {list(STRATEGIES)}, got {strategy!r}")
        check_model(self, model)
        load_grader(grader)  # refuses others
        self._params: dict[str, Any] = {
            "model": model,
            "strategy": strategy,
            "temperature": temperature,
            "replicates": replicates,
            "grader": grader,
            "batch": batch,
        }
        # The most likely tokens are the same every time.
        self.replicates = replicates if temperature else 1
        self.grader = grader

    def params(self) -> dict[str, Any]:
        """Constructor parameters."""
        return dict(self._params)

    def take(self, exams: ExamsView, numbers: npt.NDArray[np.float64]) -> Papers:
        """See :meth:`ExamTaker.take`."""
        model = self._params["model"]
        how = {name: self._params[name] for name in ("strategy", "temperature", "batch")}
        return write_exams(loaded(model), load_tokenizer(model), exams, numbers, name=self.name, **how)
