"""Rollouts on a cluster that loses workers and nodes: the bytes of a single process."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra [rllib]")

from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from agents.base import make_agent, public_problem, save_agent
from agents.playing import TrainingExams
from experiments.cli import app
from experiments.commands.rollouts import (
    RolloutConfig,
    open_run,
    part_file,
    prepare,
    run_here,
    run_on_ray,
    summarise_run,
)
from experiments.compare.plan import setting_spec, training_spec
from experiments.config import FamilyConfig
from tests.clusters import add_node, driving, processes, two_nodes, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

# A part takes about half a second, so that something can happen to it.
CONFIG = RolloutConfig("hindsight-optimisation", FamilyConfig(family="heavy"), 0.3, exams=1800, part_episodes=300)
TASK = "_compute_on_worker"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes; tests leave as many behind."""
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a single process writes."""
    folder = tmp_path_factory.mktemp("alone")
    assert list(run_here(CONFIG, prepare(CONFIG), open_run(CONFIG, folder), folder)) == list(range(6))
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def on_ray(config: RolloutConfig, folder: Path) -> Iterator[int]:
    return run_on_ray(config, prepare(config), open_run(config, folder), folder, workers=2, address=None)


def test_a_neural_agent_by_the_command(nodes: Cluster, tmp_path: Path) -> None:
    config = RolloutConfig(str(tmp_path / "agent.npz"), FamilyConfig(family="heavy"), 0.3, exams=50_000)
    spec = setting_spec(config.setting)
    agent = make_agent("rllib-ppo", public_problem(spec), steps=2000, exams=64, minibatch=16, width=8)
    agent.train(TrainingExams(training_spec(config.setting, spec), 0), 0)  # type: ignore[call-arg]
    save_agent(agent, tmp_path / "agent.npz")
    list(run_here(config, prepare(config), open_run(config, tmp_path / "here"), tmp_path / "here"))
    command = ["rollouts", config.agent, "--family", "heavy", "--exams", "50000", "--out", str(tmp_path / "there")]
    result = CliRunner().invoke(app, [*command, "--address", nodes.address], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert len(files(tmp_path / "there")) == 3
    assert summarise_run(config, tmp_path / "there").episodes == 50_000


def test_a_node_lost_in_the_middle_and_a_new_one(nodes: Cluster, tmp_path: Path) -> None:
    """The lost node's parts are computed again, the new node gets parts of its own, and none of it can be seen in them."""
    config = dataclasses.replace(
        CONFIG, exams=1_000_000
    )  # more than is computed here: however late a node is, there is work
    (node,) = nodes.worker_nodes
    with driving(nodes):
        run = on_ray(config, tmp_path / "there")
        done = [next(run)]
        wait_for(lambda: processes(node, TASK))
        nodes.remove_node(node, allow_graceful=False)
        new = add_node(nodes)
        wait_for(lambda: done.append(next(run)) or (processes(new, TASK) and set(done) >= set(range(4))), 180)
        done += [next(run), next(run)]
        run.close()  # type: ignore[attr-defined]
    assert set(open_run(config, tmp_path / "there")) == set(range(config.parts)) - set(done)
    checked = [0, 1, 2, 3, *done[-2:]]
    open_run(config, tmp_path / "here")
    assert list(run_here(config, prepare(config), checked, tmp_path / "here")) == checked
    there = files(tmp_path / "there")
    assert all(there[name] == content for name, content in files(tmp_path / "here").items())


def test_an_interrupted_run_goes_on_and_a_killed_worker_costs_nothing_but_time(
    nodes: Cluster, alone: dict[str, bytes], tmp_path: Path
) -> None:
    (node,) = nodes.worker_nodes
    with driving(nodes):
        run = on_ray(CONFIG, tmp_path)
        done = [next(run)]
        run.close()  # type: ignore[attr-defined]
    rest = open_run(CONFIG, tmp_path)
    assert sorted(done + rest) == list(range(6))
    assert all(part_file(tmp_path, part).read_bytes() == alone[part_file(tmp_path, part).name] for part in done)
    # The next one in this process, the others on the cluster again.
    assert next(run_here(CONFIG, prepare(CONFIG), rest, tmp_path)) == rest[0]
    with driving(nodes):
        run = on_ray(CONFIG, tmp_path)
        done = [next(run)]
        os.kill(wait_for(lambda: processes(node, TASK))[0], signal.SIGKILL)
        assert sorted([*done, *run]) == rest[1:]
    assert files(tmp_path) == alone
