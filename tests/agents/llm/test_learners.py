"""Language models under PPO and GRPO: the same algorithms as for networks that read numbers."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [llm]")
pytest.importorskip("ray", reason="needs the extra [rllib]")

import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

import agents  # noqa: F401 - registers
from agents.base import AgentError, DecisionView, exams_view, load_agent, make_agent, public_problem, save_agent
from agents.llm.decisions.agent import loaded
from agents.llm.decisions.lower_layers import readings_of
from agents.llm.decisions.policy import LMPolicy, load_model, load_tokenizer
from agents.llm.decisions.tag_logits import PromptEncoder, joined
from agents.llm.reinforcement import LMGRPOAgent
from agents.neural import CheckpointError
from agents.playing import TrainingExams, evaluate_exact
from agents.rllib.algorithm import module_weights
from agents.rllib.language import ANCHORS
from agents.rllib.named import make_config
from agents.rllib.training import LocalRun
from roi_env.exams.exam import draw_exams
from tests.agents.llm.exams import worded_spec

SMALL: dict[str, Any] = {
    "exams": 32,
    "minibatch": 16,
    "steps": 400,
    "bits": 4,
    "temperature": 1.0,
    "budgets": [],
    "lr": 3e-4,
}


def run_of(model: Path, name: str = "llm-grpo", **params: Any) -> LocalRun:
    return LocalRun(
        make_config(name, worded_spec(), seed=1, exam_seed=2, params={**SMALL, "model": str(model), **params})
    )


def agent_of(model: Path, **params: Any) -> LMGRPOAgent:
    made = make_agent("llm-grpo", public_problem(worded_spec()), **{**SMALL, "model": str(model), **params})
    assert isinstance(made, LMGRPOAgent)
    return made


def test_an_iteration_reads_a_question_once(model_folder: Path) -> None:
    """In acting, where exams end sooner or later and a job may have fewer than a pass has rows, and in learning."""
    readings_of.cache_clear()
    run = run_of(model_folder, lora=2, layers=1, anchor=1.0)
    policy = run.runner.module.network
    rollout = run.sample()
    assert len(set(rollout.length)) > 1 or len(rollout) < run.config.exams_per_job
    run.learn(rollout)
    questions = np.unique(rollout.observations[:, : policy.question_width], axis=0)
    assert len(policy.lower._kept.questions) == len(questions)


@pytest.mark.parametrize("threads", [1, 2])
def test_training_computes_on_the_threads_that_it_is_told(
    threads: int, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on fewer where the process has fewer cores, nor on as many as the machine has."""
    seen, heads, before = [], LMPolicy.heads, torch.get_num_threads()

    def watched(self: LMPolicy, *given: Any) -> Any:
        seen.append(torch.get_num_threads())
        return heads(self, *given)

    monkeypatch.setattr(LMPolicy, "heads", watched)
    run = run_of(model_folder, threads=threads, exams=16)
    rollout, acted = run.sample(), len(seen)
    run.learn(rollout)
    assert 0 < acted < len(seen)
    assert set(seen) == {threads}
    assert torch.get_num_threads() == before


def test_the_reference_announces_once_what_the_untrained_policy_does(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(model_folder, lora=2, layers=1, anchor=1.0)
    module, rollout = run.runner.module, run.sample()
    obs = {
        "observations": torch.from_numpy(rollout.observations),
        "action_mask": torch.from_numpy(rollout.mask.astype(np.float32)),
    }
    reference, known = module.frozen(module.get_state()), dict[bytes, torch.Tensor]()
    with torch.no_grad():
        first = reference.anchors({Columns.OBS: obs}, known)
        torch.testing.assert_close(first, module.forward_train({Columns.OBS: obs})[ANCHORS], atol=2e-5, rtol=1e-4)
        monkeypatch.setattr(LMPolicy, "heads", None)
        assert torch.equal(first, reference.anchors({Columns.OBS: obs}, known))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": 2, "temperature": 3.0, "anchor": 1.0},
        {"lora": 2, "layers": 1, "anchor": 1.0, "kl_coeff": 0.1},
        {"dtype": "bfloat16"},
    ],
)
@pytest.mark.parametrize("name", ["llm-grpo", "llm-ppo"])
def test_learner_and_runner_agree(name: str, options: dict[str, Any], model_folder: Path) -> None:
    if name == "llm-ppo":
        options = {key: value for key, value in options.items() if key != "kl_coeff"}
    run = run_of(model_folder, name, **options)
    run.train()
    learner = run.learner_group._learner
    assert learner is not None
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    assert run.runner.module is module, "a language model is in memory once"
    rollout = run.runner.sample(job=run.config.jobs(run.next_exam)[0])
    obs = {
        "observations": torch.from_numpy(rollout.observations),
        "action_mask": torch.from_numpy(rollout.mask.astype(np.float32)),
    }
    with torch.no_grad():
        found = module.forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS].numpy()
    tolerance = 0.1 if "dtype" in options else 2e-5  # packed differently: bfloat16 rounds at other places
    np.testing.assert_allclose(found[rollout.mask], rollout.logits[rollout.mask], atol=tolerance)
    assert not module.network.lm.training, "no dropout"
    assert rollout.observations.dtype == np.int32


def test_learning_pays(model_folder: Path) -> None:
    spec = worded_spec()
    batch = draw_exams(spec, 3, np.arange(40))
    agent = agent_of(model_folder, steps=3000, lr=2e-3, greedy=True)
    before = evaluate_exact(agent, batch).score.mean()
    agent.train(TrainingExams(spec, 0), 0)
    after = evaluate_exact(agent, batch).score.mean()
    best = make_agent("optimum", public_problem(spec), laws=spec.source.published)
    optimum = evaluate_exact(best, batch).score.mean()
    assert after > before
    assert after > 0.85 * optimum


@pytest.mark.parametrize("lora", [0, 2])
def test_a_continued_run_gives_what_an_uninterrupted_one_gives(lora: int, model_folder: Path, tmp_path: Path) -> None:
    practice, weights = TrainingExams(worded_spec(), 0), []
    for interrupted in (False, True):
        agent = agent_of(model_folder, kl_coeff=0.1, lora=lora)
        checkpoint = tmp_path / f"checkpoint-{interrupted}"

        def stop(progress: Any, interrupted: bool = interrupted) -> None:
            if interrupted and progress.steps < 200:
                raise KeyboardInterrupt

        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                agent.train(practice, 0, stop, checkpoint)
            agent = agent_of(model_folder, kl_coeff=0.1, lora=lora)
        agent.train(practice, 0, None, checkpoint)
        weights.append(agent.learned())
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])


def other_weights(folder: Path) -> None:
    """Give a model directory the weights of another training."""
    causal = load_model(str(folder))
    with torch.no_grad():
        causal.get_input_embeddings().weight.add_(0.1)
    causal.save_pretrained(folder)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_model_that_was_replaced_is_not_gone_on_with(lora: int, model_folder: Path, tmp_path: Path) -> None:
    """LoRA's weights are a change of the model's, and a divergence is from them."""
    model, spec = copytree(model_folder, tmp_path / "model"), worded_spec()
    agent, practice = agent_of(model, lora=lora, exams=16, steps=1), TrainingExams(spec, 0)
    agent.train(practice, 0, None, tmp_path / "checkpoint")
    save_agent(agent, tmp_path / "agent.npz")
    load_agent(tmp_path / "agent.npz", agent.problem)
    other_weights(model)
    if lora:
        with pytest.raises(AgentError, match=r"trained by LoRA on other weights than the model '.*model' has now"):
            load_agent(tmp_path / "agent.npz", agent.problem)
    else:
        load_agent(tmp_path / "agent.npz", agent.problem)  # which has all of them
    with pytest.raises(CheckpointError, match=r"another run \(weights differ\)"):
        agent_of(model, lora=lora, exams=16, steps=1).train(practice, 0, None, tmp_path / "checkpoint")


def test_a_training_that_diverges_ends_and_says_what_to_do(model_folder: Path) -> None:
    agent = agent_of(model_folder, lr=1e30)
    with pytest.raises(AgentError, match=r"training diverged in iteration \d: .* smaller lr"):
        agent.train(TrainingExams(worded_spec(), 0), 0)


def test_with_lora_only_its_weights_travel(model_folder: Path) -> None:
    run = run_of(model_folder, lora=2, kl_coeff=0.1)
    full = LMPolicy(str(model_folder), 3)
    learner = run.learner_group._learner
    assert learner is not None
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    frozen = {name: value.clone() for name, value in module.network.named_parameters() if not value.requires_grad}
    size = sum(value.size for value in module.get_state().values())
    assert 0 < size < 0.25 * sum(value.numel() for value in full.parameters())
    run.train()
    for name, value in module.network.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name])
    prompts = run.runner.sample(job=run.config.jobs(0)[0]).observations[:8]
    width = module.network.question_width
    with torch.no_grad():
        learned = module.network.heads(prompts, width)[0]
        with module.network.without_adapters():
            reference = module.network.heads(prompts, width)[0]
        begun = full.heads(prompts, width)[0]
    torch.testing.assert_close(reference, begun, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(learned, reference, atol=1e-4)


def test_with_lora_the_weights_that_stay_are_in_memory_once(model_folder: Path, tmp_path: Path) -> None:
    """Of two policies and of the agent that asks the model as it is; each has adapters of its own."""
    model = str(copytree(model_folder, tmp_path / "model"))  # which no other test holds
    one, other = (LMPolicy(model, 3, lora=2) for _ in range(2))
    whole = {weight.data_ptr() for weight in loaded(model).parameters()}
    for policy in (one, other):
        assert {weight.data_ptr() for name, weight in policy.named_parameters() if "lora" not in name} == whole
    prompts = np.random.default_rng(0).integers(0, 50, (6, 12)).astype(np.int32)
    with torch.no_grad():
        begun = LMPolicy(model, 3).heads(prompts, 8)[0]
        for name, weight in one.named_parameters():
            if "lora" in name:
                weight.add_(1.0)
        assert torch.equal(other.heads(prompts, 8)[0], begun)
        assert not torch.allclose(one.heads(prompts, 8)[0], begun, atol=1e-3)
    loaded.cache_clear()
    lives = weakref.ref(one._holds[0])
    assert lives() is other._holds[0]
    del one, other, policy, weight
    gc.collect()
    assert lives() is None


def test_weights_survive_as_arrays(model_folder: Path) -> None:
    policy = LMPolicy(str(model_folder), 3, critic=True, dtype="bfloat16")
    weights = policy.weights()
    assert {str(value.dtype) for value in weights.values()} == {"uint16", "float32"}
    other = LMPolicy(str(model_folder), 3, critic=True, dtype="bfloat16")
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    other.set_weights(weights)
    for own, copied in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, copied)
    with pytest.raises(ValueError, match="another model"):
        other.set_weights({"lm.nothing": np.zeros(1)})


def test_recomputing_gives_the_same_gradients(model_folder: Path) -> None:
    prompts = np.random.default_rng(0).integers(0, 50, (6, 12)).astype(np.int32)
    gradients = []
    for recompute in (False, True):
        policy = LMPolicy(str(model_folder), 3, recompute=recompute)
        policy.heads(prompts, 8)[0].square().sum().backward()
        gradients.append([weight.grad for weight in policy.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_what_was_trained_is_a_model_directory(model_folder: Path, tmp_path: Path) -> None:
    spec = worded_spec()
    problem, batch = public_problem(spec), draw_exams(spec, 0, np.arange(8))
    exams = exams_view(batch, problem)
    exam, zeros = np.arange(8), np.zeros(8, np.int64)
    view = DecisionView(problem, exam, exam % 4, np.full(8, 50), zeros, zeros, zeros.astype(bool), batch.groups)
    agent = agent_of(model_folder, lora=2, lr=5e-3, greedy=False)
    agent.train(TrainingExams(spec, 0), 0)
    agent.export(tmp_path)
    again = make_agent(f"llm(model={str(tmp_path / 'model')!r},greedy=False,bits=4)", problem)
    mine, others = (a.act(view, a.start(exams))[0] for a in (agent, again))
    np.testing.assert_allclose(mine, others, atol=0.03)  # bfloat16 weights
    before = make_agent(f"llm(model={str(model_folder)!r},greedy=False,bits=4)", problem)
    assert np.abs(before.act(view, before.start(exams))[0] - mine).max() > 0.05, "further than bfloat16 rounds"


def test_an_anchor_keeps_self_assessment_where_nothing_is_scarce(model_folder: Path) -> None:
    moved = {}
    for name in ("llm-grpo", "llm-ppo"):
        for anchor in (0.0, 5.0):
            run = run_of(model_folder, name, anchor=anchor, lr=3e-3)
            observer = run.config.observer()
            encoder = PromptEncoder(load_tokenizer(str(model_folder)))
            questions = encoder.questions(worded_spec().source.texts)
            states = encoder.states(np.array([400]), np.array([1]))  # ample, and none of the anchors
            prompts = joined(questions, np.repeat(states, len(questions), 0), observer.widths)
            network = run.runner.module.network
            with torch.no_grad():
                before = network.heads(prompts, observer.widths[0])[0].log_softmax(1)
            for _ in range(3):
                run.train()
            network.set_weights(module_weights(run.learner_group))
            with torch.no_grad():
                after = network.heads(prompts, observer.widths[0])[0].log_softmax(1)
            moved[name, anchor] = float((before.exp() * (before - after)).sum(1).mean())
    for name in ("llm-grpo", "llm-ppo"):
        assert 0 < moved[name, 5.0] < 0.5 * moved[name, 0.0]


def test_exams_take_their_budgets_in_turn(model_folder: Path) -> None:
    run = run_of(model_folder, budgets=[0.25, 1.0], exams=64, minibatch=32)
    jobs = run.config.jobs(10)
    assert [job.budget for job in jobs] == [15, 60]
    assert [job.number for job in jobs] == [0, 1]
    assert sorted(np.concatenate([job.exam_ids for job in jobs])) == sorted(np.repeat(np.arange(10, 18), 8))
    for job in jobs:
        rollout = run.runner.sample(job=job)
        spent = rollout.by_exam(rollout.tokens, 4).sum(1)
        assert spent.max() <= job.budget
        assert set(job.exam_ids % 2) == {jobs.index(job)}
    run.train()


def test_more_learners_than_gpus_are_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("llm-grpo", worded_spec(), seed=1, exam_seed=2, params={**SMALL, "model": str(model_folder)})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(ValueError, match="2 learners of a language model need a GPU each and the cluster has 1"):
        config.processes(0, 2)
    assert config.processes(0, 1).num_gpus_per_learner == 1
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert config.processes(0, 2).num_gpus_per_learner == 0
