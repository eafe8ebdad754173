"""A model directory as an agent: its choices are those of the model's own tag distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [llm]")

from transformers import AutoModelForCausalLM, AutoTokenizer

import agents  # noqa: F401 - registers
from agents.base import DecisionView, exams_view, make_agent, public_problem
from agents.llm.decisions.tag_logits import action_tags
from agents.llm.small_model.tokenizer import ASSISTANT, END, USER
from agents.playing import evaluate_exact, evaluate_sampled
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from tests.agents.llm.exams import worded_spec
from tests.agents.llm.forms import decision_prompt


def test_probabilities_are_the_models(model_folder: Path) -> None:
    spec = worded_spec()
    batch, problem = draw_exams(spec, 0, np.arange(6)), public_problem(spec)
    exams = exams_view(batch, problem)
    assert exams.texts is not None
    exam, remaining = np.repeat(np.arange(6), 5), np.tile([1, 4, 9, 30, 60], 6)
    position, zeros = exam % 4, np.zeros(30, np.int64)
    view = DecisionView(problem, exam, position, remaining, zeros, zeros, zeros.astype(bool), batch.groups)
    agent = make_agent(f"llm(model={str(model_folder)!r},greedy=False,temperature=2.0)", problem)
    probs, _ = agent.act(view, agent.start(exams))
    greedy = make_agent(f"llm(model={str(model_folder)!r})", problem)
    best, _ = greedy.act(view, greedy.start(exams))
    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_folder),
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
    )
    tags = action_tags(tokenizer, 3)
    for d in range(30):
        prompt = decision_prompt(exams.texts[exam[d]][position[d]], int(remaining[d]), int(4 - position[d]))
        ids = tokenizer(USER + prompt + END + ASSISTANT, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1, tags].double().numpy()
        logits[~view.mask[d]] = -np.inf
        expected = np.exp((logits - logits.max()) / 2)
        np.testing.assert_allclose(probs[d], expected / expected.sum(), atol=1e-5)
        assert best[d, logits.argmax()] == 1
    assert (view.mask.sum(1) == 1).any()
    assert len(set(best.argmax(1))) > 1


def test_exact_and_sampled_evaluation_agree(model_folder: Path) -> None:
    spec = worded_spec()
    batch = draw_exams(spec, 1, np.arange(20))
    agent = make_agent(f"llm(model={str(model_folder)!r},greedy=False,bits=4)", public_problem(spec))
    exact, sampled = evaluate_exact(agent, batch), evaluate_sampled(agent, batch, replicates=200)
    error = np.sqrt((sampled.noise**2).mean() / 20)
    assert exact.score.mean() == pytest.approx(sampled.score.mean(), abs=5 * error + 1e-9)
    assert 0 < exact.score.mean() < 4


def test_exams_without_texts_are_refused(model_folder: Path) -> None:
    text = f"llm(model={str(model_folder)!r})"
    for spec in (exam_spec("signal"), worded_spec(preview=False)):
        with pytest.raises(ValueError, match="question texts"):
            evaluate_exact(make_agent(text, public_problem(spec)), draw_exams(spec, 0, np.arange(2)))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    spec = worded_spec()
    agent = make_agent(f"llm(model={str(tmp_path / 'nowhere')!r})", public_problem(spec))
    with pytest.raises(ValueError, match="nowhere"):
        evaluate_exact(agent, draw_exams(spec, 0, np.arange(2)))
