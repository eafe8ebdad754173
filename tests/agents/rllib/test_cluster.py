"""Training on a cluster that loses runners and nodes and gains some: what is learned may not change by a bit."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import agents.rllib.algorithm as module
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings
from agents.rllib.exam_runner import ExamRunner
from agents.rllib.rollouts import Job, Rollout
from agents.rllib.training import LocalRun, make_config, run
from roi_env.exam import exam_spec
from tests.clusters import add_node, driving, two_nodes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

SPEC = exam_spec("heavy", num_tasks=4, budget=0.15)
EXAMS, GROUP, JOB = 64, 8, 8
PAUSE = 0.15
"""Seconds that a job takes at least: long enough to be struck in the middle."""


class WatchedRunner(ExamRunner):
    """Leaves a file for every job before it answers, and takes its time."""

    def sample(self, *, job: Job, weights: Any = None, **kwargs: Any) -> Rollout:
        rollout = super().sample(job=job, weights=weights)
        node = ray.get_runtime_context().get_node_id()
        name = f"{job.exam_ids[0]}.{job.members[0]}.{os.getpid()}.{node}.{uuid.uuid4().hex}"
        (Path(self.config.env_config["watch"]) / name).touch()
        time.sleep(PAUSE)
        return rollout


@dataclass(frozen=True)
class Taking:
    """A job that some process took."""

    exam: int
    member: int
    process: int
    node: str


@dataclass
class Watched:
    """A training whose runners are watched, and what its learner was given."""

    algorithm: ExamAlgorithm
    folder: Path
    learned: list[Rollout]
    iterations: Iterator[Any]
    curve: list[float]
    weights: dict[str, Any]

    def go_on(self, until: Callable[[], Any] = lambda: True, most: int = 60) -> None:
        """Iterations, at least one, until a condition holds."""
        for _ in range(most):
            self.weights, progress = next(self.iterations)
            self.curve.append(progress.score)
            if until():
                return
        raise TimeoutError(f"not within {most} iterations")

    def takings(self) -> list[Taking]:
        """Jobs taken so far, whether or not they were answered."""
        found = [file.name.split(".") for file in self.folder.iterdir()]
        return [Taking(int(exam), int(member), int(pid), node) for exam, member, pid, node, _ in found]

    def taken_on(self, node: str, first_exam: int) -> list[Taking]:
        """Jobs on a node, of exams from ``first_exam`` on."""
        return [taking for taking in self.takings() if taking.node == node and taking.exam >= first_exam]

    def strike(self, node: str, how: Callable[[Taking], None]) -> Taking:
        """Strike while a job of the next iteration is under way on a node; the iteration goes on meanwhile."""
        first = self.algorithm.next_exam

        def wait_and_strike() -> Taking:
            taking: Taking = wait_for(lambda: self.taken_on(node, first))[0]
            how(taking)
            return taking

        with ThreadPoolExecutor(1) as pool:
            struck = pool.submit(wait_and_strike)
            self.go_on()
            return struck.result()

    def was_taken_again(self, struck: Taking) -> bool:
        """Whether another process took the job that was under way."""
        same = [taking for taking in self.takings() if (taking.exam, taking.member) == (struck.exam, struck.member)]
        return len({taking.process for taking in same}) == 2


def config_of(name: str, folder: Path | None = None) -> ExamSettings:
    params = {"steps": 1_000_000, "exams": EXAMS, "minibatch": 16, "epochs": 1, "width": 8}
    config = make_config(name, SPEC, seed=1, exam_seed=2, params=params).exams(per_job=JOB)
    if folder is not None:
        config.environment(env_config={**config.env_config, "watch": str(folder)})
        config.env_runners(env_runner_cls=WatchedRunner)
    return config


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Watched]:
    """Starts a watched training of an algorithm with a number of runners."""
    learned: list[Rollout] = []
    learn = module.update

    def recorded(config: Any, learner_group: Any, rollout: Rollout, steps: int) -> Any:
        learned.append(rollout)
        return learn(config, learner_group, rollout, steps)

    def begin(name: str, runners: int) -> Watched:
        monkeypatch.setattr(module, "update", recorded)
        algorithm = config_of(name, tmp_path).env_runners(num_env_runners=runners).build_algo()
        return Watched(algorithm, tmp_path, learned, run(algorithm, 1_000_000, None), [], {})

    return begin


def check(watched: Watched, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every exam of every iteration was learned from once, and the curve is the undisturbed one."""
    group = GROUP if name == "grpo" else 1
    exams = EXAMS // group
    assert len(watched.learned) == len(watched.curve)
    for iteration, rollout in enumerate(watched.learned):
        seen = Counter(zip(rollout.exam_ids.tolist(), rollout.replicates.tolist(), strict=True))
        ids = range(iteration * exams, (iteration + 1) * exams)
        assert seen == Counter((exam, replicate) for exam in ids for replicate in range(group))
    monkeypatch.undo()
    alone = run(LocalRun(config_of(name)), 1_000_000, None)
    for score in watched.curve:
        weights, progress = next(alone)
        assert progress.score == score
    assert weights.keys() == watched.weights.keys()
    assert all(np.array_equal(weights[key], watched.weights[key]) for key in weights)


def node_id(node: Any) -> str:
    return str(node.node_id)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_runner_killed_while_it_samples(
    name: str, start: Callable[[str, int], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_nodes() as cluster, driving(cluster):
        watched = start(name, 2)
        other = node_id(next(iter(cluster.worker_nodes)))
        watched.go_on(lambda: watched.taken_on(other, 0))
        struck = watched.strike(other, lambda taking: os.kill(taking.process, signal.SIGKILL))
        assert watched.was_taken_again(struck)
        # The runner is started again, and serves.
        watched.go_on(lambda: {taking.process for taking in watched.taken_on(other, struck.exam)} - {struck.process})
        watched.go_on()
        watched.algorithm.stop()
        check(watched, name, monkeypatch)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_nodes_come_and_go(
    name: str, start: Callable[[str, int], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_nodes() as cluster, driving(cluster):
        watched = start(name, 3)  # more than there are CPUs
        watched.go_on()
        for _ in range(2):
            added = add_node(cluster)
            new, first = node_id(added), watched.algorithm.next_exam
            watched.go_on(lambda new=new, first=first: watched.taken_on(new, first))
            struck = watched.strike(new, lambda _, added=added: cluster.remove_node(added, allow_graceful=False))
            assert watched.was_taken_again(struck)
            watched.go_on()
        watched.algorithm.stop()  # although a runner waits for a CPU
        check(watched, name, monkeypatch)
