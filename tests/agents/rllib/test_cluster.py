"""Training on a cluster that loses runners and nodes and gains some: what is learned may not change by a bit."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

import agents.rllib.algorithm as module
from agents.base import load_agent, public_problem
from agents.cluster import connected
from agents.rllib.algorithm import ExamAlgorithm, ExamSettings, module_weights, update
from agents.rllib.named import make_config
from agents.rllib.rollouts import Rollout
from agents.rllib.training import LocalRun, run, train_rllib
from experiments.cli import app
from roi_env.exams.config import exam_spec
from tests.agents.rllib.watched import PAUSE, WatchedRunner
from tests.clusters import add_node, driving, processes, two_nodes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

SPEC = exam_spec("heavy", num_tasks=4, budget=0.15)
EXAMS, GROUP, JOB = 64, 8, 8


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

    def go_on(self, until: Callable[[], Any] = lambda: True, seconds: float = 120.0) -> None:
        """Iterations, at least one, until a condition holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.weights, progress = next(self.iterations)
            self.curve.append(progress.score)
            if until():
                return
        raise TimeoutError(f"not within {seconds:g} s")

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


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes; tests leave as many behind."""
    with two_nodes() as cluster:
        yield cluster


def config_of(name: str, folder: Path | None = None) -> ExamSettings:
    params = {"steps": 1_000_000, "exams": EXAMS, "minibatch": 16, "epochs": 1, "width": 8}
    config = make_config(name, SPEC, seed=1, exam_seed=2, params=params).exams(per_job=JOB)
    if folder is not None:
        config.environment(env_config={**config.env_config, "watch": str(folder)})
        config.env_runners(env_runner_cls=WatchedRunner)
    return config


Start = Callable[..., Watched]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a watched training of an algorithm with a number of runners."""
    learned: list[Rollout] = []
    learn = module.update

    def recorded(config: Any, learner_group: Any, rollout: Rollout, steps: int) -> Any:
        learned.append(rollout)
        return learn(config, learner_group, rollout, steps)

    def begin(name: str, runners: int, **settings: Any) -> Watched:
        monkeypatch.setattr(module, "update", recorded)
        algorithm = config_of(name, tmp_path).env_runners(num_env_runners=runners, **settings).build_algo()
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
    assert same(weights, watched.weights)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def other_node(cluster: Cluster) -> str:
    (node,) = cluster.worker_nodes
    return str(node.node_id)


def kill(taking: Taking) -> None:
    os.kill(taking.process, signal.SIGKILL)


def test_a_runner_killed_while_it_samples(nodes: Cluster, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(nodes):
        watched, other = start("ppo", 2), other_node(nodes)
        watched.go_on(lambda: watched.taken_on(other, 0))
        struck = watched.strike(other, kill)
        assert watched.was_taken_again(struck)
        # The runner is started again, and serves.
        watched.go_on(lambda: {taking.process for taking in watched.taken_on(other, struck.exam)} - {struck.process})
        watched.go_on()
        watched.algorithm.stop()
        check(watched, "ppo", monkeypatch)


def test_a_runner_that_answers_late(nodes: Cluster, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is given to another one; of two answers one counts, in the same iteration and in a later one."""
    with driving(nodes):
        watched, other = start("grpo", 2, sample_timeout_s=4 * PAUSE), other_node(nodes)
        watched.go_on(lambda: watched.taken_on(other, 0))

        def pause(taking: Taking) -> None:
            os.kill(taking.process, signal.SIGSTOP)
            wait_for(lambda: watched.was_taken_again(taking))
            os.kill(taking.process, signal.SIGCONT)

        assert watched.was_taken_again(watched.strike(other, pause))
        watched.go_on()
        frozen = watched.strike(other, lambda taking: os.kill(taking.process, signal.SIGSTOP))
        assert watched.was_taken_again(frozen)
        watched.go_on()
        first = watched.algorithm.next_exam
        os.kill(frozen.process, signal.SIGCONT)
        watched.go_on(lambda: watched.taken_on(other, first))
        assert {taking.process for taking in watched.taken_on(other, 0)} == {frozen.process}
        watched.algorithm.stop()
        check(watched, "grpo", monkeypatch)


def test_nodes_come_and_go(nodes: Cluster, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with driving(nodes):
        watched = start("grpo", 3)  # more than there are CPUs

        def lose_a_node() -> None:
            (node,), first = nodes.worker_nodes, watched.algorithm.next_exam
            watched.go_on(lambda: watched.taken_on(node.node_id, first))
            struck = watched.strike(node.node_id, lambda _: nodes.remove_node(node, allow_graceful=False))
            assert watched.was_taken_again(struck)
            watched.go_on()

        lose_a_node()
        add_node(nodes)
        lose_a_node()
        watched.algorithm.stop()  # although two runners wait for a CPU
        add_node(nodes)
        check(watched, "grpo", monkeypatch)


def test_two_learners_are_as_one_and_a_lost_one_costs_nothing_but_time(nodes: Cluster, tmp_path: Path) -> None:
    """Exams of unequal length: the learners take equally many steps, and one step on everything is one learner's.

    A training that goes on from a checkpoint and loses a learner is the undisturbed one, bit for bit.
    """
    with driving(nodes):
        here = LocalRun(config_of("grpo").exams(per_minibatch=EXAMS))
        algorithm, checkpoint, first = config_of("grpo").processes(0, 2).build_algo(), tmp_path / "a", tmp_path / "b"
        rollout = here.sample()
        here.learn(rollout)
        update(algorithm.config.copy(False).exams(per_minibatch=EXAMS), algorithm.learner_group, rollout, here.steps)
        one, two = module_weights(here.learner_group), module_weights(algorithm.learner_group)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_allclose(two[key], one[key], rtol=1e-3, atol=2e-5)

        whole: list[dict[str, Any]] = []
        for present, _ in run(algorithm, 1000, checkpoint):
            whole.append(present)
            if len(whole) == 1:
                shutil.copy(checkpoint, first)
        algorithm.stop()
        assert all(np.isfinite(value).all() for value in whole[-1].values())

        struck: list[dict[str, Any]] = []
        for present, _ in train_rllib(config_of("grpo"), 1000, checkpoint=first, learners=2):
            struck.append(present)
            if len(struck) == 2:
                (node,) = nodes.worker_nodes
                (process,) = processes(node, "_WrappedExecutable")
                os.kill(process, signal.SIGKILL)
        assert len(struck) == len(whole) - 1 > 2
        assert all(map(same, struck, whole[1:]))


def test_the_command_trains_on_a_cluster(nodes: Cluster, tmp_path: Path) -> None:
    command = ["train", "grpo", "--family", "heavy", "--num-tasks", "3", "--steps", "400"]
    small = ["--param", "exams=64", "--param", "minibatch=16", "--param", "epochs=1", "--param", "width=8"]
    problem, learned = public_problem(exam_spec("heavy", num_tasks=3)), []
    for where in ([], ["--runners", "2", "--address", nodes.address]):
        out = tmp_path / str(len(learned))
        result = CliRunner().invoke(app, [*command, *small, *where, "--out", str(out)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        learned.append(load_agent(out / "agent.npz", problem).learned())
    assert same(*learned)


def test_without_an_address_a_cluster_on_this_machine_is_left_alone(nodes: Cluster) -> None:
    with connected(None, 3):
        assert ray.cluster_resources()["CPU"] == 3
    assert not ray.is_initialized()
    with connected("auto", 3):
        assert ray.cluster_resources()["CPU"] == len(nodes.list_all_nodes()) == 2
