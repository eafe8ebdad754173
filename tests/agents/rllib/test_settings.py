"""RLlib's settings on our algorithms: each has its effect or is refused by its name; evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra [rllib]")

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from agents.rllib import settings
from agents.rllib.algorithm import ExamSettings, evaluation_seed, module_weights
from agents.rllib.exam_runner import job_list
from agents.rllib.grpo import GRPOConfig
from agents.rllib.named import make_config
from agents.rllib.ppo import ExamPPOConfig
from agents.rllib.rollouts import take_exams
from agents.rllib.training import LocalRun
from roi_env.exams.config import exam_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

SPEC = exam_spec("heavy", num_tasks=4, budget=0.15)
KINDS = [ExamPPOConfig, GRPOConfig]


def config_of(kind: type[ExamSettings], **more: Any) -> ExamSettings:
    return kind().exams(SPEC, per_iteration=64, per_minibatch=16).network(hidden=(8,), **more)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("per_iteration", "per_minibatch", "per_job") for value in (0, 2.5, "8", True)),
        *(("group_size", value) for value in (0, 2.5, [2])),
        *(("budgets", value) for value in ([0], [0.3], ["tight"], "512")),
        *(("hidden", value) for value in ([0], ["a"], "ab", [8.5])),
        *(("memory", value) for value in (-1, 1.5)),
        *(("num_epochs", value) for value in (0, -1, 1.5)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_out_of_range_are_named(kind: type[ExamSettings], name: str, value: Any) -> None:
    config = config_of(kind)
    if name in ("hidden", "memory"):
        config.network(**{name: value})
    elif name == "num_epochs":
        config.training(num_epochs=value)
    else:
        config.exams(**{name: value})
    with pytest.raises(ValueError, match=name):
        config.validate()


@pytest.mark.parametrize("kind", KINDS)
def test_untouched_settings_are_accepted(kind: type[ExamSettings]) -> None:
    config_of(kind).validate()


IGNORED: dict[str, Any] = {
    "gamma": lambda c: c.training(gamma=0.5),
    "RLlib's own gamma": lambda c: c.training(gamma=0.99),
    "minibatch_size": lambda c: c.training(minibatch_size=7),
    "RLlib's own minibatch_size": lambda c: c.training(minibatch_size=128),
    "train_batch_size_per_learner": lambda c: c.training(train_batch_size_per_learner=512),
    "train_batch_size": lambda c: c.training(train_batch_size=4000),
    "shuffle_batch_per_epoch": lambda c: c.training(shuffle_batch_per_epoch=False),
    "learner_connector": lambda c: c.training(learner_connector=lambda *_: None),
    "add_default_connectors_to_learner_pipeline": lambda c: c.training(
        add_default_connectors_to_learner_pipeline=False
    ),
    "model_config": lambda c: c.rl_module(model_config={"fcnet_hiddens": [32]}),
    "an object as model_config": lambda c: c.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[32])),
    "rl_module_spec": lambda c: c.rl_module(rl_module_spec=RLModuleSpec(model_config={"hidden": (3,)})),
    "algorithm_config_overrides_per_module": lambda c: c.rl_module(
        algorithm_config_overrides_per_module={"default_policy": AlgorithmConfig.overrides(lr=1.0)}
    ),
    "rollout_fragment_length": lambda c: c.env_runners(rollout_fragment_length=10),
    "batch_mode": lambda c: c.env_runners(batch_mode="complete_episodes"),
    "explore": lambda c: c.env_runners(explore=False),
    "num_envs_per_env_runner": lambda c: c.env_runners(num_envs_per_env_runner=8),
    "gym_env_vectorize_mode": lambda c: c.env_runners(gym_env_vectorize_mode="async"),
    "env_to_module_connector": lambda c: c.env_runners(env_to_module_connector=lambda *_: None),
    "module_to_env_connector": lambda c: c.env_runners(module_to_env_connector=lambda *_: None),
    "observation_filter": lambda c: c.env_runners(observation_filter="MeanStdFilter"),
    "create_local_env_runner": lambda c: c.env_runners(create_local_env_runner=False),
    "num_gpus_per_env_runner": lambda c: c.env_runners(num_gpus_per_env_runner=1),
    "num_gpus_per_learner": lambda c: c.learners(num_gpus_per_learner=1),
    "num_aggregator_actors_per_learner": lambda c: c.learners(num_aggregator_actors_per_learner=1),
    "clip_rewards": lambda c: c.environment(clip_rewards=True),
    "observation_space": lambda c: c.environment(observation_space=1),
    "action_mask_key": lambda c: c.environment(action_mask_key="mask"),
    "CartPole-v1": lambda c: c.environment("CartPole-v1"),
    "budget": lambda c: c.environment(env_config={"spec": SPEC, "budget": 3}),
    "replay": lambda c: c.environment(env_config={"spec": SPEC, "replay": True}),
    "torch_compile_learner": lambda c: c.framework(torch_compile_learner=True),
    "policies": lambda c: c.multi_agent(policies={"a", "b"}),
    "policy_mapping_fn": lambda c: c.multi_agent(policy_mapping_fn=lambda *_, **__: "a"),
    "policies_to_train": lambda c: c.multi_agent(policies_to_train=[]),
    "input": lambda c: c.offline_data(input_="somewhere"),
    "output": lambda c: c.offline_data(output="somewhere"),
    "seed": lambda c: c.debugging(seed=3),
    "metrics_num_episodes_for_smoothing": lambda c: c.reporting(metrics_num_episodes_for_smoothing=5),
    "keep_per_episode_custom_metrics": lambda c: c.reporting(keep_per_episode_custom_metrics=True),
    "export_native_model_files": lambda c: c.checkpointing(export_native_model_files=True),
    "ignore_env_runner_failures": lambda c: c.fault_tolerance(ignore_env_runner_failures=True),
    "restart_failed_sub_environments": lambda c: c.fault_tolerance(restart_failed_sub_environments=True),
    "env_runner_restore_timeout_s": lambda c: c.fault_tolerance(env_runner_restore_timeout_s=3),
    "learner_config_dict": lambda c: c.training(learner_config_dict={"a": 1}),
    "learner_class": lambda c: c.training(learner_class=object),
    "env_runner_cls": lambda c: c.env_runners(env_runner_cls=object),
    "evaluation_parallel_to_training": lambda c: c.evaluation(
        evaluation_interval=1, evaluation_num_env_runners=1, evaluation_parallel_to_training=True
    ),
    "custom_evaluation_function": lambda c: c.evaluation(custom_evaluation_function=lambda *_: ({}, 0, 0)),
    "off_policy_estimation_methods": lambda c: c.evaluation(off_policy_estimation_methods={"is": {}}),
    "evaluation's gamma": lambda c: c.evaluation(evaluation_config={"gamma": 0.5}),
    "evaluation's num_env_runners": lambda c: c.evaluation(evaluation_config={"num_env_runners": 2}),
    "evaluation's lr": lambda c: c.evaluation(evaluation_config=AlgorithmConfig.overrides(lr=0.5)),
    "evaluation's foo": lambda c: c.evaluation(evaluation_config={"foo": 2}),
    "evaluation's budget": lambda c: c.evaluation(evaluation_config={"env_config": {"spec": SPEC, "budget": 2}}),
    **{
        name: lambda c, name=name: c.callbacks(**{name: lambda **_: None})
        for name in ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end", "on_sample_end")
    },
    "on_environment_created": lambda c: c.callbacks(on_environment_created=lambda **_: None),
    "on_env_runners_recreated": lambda c: c.callbacks(on_env_runners_recreated=[lambda **_: None]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IGNORED)
def test_settings_without_effect_are_refused_by_name(name: str, kind: type[ExamSettings]) -> None:
    config = IGNORED[name](config_of(kind))
    with pytest.raises((ValueError, TypeError), match=name.rpartition(" ")[2]):
        config.validate()


@pytest.mark.parametrize("name", ["kl_coeff", "kl_target", "use_kl_loss", "use_critic", "use_gae"])
def test_ppos_settings_without_effect_are_refused_by_name(name: str) -> None:
    value = {"use_kl_loss": True, "use_critic": False, "use_gae": False}.get(name, 0.5)
    with pytest.raises(ValueError, match=name):
        config_of(ExamPPOConfig).training(**{name: value}).validate()


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_rllibs_is_listed_or_refused(kind: type[ExamSettings]) -> None:
    """Whatever RLlib may know, now or in a later version: what is not listed may not be changed."""
    base = next(one for one in kind.__mro__ if one.__module__.startswith("ray."))
    names = {name for name in vars(base()) if not name.startswith(("callbacks_", "__"))} - kind.honoured
    assert len(names) > 150
    for name in names - (vars(GRPOConfig()).keys() - vars(AlgorithmConfig()).keys() if kind is GRPOConfig else set()):
        config = config_of(kind)
        setattr(config, name, {"changed"})
        with pytest.raises(ValueError, match=name.lstrip("_")):
            config.validate()


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_settings_are_refused(kind: type[ExamSettings]) -> None:
    config = config_of(kind)
    config.entropy_coef = 0.1
    with pytest.raises(ValueError, match=r"entropy_coef.*no such setting"):
        config.validate()


class Steps(RLlibCallback):
    def on_episode_step(self, **kwargs: Any) -> None:
        pass


class Results(RLlibCallback):
    def on_train_result(self, *, result: dict[str, Any], **kwargs: Any) -> None:
        result["seen"] = True


def test_callbacks_of_classes_are_refused_by_name() -> None:
    config_of(GRPOConfig).callbacks(Results).validate()
    for classes in (Steps, [Results, Steps]):
        with pytest.raises(ValueError, match="on_episode_step"):
            config_of(GRPOConfig).callbacks(classes).validate()


LEARNING: dict[str, dict[str, Any]] = {
    "lr": {"lr": 0.01},
    "a schedule of lr": {"lr": [[0, 0.0], [100_000, 1.0]]},
    "grad_clip": {"grad_clip": 1e-4, "grad_clip_by": "value"},
    "num_epochs": {"num_epochs": 1},
    "entropy_coeff": {"entropy_coeff": 0.5},
    "clip_param": {"clip_param": 1e-3},
    "lambda_": {"lambda_": 0.1},
    "vf_loss_coeff": {"vf_loss_coeff": 5.0},
    "vf_clip_param": {"vf_clip_param": 1e-3},
}


def learned(config: ExamSettings) -> dict[str, Any]:
    training = LocalRun(config)
    training.train()
    return module_weights(training.learner_group)


@pytest.mark.parametrize("kind", KINDS)
def test_honoured_settings_of_learning_have_an_effect(kind: type[ExamSettings]) -> None:
    plain = learned(config_of(kind).training(lr=0.03))
    for name, given in LEARNING.items():
        if kind is GRPOConfig and set(given) & {"lambda_", "vf_loss_coeff", "vf_clip_param"}:
            continue
        other = learned(config_of(kind).training(**({"lr": 0.03} | given)))
        assert any(not np.array_equal(plain[key], other[key]) for key in plain), name


def test_exams_of_evaluation_are_none_of_trainings() -> None:
    config = config_of(GRPOConfig)
    examined = config.get_evaluation_config_object()
    assert examined.exam_seed == evaluation_seed(config.exam_seed) != config.exam_seed
    config.evaluation(evaluation_config={"exam_seed": 9})
    assert config.get_evaluation_config_object().exam_seed == 9


def expected(training: Any, config: ExamSettings, exams: int, greedy: bool) -> Any:
    """The evaluation's exams, taken once more by a network with the learners' weights."""
    runner = LocalRun(config).runner
    runner.module.set_state(module_weights(training.learner_group))
    (job,) = job_list(np.arange(exams), np.zeros(exams, int), np.zeros(exams, int), exams)
    arguments = {"exam_seed": evaluation_seed(config.exam_seed), "action_seed": config.training_seed}
    return take_exams(runner.module.network, SPEC, job, **arguments, rows=256, greedy=greedy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("memory", "explore"), [(0, True), (4, False)])
def test_evaluation(kind: type[ExamSettings], memory: int, explore: bool, cluster: None) -> None:
    config = config_of(kind, memory=memory)
    config.evaluation(evaluation_interval=1, evaluation_duration=33, evaluation_config={"explore": explore})
    algorithm = config.build_algo()
    found = algorithm.train()["evaluation"]["env_runners"]
    rollout = expected(algorithm, config_of(kind, memory=memory), 33, not explore)
    returns = rollout.by_exam(rollout.rewards, SPEC.num_tasks).sum(1)
    assert found["num_episodes"] == 33
    assert found["num_env_steps_sampled"] == rollout.steps
    assert found["episode_return_mean"] == pytest.approx(returns.mean())
    assert found["episode_return_max"] == returns.max()
    assert found["episode_len_mean"] == pytest.approx(rollout.length.mean())
    # The same exams in every evaluation: one that is asked for by hand finds the same.
    assert algorithm.evaluate()["env_runners"]["episode_return_mean"] == pytest.approx(returns.mean())
    algorithm.stop()


def test_evaluation_does_not_depend_on_runners_and_trains_nothing(cluster: None) -> None:
    scores, weights = [], []
    for runners, own in ((0, 0), (1, 1), (0, None)):
        config = config_of(GRPOConfig).exams(per_job=8).env_runners(num_env_runners=runners)
        config.evaluation(evaluation_duration=50, evaluation_duration_unit="timesteps")
        if own is not None:
            config.evaluation(evaluation_interval=1, evaluation_num_env_runners=own)
        algorithm = config.build_algo()
        algorithm.train()
        found = algorithm.evaluate()["env_runners"]
        scores.append((found["score_mean"], found["num_episodes"], found["num_env_steps_sampled"]))
        assert 50 <= found["num_env_steps_sampled"] < 50 + SPEC.num_tasks
        algorithm.train()
        weights.append(module_weights(algorithm.learner_group))
        assert algorithm.next_exam == 2 * 64 // 8
        algorithm.stop()
    assert len(set(scores)) == 1
    assert all(np.array_equal(one[key], weights[0][key]) for one in weights for key in one)


def test_evaluation_on_another_kind_of_exam(cluster: None) -> None:
    rich = SPEC.replace(budget=10 * SPEC.budget)
    cut = []
    for spec in (SPEC, rich):
        config = config_of(ExamPPOConfig).evaluation(evaluation_duration=50)
        algorithm = config.evaluation(evaluation_config={"env_config": {"spec": spec}}).build_algo()
        cut.append(algorithm.evaluate()["env_runners"]["truncation_mean"])
        algorithm.stop()
    assert cut[1] < 0.2 < cut[0]
    config.evaluation(evaluation_config={"env_config": {"spec": exam_spec("heavy", num_tasks=5)}})
    with pytest.raises(ValueError, match="exams of evaluation must have"):
        config.validate()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runners"), [("llm-ppo", (0,)), ("llm-grpo", (0, 1)), ("rarl", (0,))])
def test_evaluation_of_a_language_model(name: str, runners: tuple[int, ...], cluster: None) -> None:
    pytest.importorskip("transformers", reason="needs the extra [llm]")
    spec = exam_spec("tinylm", num_tasks=3, split="train")
    params = {"exams": 8, "minibatch": 8, "steps": 100, "budgets": []} | ({} if name == "llm-ppo" else {"group": 4})
    found = []
    for own in runners:
        config = make_config(name, spec, seed=1, exam_seed=2, params=params)
        config.evaluation(evaluation_interval=1, evaluation_num_env_runners=own, evaluation_duration=6)
        config.evaluation(evaluation_config={"explore": False})
        algorithm = config.build_algo()
        result = algorithm.train()
        trained = module_weights(algorithm.learner_group)
        found.append(algorithm.evaluate()["env_runners"])
        assert found[-1]["num_episodes"] == 6
        assert found[-1]["score_mean"] == result["evaluation"]["env_runners"]["score_mean"]
        after = module_weights(algorithm.learner_group)
        assert all(np.array_equal(after[key], trained[key]) for key in after)
        algorithm.stop()
    assert len({one["score_mean"] for one in found}) == 1


def test_callbacks_and_reporting_have_their_effect(cluster: None) -> None:
    seen: list[str] = []
    names = ("on_algorithm_init", "on_train_result", "on_evaluate_start", "on_evaluate_end")
    config = config_of(GRPOConfig).callbacks(**{name: lambda name=name, **_: seen.append(name) for name in names})
    config.evaluation(evaluation_interval=1).reporting(min_sample_timesteps_per_iteration=300)
    assert set(names) <= settings.CALLBACKS
    algorithm = config.build_algo(use_copy=False)
    result = algorithm.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= 300
    assert algorithm.next_exam > 64 // 8
    assert seen == ["on_algorithm_init", "on_evaluate_start", "on_evaluate_end", "on_train_result"]
    algorithm.stop()
