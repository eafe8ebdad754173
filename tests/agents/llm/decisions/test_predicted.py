"""Planners on a language model's predictions: the laws are those of the levels, nothing else is known of a task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra [llm]")

import agents  # noqa: F401 - registers
from agents.base import exams_view, make_agent, public_problem
from agents.llm.decisions.predicted import PLANNERS, PredictedLevels, predicted_laws
from agents.llm.mcft.self_knowledge import tag_probabilities
from agents.playing import evaluate_exact
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from tests.agents.llm.exams import worded_spec


def test_laws_of_the_papers_levels() -> None:
    """Level-0 (centroid 128) with .5, Level-2 (768) with .25, refusal with .25; edges 256, 512, 1024."""
    laws = predicted_laws(np.array([[0.5, 0.0, 0.25, 0.25]]), np.array([256, 512, 1024]))
    assert laws.success_probability.tolist() == [[0.5, 0.5, 0.75]]
    assert laws.expected_cost.tolist() == [[64 + 128, 64 + 256, 64 + 192 + 256]]
    cost, prob, success = laws.cell(0, 2)
    assert (cost.tolist(), prob.tolist(), success.tolist()) == (
        [128, 768, 1024],
        [0.5, 0.25, 0.25],
        [0.5, 0.25, 0.0],
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_laws_are_laws(edges: list[int], weights: list[float]) -> None:
    """Probabilities sum to one, costs grow inside a cell, dearer tiers solve no less."""
    share = np.array(weights[: len(edges) + 1]) + 0.01
    laws = predicted_laws((share / share.sum())[None], np.array(edges))
    success = laws.success_probability[0]
    assert (np.diff(success) >= -1e-12).all()
    assert success[-1] == pytest.approx(1 - share[-1] / share.sum(), abs=1e-3)
    for tier in range(len(edges)):
        cost, prob, right = laws.cell(0, tier)
        assert (np.diff(cost) > 0).all()
        assert cost[0] >= 1
        assert cost[-1] <= edges[tier]
        assert prob.sum() == pytest.approx(1)
        assert (right <= prob).all()


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_exam_is_planned_alone(planner: str, model_folder: Path) -> None:
    """Other exams of the batch do not change what is played: ties included (an untrained model says the same everywhere)."""
    batch = draw_exams(worded_spec(), 0, np.arange(4))
    agent = make_agent(f"predicted-levels(planner={planner!r},model={str(model_folder)!r})", public_problem(batch.spec))
    scores = evaluate_exact(agent, batch).score
    for exam in range(4):
        alone = evaluate_exact(agent, batch.take(slice(exam, exam + 1)))
        assert alone.score[0] == pytest.approx(scores[exam], abs=1e-12)


def test_published_beliefs_are_not_needed(model_folder: Path) -> None:
    batch = draw_exams(worded_spec(beliefs="none"), 0, np.arange(4))
    agent = make_agent(f"predicted-levels(model={str(model_folder)!r})", public_problem(batch.spec))
    assert 0 < evaluate_exact(agent, batch).score.mean() < 4


def test_predictions_are_the_models_at_ample_budget(model_folder: Path) -> None:
    from agents.llm.decisions.policy import load_model, load_tokenizer
    from agents.llm.prompts import AMPLE

    batch = draw_exams(worded_spec(), 0, np.arange(3))
    problem = public_problem(batch.spec)
    texts = [text for row in exams_view(batch, problem).texts or () for text in row]
    found = PredictedLevels(problem, model=str(model_folder)).probabilities(texts)
    folder = str(model_folder)
    whole = tag_probabilities(load_model(folder), load_tokenizer(folder), texts, *AMPLE)  # four levels: Level-3 refuses
    solving = np.delete(whole, 3, 1)[:, :2]
    np.testing.assert_allclose(
        found[:, :2] / found[:, :2].sum(1, keepdims=True), solving / solving.sum(1, keepdims=True), rtol=1e-4
    )
    np.testing.assert_allclose(found.sum(1), 1)


def test_what_it_cannot_do_is_refused() -> None:
    problem = public_problem(exam_spec("signal"))
    with pytest.raises(ValueError, match="planner must be one of"):
        make_agent("predicted-levels(planner='dual-descent')", problem)
    with pytest.raises(ValueError, match="question texts"):
        evaluate_exact(make_agent("predicted-levels", problem), draw_exams(exam_spec("signal"), 0, np.arange(2)))
