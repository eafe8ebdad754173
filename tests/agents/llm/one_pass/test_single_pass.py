"""Token-level RL of exams that are written in one pass: the same GRPO, over the tokens of transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [llm]")
pytest.importorskip("ray", reason="needs the extra [rllib]")

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing

import agents  # noqa: F401 - registers
from agents.base import load_agent, make_agent, public_problem, save_agent
from agents.llm.reinforcement import RARLAgent
from agents.playing import TrainingExams, evaluate
from agents.rllib.algorithm import module_weights
from agents.rllib.modules import SEQUENCE, WRITTEN
from agents.rllib.named import make_config
from agents.rllib.single_pass import TranscriptRollout
from agents.rllib.training import LocalRun, train_rllib
from roi_env.exams.exam import draw_exams
from tests.agents.llm.exams import three_tier_spec, worded_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

SMALL: dict[str, Any] = {"exams": 32, "minibatch": 16, "group": 4, "steps": 1500, "lr": 1e-3}
SPEC = three_tier_spec(budget=40)


def run_of(model: Path, reward: str = "score", **params: Any) -> LocalRun:
    spec = three_tier_spec(budget=40, reward=reward)
    return LocalRun(make_config("rarl", spec, seed=1, exam_seed=2, params={**SMALL, "model": str(model), **params}))


def agent_of(model: Path, **params: Any) -> RARLAgent:
    made = make_agent("rarl", public_problem(SPEC), **{**SMALL, "model": str(model), **params})
    assert isinstance(made, RARLAgent)
    return made


@pytest.mark.parametrize(
    "options", [{}, {"lora": 2, "temperature": 1.5, "budgets": [0.5, 1.0]}, {"dtype": "bfloat16", "recompute": True}]
)
def test_learner_and_runner_agree_on_the_tokens_log_probabilities(options: dict[str, Any], exam_model: Path) -> None:
    run = run_of(exam_model, **options)
    run.train()
    run.runner.module.set_state(module_weights(run.learner_group))
    rollout = run.sample()
    learner = run.learner_group._learner
    assert learner is not None
    (batch,) = run.config.batches(rollout)
    parts = list(learner._create_iterator_if_necessary(training_data=TrainingData(batch=batch), minibatch_size=16))
    assert len(parts) == 2
    seen = 0
    for part in parts:
        data = part.policy_batches[DEFAULT_MODULE_ID]
        with torch.no_grad():
            out = learner.module[DEFAULT_MODULE_ID].forward_train(data)
        taken = learner._taken(data, out)
        tolerance = 0.2 if "dtype" in options else 2e-5  # read in another order: bfloat16 rounds elsewhere
        np.testing.assert_allclose(taken.logp, taken.old_logp, atol=tolerance)
        assert len(data[WRITTEN]) == 16
        assert taken.sequence.unique().tolist() == list(range(16))
        seen += len(taken.logp)
    # The prompt is no part of the loss: what is in it was generated, token for token.
    assert seen == rollout.steps == rollout.tokens.sum()


def test_groups_are_complete_and_the_driver_owns_the_exams(exam_model: Path) -> None:
    run, taken = run_of(exam_model, budgets=[0.5, 1.0]), []
    for first in (0, 8):
        assert run.next_exam == first
        rollout = run.sample()
        exams, count = np.unique(rollout.exam_ids, return_counts=True)
        assert exams.tolist() == list(range(first, first + 8))
        assert (count == 4).all()
        half = rollout.tokens[rollout.exam_ids % 2 == 0].sum(1)
        assert half.max() <= 20 < rollout.tokens.sum(1).max() <= 40
        for exam in exams:
            members = rollout.rows[rollout.exam_ids == exam]
            width = run.runner.observer.width
            assert len(np.unique(members[:, :width], axis=0)) == 1, "one prompt a group"
            assert len(np.unique(members[:, width:], axis=0)) > 1, "members write differently"
        taken.append(rollout)
        run.train()
    again = run_of(exam_model, budgets=[0.5, 1.0])
    np.testing.assert_array_equal(again.sample().rows, taken[0].rows)


def by_hand(run: LocalRun, advantage: str) -> tuple[TranscriptRollout, dict[str, Any]]:
    """Two groups of two exams of two problems, budget 3."""
    run.config.advantage, run.config.standardise = advantage, False  # type: ignore[attr-defined]
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    problem = np.array([[0, 1, -1], [0, 0, 0], [0, 1, 1], [0, 1, -1]])
    reached = np.array([[True, True], [True, False], [True, True], [True, True]])
    zeros = np.zeros((4, 2), np.int64)
    rollout = TranscriptRollout(
        exam_ids=np.array([7, 7, 9, 9]),
        rows=np.zeros((4, 5), np.int32),
        logp=np.log(np.full((4, 3), 0.5, np.float32)),
        problem=problem,
        rewards=rewards,
        scores=rewards,
        tokens=zeros + 1,
        actions=zeros,
        reached=reached,
        overspent=~reached,
        level_match=reached,
        malformed=~reached,
    )
    (batch,) = run.config.batches(rollout)
    return rollout, dict(batch.policy_batches[DEFAULT_MODULE_ID])


def test_tokens_get_their_problems_advantage(exam_model: Path) -> None:
    run = run_of(exam_model)
    _, batch = by_hand(run, "dr")
    expected = [[0.5, 0.5, 0], [-0.5, -0.5, -0.5], [0.5, 0.5, 0.5], [-0.5, -0.5, 0]]
    np.testing.assert_allclose(batch[Postprocessing.ADVANTAGES], expected)
    # By return-to-go: what was earned before a problem does not count for its tokens.
    _, batch = by_hand(run, "rtg")
    expected = [[1, 0, 0], [-1, -1, -1], [1, 0, 0], [-1, 0, 0]]
    np.testing.assert_allclose(batch[Postprocessing.ADVANTAGES], expected)


def test_the_loss_is_that_of_dr_grpo_over_written_tokens_alone(exam_model: Path) -> None:
    run = run_of(exam_model, kl_coeff=0.25, clip=0.2, clip_high=0.3)
    rollout, batch = by_hand(run, "dr")
    learner, rng = run.learner_group._learner, np.random.default_rng(0)
    assert learner is not None
    written = rollout.problem >= 0
    new, reference = (np.log(rng.uniform(0.2, 0.9, written.sum())).astype(np.float32) for _ in range(2))
    tensors = {name: torch.from_numpy(np.asarray(batch[name])) for name in (WRITTEN, Columns.ACTION_LOGP, SEQUENCE)}
    tensors[Postprocessing.ADVANTAGES] = torch.from_numpy(batch[Postprocessing.ADVANTAGES])

    class Reference:
        def forward_train(self, _: Any) -> dict[str, torch.Tensor]:
            return {Columns.ACTION_LOGP: torch.from_numpy(reference)}

    learner._reference = Reference()
    out = {Columns.ACTION_LOGP: torch.from_numpy(new), "entropy": torch.zeros(len(new))}
    found = learner.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=run.config, batch=tensors, fwd_out=out)
    total = 0.0
    advantage = [0.5] * 2 + [-0.5] * 3 + [0.5] * 3 + [-0.5] * 2
    for k in range(10):
        ratio = np.exp(new[k]) / 0.5
        gap = reference[k] - new[k]
        total -= min(ratio * advantage[k], np.clip(ratio, 0.8, 1.3) * advantage[k])
        total += 0.25 * (np.exp(gap) - gap - 1)
    # Dr. GRPO: not by the tokens that there are, but by the tokens that there could be.
    assert float(found) == pytest.approx(total / (4 * SPEC.budget), rel=1e-5)


def test_learning_pays(exam_model: Path) -> None:
    batch = draw_exams(SPEC, 3, np.arange(60))
    before = evaluate(agent_of(exam_model), batch)
    agent = agent_of(exam_model, steps=12_000, lr=3e-3, advantage="rtg")
    scores: list[float] = []
    agent.train(TrainingExams(SPEC, 0), 0, lambda progress: scores.append(progress.score))
    after = evaluate(agent, batch)
    assert after.score.mean() > before.score.mean() + 0.5
    assert np.mean(scores[-3:]) > np.mean(scores[:3])


def test_the_rational_reward_asks_for_the_level_that_was_spent(exam_model: Path) -> None:
    score, rational = (run_of(exam_model, reward=name).sample() for name in ("score", "rational"))
    np.testing.assert_array_equal(score.rows, rational.rows)
    np.testing.assert_array_equal(score.rewards, score.scores)
    np.testing.assert_array_equal(rational.rewards, rational.scores * rational.level_match)
    assert 0 < rational.rewards.sum() < score.rewards.sum()


def test_a_continued_run_gives_what_an_uninterrupted_one_gives(exam_model: Path, tmp_path: Path) -> None:
    practice, weights = TrainingExams(SPEC, 0), []
    for interrupted in (False, True):
        agent = agent_of(exam_model, kl_coeff=0.1, steps=2500)
        checkpoint = tmp_path / f"checkpoint-{interrupted}"

        def stop(progress: Any, interrupted: bool = interrupted) -> None:
            if interrupted and progress.steps < 1500:
                raise KeyboardInterrupt

        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                agent.train(practice, 0, stop, checkpoint)
            agent = agent_of(exam_model, kl_coeff=0.1, steps=2500)
        agent.train(practice, 0, None, checkpoint)
        weights.append(agent.learned())
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])


def test_what_was_trained_is_saved_loaded_and_a_model_directory(exam_model: Path, tmp_path: Path) -> None:
    agent = agent_of(exam_model, steps=600, lr=3e-3)
    agent.train(TrainingExams(SPEC, 0), 0)
    batch = draw_exams(SPEC, 0, np.arange(10))
    save_agent(agent, tmp_path / "agent.npz")
    loaded = load_agent(tmp_path / "agent.npz", public_problem(SPEC))
    np.testing.assert_array_equal(evaluate(agent, batch).value, evaluate(loaded, batch).value)
    agent.export(tmp_path)
    named = make_agent(f"exam-taker(model={str(tmp_path / 'model')!r})", public_problem(SPEC))
    found, expected = evaluate(named, batch), evaluate(agent, batch)
    assert abs(found.score.mean() - expected.score.mean()) < 0.5  # bfloat16 weights


def test_settings_that_do_not_fit_are_refused(exam_model: Path) -> None:
    with pytest.raises(ValueError, match="whole groups"):
        run_of(exam_model, minibatch=6, exams=24)
    with pytest.raises(ValueError, match="other tiers"):
        run_of(exam_model, reward="refusal_bonus(0.1)").train()
    config = make_config("rarl", worded_spec(), seed=0, exam_seed=0, params={**SMALL, "model": str(exam_model)})
    with pytest.raises(ValueError, match="three of them"):
        list(train_rllib(config, 100))
