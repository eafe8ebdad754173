"""Training: on-policy, reproducible here and with runners, whole groups, checkpoints."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData

from agents.base import load_agent, make_agent, public_problem, save_agent
from agents.neural import Progress
from agents.playing import TrainingExams, evaluate, evaluate_exact
from agents.rllib import losses
from agents.rllib.algorithm import ExamSettings, module_weights
from agents.rllib.grpo import exam_values
from agents.rllib.learners import minibatch_order
from agents.rllib.modules import SEQUENCE
from agents.rllib.named import agent_of, build_algorithm, make_config
from agents.rllib.training import LocalRun, run
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.references import oracle_values, references

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

SPEC = exam_spec("heavy", num_tasks=4, budget=0.15)
SMALL: dict[str, Any] = {"steps": 300, "exams": 64, "minibatch": 16, "epochs": 2, "width": 8}
NAMES = ["ppo", "grpo"]


def config_of(name: str, **params: Any) -> ExamSettings:
    return make_config(name, SPEC, seed=1, exam_seed=2, params=SMALL | params)


def weights_after(training: Any, steps: int = SMALL["steps"], checkpoint: Path | None = None) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for weights, _ in run(training, steps, checkpoint):  # noqa: B007 - the last ones
        pass
    return weights


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "memory"), [("ppo", 0), ("grpo", 0), ("ppo", 4), ("grpo", 4)])
def test_learner_and_runner_agree_on_log_probabilities(name: str, memory: int) -> None:
    training = LocalRun(config_of(name, memory=memory))
    for _ in range(2):
        training.train()
    training.runner.module.set_state(module_weights(training.learner_group))
    rollout = training.sample()
    assert len(set(rollout.length)) > 1
    learner = training.learner_group._learner
    (batch,) = training.config.batches(rollout)
    parts = list(learner._create_iterator_if_necessary(training_data=TrainingData(batch=batch), minibatch_size=16))
    assert len(parts) == 4
    for part in parts:
        data = part.policy_batches[DEFAULT_MODULE_ID]
        with torch.no_grad():
            out = learner.module[DEFAULT_MODULE_ID].forward_train(data)
        logp = out[Columns.ACTION_DIST_INPUTS].gather(1, data[Columns.ACTIONS][:, None]).squeeze(1)
        np.testing.assert_allclose(logp, data[Columns.ACTION_LOGP], atol=2e-6)
        if name == "ppo":
            values = learner.module[DEFAULT_MODULE_ID].compute_values(data)
            expected = data["value_targets"]
            assert values.shape == expected.shape


def test_minibatches_are_whole_exams_each_once_an_epoch() -> None:
    training = LocalRun(config_of("grpo"))
    rollout = training.sample()
    (batch,) = training.config.batches(rollout)
    learner = training.learner_group._learner
    iterator = learner._create_iterator_if_necessary(
        training_data=TrainingData(batch=batch), minibatch_size=16, num_epochs=2
    )
    seen: list[bytes] = []
    for part in iterator:
        data = part.policy_batches[DEFAULT_MODULE_ID]
        sequence = data[SEQUENCE].numpy()
        assert sequence[0] == 0
        assert set(np.diff(sequence)) <= {0, 1}
        assert sequence[-1] == 15
        for i in range(16):
            seen.append(data[Columns.OBS]["observations"][sequence == i].numpy().tobytes())
    ends = np.cumsum(rollout.length)
    exams = [
        rollout.observations[end - length : end].tobytes() for end, length in zip(ends, rollout.length, strict=True)
    ]
    assert Counter(seen[:64]) == Counter(exams)
    assert Counter(seen[64:]) == Counter(exams)
    assert seen[:64] != seen[64:]


def test_minibatch_order_is_named() -> None:
    assert np.array_equal(minibatch_order(1, 2, 3, 0, 9), minibatch_order(1, 2, 3, 0, 9))
    assert not np.array_equal(minibatch_order(1, 2, 3, 0, 9), minibatch_order(1, 2, 3, 1, 9))


@pytest.mark.parametrize("shared", [False, True])
def test_groups_are_whole_and_new_in_every_iteration(shared: bool) -> None:
    config = config_of("grpo", group=8, shared_outcomes=shared)
    taken: Counter[tuple[int, int, int]] = Counter()
    for iteration in range(3):
        jobs = config.jobs(iteration * 8)
        assert [job.number for job in jobs] == list(range(len(jobs)))
        for job in jobs:
            taken.update(zip(job.exam_ids.tolist(), job.replicates.tolist(), job.members.tolist(), strict=True))
    expected = {(exam, 0 if shared else member, member) for exam in range(24) for member in range(8)}
    assert taken == Counter(expected)


def test_grpo_loss_against_the_formula() -> None:
    """One gradient step of the learner, computed again by hand from the same rollout."""
    config = config_of("grpo", minibatch=64, epochs=1, kl_coeff=0.3, entropy=0.02, advantage="dr", lr=0.03)
    config.grad_clip = None
    training = LocalRun(config)
    training.train()  # moves away from the reference, the policy of the first update
    reference = training.learner_group._learner._reference
    training.runner.module.set_state(module_weights(training.learner_group))
    rollout = training.sample()
    module = training.runner.module.network
    obs, mask = torch.from_numpy(rollout.observations), torch.from_numpy(rollout.mask)
    logits = losses.masked_log_softmax(module(obs, obs[:, :0])[0], mask)
    with torch.no_grad():
        start = losses.masked_log_softmax(reference.network(obs, obs[:, :0])[0], mask)
    advantage = torch.from_numpy(config.columns(rollout)["advantages"])
    logp = logits.gather(1, torch.from_numpy(rollout.actions)[:, None]).squeeze(1)
    ratio = (logp - torch.from_numpy(rollout.logp)).exp()
    entropy = -(logits.exp() * logits.masked_fill(~mask, 0)).sum(1)
    kl = (logits.exp() * (logits - start).masked_fill(~mask, 0)).sum(1)
    coefficient = 0.02 * (1 - training.steps / config.agent[1]["steps"])
    assert 0 < coefficient < 0.02
    (-ratio * advantage - coefficient * entropy + 0.3 * kl).mean().backward()
    learner = training.learner_group._learner
    (batch,) = config.batches(rollout)
    (part,) = learner._create_iterator_if_necessary(training_data=TrainingData(batch=batch), minibatch_size=64)
    out = learner.module.forward_train(part.policy_batches)
    loss = learner.compute_losses(fwd_out=out, batch=part.policy_batches)
    learner.compute_gradients(loss)
    theirs = dict(learner.module[DEFAULT_MODULE_ID].network.named_parameters())
    assert kl.mean() > 1e-5
    for key, parameter in module.named_parameters():
        np.testing.assert_allclose(theirs[key].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_known_values_of_exams() -> None:
    training = LocalRun(config_of("grpo"))
    rollout = training.sample()
    batch = draw_exams(SPEC, 2, rollout.exam_ids, rollout.replicates)
    np.testing.assert_allclose(exam_values("oracle", SPEC, 2, rollout), oracle_values(batch))
    exact = references(batch, law="published", replicates=1).optimum
    np.testing.assert_allclose(exam_values("optimum", SPEC, 2, rollout), exact, rtol=1e-9)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": "sequence"}, "sequence ratio"),
        ({"group": 1}, "at least 2"),
        ({"group": 7}, "whole groups"),
        ({"minibatch": 24}, "multiple of per_minibatch"),
        ({"advantage": "best"}, "advantage must be one of"),
        ({"kl": "k2"}, "kl must be one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("grpo", **params).validate()


def test_rllibs_own_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="training_seed"):
        config_of("ppo").debugging(seed=3).validate()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="algorithm must be"):
        make_config("a2c", SPEC, seed=0, exam_seed=0)
    with pytest.raises(ValueError, match="has no parameter"):
        make_config("ppo", SPEC, seed=0, exam_seed=0, params={"group": 8})
    with pytest.raises(ValueError, match="grpo: lr must be a finite number above 0, got -1"):
        make_config("grpo", SPEC, seed=0, exam_seed=0, params={"lr": -1})


def test_a_baseline_is_a_score() -> None:
    spec = exam_spec("signal", num_tasks=2, reward="rational")
    with pytest.raises(ValueError, match="is a score"):
        make_config("grpo", spec, seed=0, exam_seed=0, params={"baseline": "oracle"}).validate()
    latent = exam_spec("latent", num_tasks=2)
    with pytest.raises(ValueError, match="latent"):
        make_config("grpo", latent, seed=0, exam_seed=0, params={"baseline": "optimum"}).validate()


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    params = {"kl_coeff": 0.1} if name == "grpo" else {}
    whole = weights_after(LocalRun(config_of(name, **params)))
    path = tmp_path / "checkpoint"
    iterations = run(LocalRun(config_of(name, **params)), SMALL["steps"], path)
    next(iterations)
    iterations.close()
    assert same(weights_after(LocalRun(config_of(name, **params)), checkpoint=path), whole)
    # A finished run has nothing left to do, and its weights.
    assert same(weights_after(LocalRun(config_of(name, **params)), checkpoint=path), whole)
    with pytest.raises(ValueError, match="params differ"):
        weights_after(LocalRun(config_of(name, **params, lr=0.1)), checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a checkpoint"):
        weights_after(LocalRun(config_of(name, **params)), checkpoint=path)


def test_an_interruption_inside_an_update_leaves_the_last_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "checkpoint", config_of("ppo")
    training = LocalRun(config)
    iterations = run(training, SMALL["steps"], path)
    next(iterations)
    learner = training.learner_group._learner
    steps = 0
    original = learner.apply_gradients

    def interrupted(gradients: Any) -> None:
        nonlocal steps
        steps += 1
        original(gradients)
        if steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(learner, "apply_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iterations)
    continued = weights_after(LocalRun(config_of("ppo")), checkpoint=path)
    assert same(continued, weights_after(LocalRun(config_of("ppo"))))


@pytest.mark.parametrize("name", ["rllib-ppo", "rllib-grpo", "rllib-ppo-gru", "rllib-grpo-gru"])
def test_agents_train_save_and_load(name: str, tmp_path: Path) -> None:
    problem, practice = public_problem(SPEC), TrainingExams(SPEC, 0)
    agent = make_agent(name, problem, **SMALL)
    progress: list[Progress] = []
    agent.train(practice, 0, progress.append)  # type: ignore[call-arg]
    assert progress[-1].steps >= SMALL["steps"] > progress[-2].steps
    assert [p.updates for p in progress] == [8 * (i + 1) for i in range(len(progress))]
    assert all(a.cpu_seconds < b.cpu_seconds for a, b in pairwise(progress))
    batch = practice.batch(20, 1000)
    score = evaluate(agent, batch, replicates=4)
    assert score.mode == ("sampled" if name.endswith("gru") else "exact")
    save_agent(agent, tmp_path / "agent.npz")
    loaded = load_agent(tmp_path / "agent.npz", problem)
    assert np.array_equal(evaluate(loaded, batch, replicates=4).score, score.score)
    assert loaded.params() == agent.params()
    again = make_agent(name, problem, **SMALL)
    again.train(practice, 0)
    assert same(again.learned(), agent.learned())
    again.train(practice, 1)
    assert not same(again.learned(), agent.learned())


def test_evaluation_continues_a_memory_exam_by_exam() -> None:
    """The agent's own chunks against the runner's."""
    spec = exam_spec("latent", num_tasks=4, feedback="cost+correct")
    config = make_config("grpo", spec, seed=1, exam_seed=2, params=SMALL | {"memory": 4, "group": 2})
    training = LocalRun(config)
    training.train()
    agent = make_agent("rllib-grpo-gru", public_problem(spec), **SMALL, memory=4, group=2, greedy=False)
    agent.take_over(module_weights(training.learner_group))  # type: ignore[attr-defined]
    training.runner.module.set_state(module_weights(training.learner_group))
    rollout = training.sample()
    from agents.playing import rollout as play

    seen: list[Any] = []
    act = agent.act

    def spy(view: Any, state: Any) -> Any:
        # Force the runner's actions, so that both see the same exams.
        probs, state = act(view, state)
        seen.append((view.exam, probs))
        forced = np.zeros_like(probs)
        actions = rollout.by_exam(rollout.actions, 4)
        forced[np.arange(len(view)), actions[view.exam, view.position]] = 1
        return forced, state

    agent.act = spy  # type: ignore[method-assign]
    play(agent, draw_exams(spec, 2, rollout.exam_ids, rollout.replicates))
    logits = np.zeros((len(rollout), 4, rollout.logits.shape[1]))
    logits[rollout.reached(4)] = rollout.logits
    for position, (exam, probs) in enumerate(seen):
        np.testing.assert_allclose(probs, np.exp(logits[exam, position]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rllib-ppo", "rllib-grpo"])
def test_agents_learn(name: str) -> None:
    """Above what greedy rules reach, on exams of another key."""
    spec = exam_spec("signal", num_tasks=5)
    problem, practice = public_problem(spec), TrainingExams(spec, 0)
    agent = make_agent(name, problem, steps=30_000, exams=512, minibatch=64, lr=3e-3)
    agent.train(practice, 0)
    batch = draw_exams(spec, 0, np.arange(100))
    optimum = references(batch, replicates=1).optimum.mean()
    assert evaluate_exact(agent, batch).score.mean() > 0.95 * optimum
    assert evaluate_exact(make_agent("skip", problem), batch).score.mean() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("name", "runners"), [("ppo", 2), ("grpo", 0)])
def test_runners_change_nothing(name: str, runners: int) -> None:
    """Those on several nodes: tests/agents/rllib/test_cluster.py."""
    here = weights_after(LocalRun(config_of(name)))
    algorithm = build_algorithm(name, SPEC, seed=1, exam_seed=2, params=SMALL, runners=runners)
    # A mistake in a job is raised, not repeated, and nobody is the worse for it.
    job = dataclasses.replace(algorithm.config.jobs(0)[0], exam_ids=np.full(64, -1))
    with pytest.raises(ValueError, match="exam_ids"):
        algorithm._take([job])
    assert same(weights_after(algorithm), here)
    network = agent_of(algorithm).network().state_dict()
    assert same({k: v.numpy() for k, v in network.items()}, {k.removeprefix("network."): v for k, v in here.items()})
    algorithm.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_runners_change_nothing_for_a_language_model() -> None:
    """Here it acts with the module that learns, there with a copy."""
    pytest.importorskip("transformers", reason="needs the extra [llm]")
    spec = exam_spec("tinylm", num_tasks=3, split="train")
    params = {"exams": 16, "minibatch": 16, "group": 4, "steps": 100, "budgets": []}
    found = []
    for runners in (0, 1):
        algorithm = build_algorithm("llm-grpo", spec, seed=1, exam_seed=2, params=params, runners=runners)
        for _ in range(2):
            algorithm.train()
        found.append(module_weights(algorithm.learner_group))
        algorithm.stop()
    assert same(*found)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_rllibs_own_checkpoint_continues_exams(tmp_path: Path) -> None:
    algorithm = build_algorithm("grpo", SPEC, seed=1, exam_seed=2, params=SMALL | {"kl_coeff": 0.1})
    first = algorithm.train()
    algorithm.save_to_path(tmp_path / "saved")
    second = algorithm.train()
    restored = type(algorithm).from_checkpoint(str(tmp_path / "saved"))
    assert restored.next_exam == 8
    again = restored.train()
    assert same(module_weights(algorithm.learner_group), module_weights(restored.learner_group))
    for result, lifetime in ((first, 64), (second, 128), (again, 128)):
        metrics = result["env_runners"]
        assert metrics["num_episodes_lifetime"] == lifetime
        assert metrics["exams_requested_lifetime"] == metrics["exams_completed_lifetime"] == lifetime
        assert metrics["exams_reissued_lifetime"] == 0
        assert {
            "episode_return_mean",
            "episode_len_mean",
            "score_mean",
            "spent_mean",
            "truncation_mean",
        } <= metrics.keys()
        assert metrics["episode_return_mean"] == metrics["score_mean"]
    assert second["env_runners"]["score_mean"] == again["env_runners"]["score_mean"]
    assert second["num_env_steps_sampled_lifetime"] == algorithm.steps
    algorithm.stop()
    restored.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_tune_runs_a_trial(tmp_path: Path) -> None:
    from ray import tune

    config = config_of("grpo")
    config.lr = tune.grid_search([3e-3])
    tuner = tune.Tuner(
        config.algo_class,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2},
            storage_path=str(tmp_path),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    results = tuner.fit()
    assert not results.errors
    (result,) = results
    assert result.config["lr"] == 3e-3
    assert result.metrics["env_runners"]["num_episodes_lifetime"] == 128
    assert result.checkpoint is not None
    assert list(Path(result.path).glob("events.out.tfevents*")), "TensorBoard"
