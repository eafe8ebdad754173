"""Which of RLlib's settings our algorithms honour; every other one that is changed is refused by its name.

RLlib's configuration objects carry some three hundred settings, many of them of other algorithms, of runners that step
environments one by one, or of RLlib's old interfaces. A setting without effect would be accepted without a word: therefore
what is honoured is listed, and all the rest must keep the value that our configurations begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

RUNNER: Final = frozenset(
    {
        "num_cpus_per_env_runner",
        "num_gpus_per_env_runner",
        "custom_resources_per_env_runner",
        "validate_env_runners_after_construction",
        "sample_timeout_s",
        "restart_failed_env_runners",
        "max_num_env_runner_restarts",
        "delay_between_env_runner_restarts_s",
    }
)
"""Settings of the processes that take exams; evaluation may have its own."""

HONOURED: Final = RUNNER | frozenset(
    {
        # Checked by ExamSettings.validate.
        "algo_class",
        "env",
        "env_config",
        "env_runner_cls",
        "_learner_class",
        "learner_config_dict",
        "seed",
        "evaluation_config",
        # Processes and their resources.
        "num_env_runners",
        "num_learners",
        "num_cpus_per_learner",
        "num_gpus_per_learner",
        "custom_resources_per_learner",
        "num_cpus_for_main_process",
        "custom_resources_for_main_process",
        "placement_strategy",
        "extra_python_environs_for_driver",
        "extra_python_environs_for_worker",
        # Learning.
        "lr",
        "grad_clip",
        "grad_clip_by",
        "num_epochs",
        "torch_skip_nan_gradients",
        "torch_ddp_kwargs",
        "log_gradients",
        # Evaluation.
        "evaluation_interval",
        "evaluation_duration",
        "evaluation_duration_unit",
        "evaluation_num_env_runners",
        "evaluation_sample_timeout_s",
        "evaluation_unhealthy_workers_timeout_s",
        "evaluation_error_after_n_consecutive_skips",
        # RLlib's main loop.
        "min_time_s_per_iteration",
        "min_sample_timesteps_per_iteration",
        "log_level",
        "log_sys_usage",
        "stats_cls_lookup",
        # Nothing is checked anyway.
        "disable_env_checking",
        # What RLlib itself sets on the way.
        "class",
        "in_evaluation",
        "_is_frozen",
        "_is_online",
        "_validate_config",
        "_prior_exploration_config",
        "simple_optimizer",
    }
)
"""Attributes of RLlib's that have their effect, of all our algorithms."""

PPO: Final = frozenset({"lambda_", "vf_loss_coeff", "vf_clip_param", "clip_param", "entropy_coeff"})
"""Further ones of PPO's."""

CALLBACKS: Final = frozenset(
    {"on_algorithm_init", "on_checkpoint_loaded", "on_train_result", "on_evaluate_start", "on_evaluate_end"}
)
"""Callbacks that are called."""

_STEPS: Final = (
    "exams are taken as arrays, without RLlib's episodes and connectors; for these let RLlib's own PPOConfig sample from the "
    "environment (agents.rllib.registration)"
)
_SIZES: Final = "use exams(per_iteration=..., per_minibatch=...): whole exams are learned from, not single decisions"
_NETWORK: Final = "use network(hidden=..., memory=...), or language_model(...)"
_COMPILE: Final = "modules are not compiled"
_OFFLINE: Final = "training takes exams itself, nothing is read or written"
_MANY: Final = "there is one agent with one policy"
_RUNNERS: Final = (
    "lost runners are replaced and their exams handed out again; use fault_tolerance(restart_failed_env_runners=..., "
    "max_num_env_runner_restarts=..., delay_between_env_runner_restarts_s=...)"
)

INSTEAD: Final[dict[str, str]] = {
    "gamma": "exams are short and end: returns are not discounted",
    "minibatch_size": _SIZES,
    "train_batch_size": _SIZES,
    "_train_batch_size_per_learner": _SIZES,
    "rollout_fragment_length": _SIZES,
    "batch_mode": _SIZES,
    "shuffle_batch_per_epoch": "whole exams are shuffled in every epoch",
    "num_envs_per_env_runner": "use exams(per_job=...): that many exams are taken at once",
    "gym_env_vectorize_mode": "use exams(per_job=...): that many exams are taken at once",
    "explore": "training draws its actions; use evaluation(evaluation_config={'explore': False})",
    "model": _NETWORK,
    "_model_config": _NETWORK,
    "_rl_module_spec": _NETWORK,
    "observation_space": "the kind of exam gives the spaces: use exams(spec)",
    "action_space": "the kind of exam gives the spaces: use exams(spec)",
    "clip_rewards": "what an answer pays is part of the kind of exam: use exams(exam_spec(..., reward=...))",
    "lr_schedule": "use lr=[[0, first], [steps, last]]",
    "entropy_coeff_schedule": "use entropy_coeff=[[0, first], [steps, last]]",
    "use_kl_loss": "clip_param bounds the change; GRPOConfig has kl_coeff",
    "kl_coeff": "clip_param bounds the change; GRPOConfig has kl_coeff",
    "kl_target": "clip_param bounds the change; GRPOConfig has kl_coeff",
    "use_critic": "PPO has a critic; GRPOConfig has none",
    "use_gae": "use lambda_=1.0",
    "evaluation_parallel_to_training": "evaluation comes after an iteration",
    "evaluation_force_reset_envs_before_iteration": "every evaluation takes its exams from the beginning",
    "custom_evaluation_function": "RLlib drops what it returns: use callbacks(on_evaluate_end=...) or callbacks(on_train_result=...)",
    "metrics_num_episodes_for_smoothing": "results are means over the exams of one iteration",
    "framework_str": "the learners are PyTorch's",
    "min_train_timesteps_per_iteration": "use min_sample_timesteps_per_iteration: every decision is learned from",
    "create_local_env_runner": "the driver's own runner gives the spaces and evaluates",
    "local_gpu_idx": "a language model chooses its device, networks compute on the CPU",
    "optimizer": "the optimiser is Adam with lr and grad_clip",
}
"""What to use instead, by attribute."""

_FAMILIES: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("torch_compile",), _COMPILE),
    (("input_", "output", "offline", "prelearner", "map_batches", "iter_batches", "materialize", "dataset"), _OFFLINE),
    (("polic", "count_steps_by", "observation_fn", "algorithm_config_overrides_per_module"), _MANY),
    (
        (
            "_env_to_module",
            "_module_to_env",
            "_learner_connector",
            "add_default_connectors",
            "observation_filter",
            "normalize_actions",
            "clip_actions",
            "episode",
            "compress",
        ),
        _STEPS,
    ),
    (("restart_failed_sub", "ignore_env_runner", "env_runner_", "num_consecutive", "max_requests"), _RUNNERS),
)


def refuse_ignored(config: AlgorithmConfig, fresh: AlgorithmConfig, honoured: Iterable[str]) -> None:
    """Refuse settings that would have no effect.

    :param config: what is asked for.
    :param fresh: the same kind of configuration, untouched.
    :param honoured: attributes that may differ.
    :raises ValueError: naming the settings that may not, and what to use instead.
    """
    known, given = vars(fresh), vars(config)
    wrong = [
        name
        for name, value in given.items()
        if name not in honoured
        and not name.startswith(("callbacks_", "__"))  # "__": Ray Tune's own
        and (name not in known or not equal(name, value, known[name]))
    ]
    complain(config, [(name, given[name], name in known) for name in wrong])
    unheard = sorted(_callbacks(config) - CALLBACKS)
    if unheard:
        raise ValueError(
            f"{type(config).__name__} does not call {', '.join(unheard)}: {_STEPS}. Of callbacks there are "
            f"{', '.join(sorted(CALLBACKS))}; means over an iteration's exams stand under env_runners in the result"
        )


def complain(config: AlgorithmConfig, wrong: Iterable[tuple[str, Any, bool]]) -> None:
    """Raise an error about (attribute, value, whether there is such a setting), if there are any."""
    lines = []
    for name, value, known in wrong:
        text = f"{name.lstrip('_')}={value!r:.60}"
        lines.append(f"{text} ({_instead(name) if known else 'there is no such setting'})")
    if lines:
        raise ValueError(f"{type(config).__name__} does not honour {'; '.join(lines)}. Leave it out")


def _instead(name: str) -> str:
    if name in INSTEAD:
        return INSTEAD[name]
    for beginnings, text in _FAMILIES:
        if name.startswith(beginnings):
            return text
    return "without effect on exams"


def equal(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; of policies their names count, for RLlib fills in the rest on the way."""
    return set(one) == set(other) if name == "policies" else _equal(one, other)


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) and not (isinstance(one, int | float) and isinstance(other, int | float)):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    # Functions come back from another process as others of the same name.
    if isinstance(one, Callable):  # type: ignore[arg-type]
        return getattr(one, "__qualname__", one) == getattr(other, "__qualname__", other)
    return bool(one == other)


def _callbacks(config: AlgorithmConfig) -> set[str]:
    """Names of the callbacks that a configuration has."""
    classes = config.callbacks_class if isinstance(config.callbacks_class, list | tuple) else [config.callbacks_class]
    found = {
        name
        for kind in classes
        for name in dir(kind)
        if name.startswith("on_") and getattr(kind, name) is not getattr(RLlibCallback, name, None)
    }
    prefix = "callbacks_"
    return found | {
        name.removeprefix(prefix)
        for name, value in vars(config).items()
        if name.startswith(prefix + "on_") and value is not None
    }
