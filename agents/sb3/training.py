"""One training run with Stable-Baselines3: progress, checkpoints, random numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.dqn import DQN

from agents.neural import CheckpointError, Progress, Report, check_header
from agents.sb3.vec_env import NativeVecEnv
from roi_env.files import replacing

REPORTS: Final = 50
"""Reports (and checkpoints) of one run, about."""

_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@contextmanager
def own_randomness() -> Iterator[None]:
    """Give back the global random numbers of Python, NumPy and PyTorch afterwards, and use one thread of PyTorch's.

    SB3 seeds and uses the global generators; sums in several threads could differ in their last bits.
    """
    states, threads = random.getstate(), torch.get_num_threads()
    numpy_state = np.random.get_state()  # noqa: NPY002 - SB3 uses it
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_num_threads(threads)


class _Run(BaseCallback):
    """Counts optimiser steps, CPU time and scores; reports and saves between updates.

    :param header: what a checkpoint must agree with to be continued.
    """

    def __init__(
        self, total_steps: int, report: Report | None, checkpoint: Path | None, header: dict[str, Any]
    ) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.report = report
        self.checkpoint = checkpoint
        self.header = header
        self.updates = 0
        self.cpu_seconds = 0.0
        self.scores: list[float] = []
        self.reported = 0

    def _on_training_start(self) -> None:
        self.began = time.process_time()
        self.reported = self.model.num_timesteps

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.scores += [infos[i]["score"] for i in np.flatnonzero(self.locals["dones"])]
        return True

    def _on_rollout_start(self) -> None:
        # The first moment after an update: weights, optimiser and counters agree.
        if self.model.num_timesteps - self.reported >= self.total_steps / REPORTS:
            self._tell()

    def _on_training_end(self) -> None:
        self._tell()

    def _tell(self) -> None:
        self.cpu_seconds += time.process_time() - self.began
        self.reported = self.model.num_timesteps
        if self.checkpoint is not None:
            _save(self.checkpoint, self.model, self)
        if self.report is not None:
            score = float(np.mean(self.scores)) if self.scores else float("nan")
            self.report(Progress(self.reported, self.total_steps, self.updates, self.cpu_seconds, score))
        self.scores = []
        self.began = time.process_time()


def learn(
    model: BaseAlgorithm,
    env: NativeVecEnv,
    exam_seed: int,
    steps: int,
    report: Report | None,
    checkpoint: str | Path | None,
    header: dict[str, Any],
) -> None:
    """Train ``model`` until it has taken ``steps`` environment steps.

    :param env: the model's environment.
    :param exam_seed: identity's seed of the training exams.
    :param report: called about :data:`REPORTS` times and at the end.
    :param checkpoint: file that is written with every report. Where it exists the run goes on from it: weights,
        optimiser, replay buffer, counters and random numbers as saved; every sub-environment begins its next exam (the one
        that was under way is dropped, none is taken twice).
    :param header: JSON values that a checkpoint must agree with.
    :raises CheckpointError: for a checkpoint of another run, or a file that is none.
    """
    path = None if checkpoint is None else Path(checkpoint)
    run = _Run(steps, report, path, header)
    # SB3's default logger makes a folder in the temporary directory for every run.
    model.set_logger(Logger(folder=None, output_formats=[]))
    env.seed(exam_seed)
    if path is not None and path.exists():
        _load(path, model, env, run)

    def count(*_: object) -> None:
        run.updates += 1

    counting = model.policy.optimizer.register_step_post_hook(count)
    try:
        model.learn(steps - model.num_timesteps, callback=run, log_interval=10**9, reset_num_timesteps=False)
    finally:
        counting.remove()


def _save(path: Path, model: BaseAlgorithm, run: _Run) -> None:
    env = model.env
    assert isinstance(env, NativeVecEnv)
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - SB3 uses it
    state = {
        "header": run.header,
        "steps": model.num_timesteps,
        "updates": run.updates,
        "cpu_seconds": run.cpu_seconds,
        "next_exams": torch.from_numpy(env.env.exam_ids + env.num_envs),
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "torch_random": torch.get_rng_state(),
        "numpy_random": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": numpy_state["state"]["pos"],
        },
        "action_random": env.action_space.np_random.bit_generator.state,
    }
    if isinstance(model, DQN):
        buffer = model.replay_buffer
        assert buffer is not None
        state["replay"] = {name: torch.from_numpy(getattr(buffer, name)) for name in _REPLAY} | {
            "pos": buffer.pos,
            "full": buffer.full,
        }
        state["calls"] = model._n_calls
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def _load(path: Path, model: BaseAlgorithm, env: NativeVecEnv, run: _Run) -> None:
    try:
        state = torch.load(path, weights_only=True)
        header = state["header"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of an SB3 agent ({str(error) or type(error).__name__}); delete it to begin anew"
        ) from error
    check_header(path, header, run.header)
    model.num_timesteps = state["steps"]
    run.updates = state["updates"]
    run.cpu_seconds = state["cpu_seconds"]
    env.set_options([{"exam_ids": exam} for exam in state["next_exams"].tolist()])
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_random"])
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_state["state"] = {
        "key": state["numpy_random"]["key"].numpy().astype(np.uint32),
        "pos": state["numpy_random"]["pos"],
    }
    np.random.set_state(numpy_state)  # noqa: NPY002
    env.action_space.np_random.bit_generator.state = state["action_random"]
    if isinstance(model, DQN):
        buffer = model.replay_buffer
        assert buffer is not None
        for name in _REPLAY:
            getattr(buffer, name)[:] = state["replay"][name].numpy()
        buffer.pos, buffer.full = state["replay"]["pos"], state["replay"]["full"]
        model._n_calls = state["calls"]
