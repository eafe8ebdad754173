"""What a cluster costs and gains: seconds an exam, a job, a weight sync and an update; seconds until a loss is made good.

Costs are CPU seconds of the process that pays (driver, runner, worker), so that other load on the machine distorts them
little. Recovery is timed by the clock on a cluster of two nodes of one CPU, all on this machine. ``--out`` keeps the constants
that ``benchmarks/scale_model.py`` reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import cloudpickle
from ray.cluster_utils import Cluster

from agents.rllib.algorithm import ExamAlgorithm, module_weights, update
from agents.rllib.exam_runner import Answer, job_list
from agents.rllib.named import build_algorithm
from agents.rllib.rollouts import concatenate
from experiments.commands.rollouts import RolloutConfig, compute_part, part_file, prepare, run_on_ray
from experiments.config import FamilyConfig
from roi_env.exams.config import exam_spec

SPEC = exam_spec("signal")
STORE = 150 << 20
PLANNERS = {"remaining-share": 20_000, "lp-lookahead": 2_000, "hindsight-optimisation": 200}
"""Agents of `roi rollouts` from cheap to dear, and the episodes of a part that is timed."""


class Clock:
    """CPU seconds of this process and of its main thread (what is done one after the other), and seconds, of the block."""

    def __enter__(self) -> Clock:
        self._cpu, self._main, self._wall = time.process_time(), time.thread_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.main = time.process_time() - self._cpu, time.thread_time() - self._main
        self.wall = time.perf_counter() - self._wall


def median_of(measure: Callable[[], float], repeats: int) -> float:
    """The first call warms up."""
    measure()
    return float(np.median([measure() for _ in range(repeats)]))


def sampling(algorithm: ExamAlgorithm, repeats: int) -> dict[str, float]:
    """Seconds an exam: by the clock, CPU of the driver, CPU of runners."""
    clocks, sampled = [], []
    exams = algorithm.config.exams_per_iteration
    for repeat in range(repeats + 1):
        jobs, before = algorithm.config.jobs(repeat * exams), algorithm.remote_cpu_seconds
        with Clock() as clock:
            concatenate(algorithm._take(jobs))
        clocks.append(clock)
        sampled.append(algorithm.remote_cpu_seconds - before)
    return {
        "wall": float(np.median([clock.wall for clock in clocks[1:]])) / exams,
        "driver": float(np.median([clock.cpu for clock in clocks[1:]])) / exams,
        "runners": float(np.median(sampled[1:])) / exams,
    }


def driver_job(algorithm: ExamAlgorithm, repeats: int) -> float:
    """CPU seconds of the driver's main thread a job, whatever its size: jobs of one exam, at one runner."""
    count = 200
    ids = np.arange(count)
    jobs = job_list(ids, np.zeros_like(ids), np.zeros_like(ids), 1)

    def measure() -> float:
        with Clock() as clock:
            algorithm._take(jobs)
        return clock.main / count

    return median_of(measure, repeats)


def answer_costs(algorithm: ExamAlgorithm) -> dict[str, float]:
    """Of one job's answer: bytes an exam, and CPU seconds an exam to read it and to prepare the learner's batch."""
    config = algorithm.config
    runner = algorithm.env_runner
    answers = [Answer("", job.number, runner.sample(job=job), None, 0.0) for job in config.jobs(0)]
    sent = [cloudpickle.dumps(answer, protocol=5) for answer in answers]

    def read() -> float:
        with Clock() as clock:
            concatenate([cloudpickle.loads(data).rollout for data in sent])
        return clock.cpu / config.exams_per_iteration

    rollout = concatenate([answer.rollout for answer in answers])

    def prepare_batch() -> float:
        with Clock() as clock:
            config.batches(rollout)
        return clock.cpu / config.exams_per_iteration

    return {
        "bytes": sum(map(len, sent)) / config.exams_per_iteration,
        "read": median_of(read, 7),
        "batch": median_of(prepare_batch, 7),
        "decisions": rollout.steps / len(rollout),
    }


def learning(algorithm: ExamAlgorithm, repeats: int) -> float:
    """CPU seconds an exam of one update (all its epochs), learner in this process."""
    config = algorithm.config
    rollout = concatenate([algorithm.env_runner.sample(job=job) for job in config.jobs(0)])

    def measure() -> float:
        with Clock() as clock:
            update(config, algorithm.learner_group, rollout, rollout.steps)
        return clock.cpu / config.exams_per_iteration

    return median_of(measure, repeats)


def learner_step(learners: int, repeats: int) -> float:
    """Seconds by the clock of one gradient step on as good as nothing: two exams a learner."""
    params = {"exams": 256, "minibatch": 2 * max(1, learners), "epochs": 1, "group": 2}
    algorithm = build_algorithm("grpo", SPEC, seed=0, exam_seed=0, params=params, learners=learners)
    config = algorithm.config
    rollout = concatenate([algorithm.env_runner.sample(job=job) for job in config.jobs(0)])

    def measure() -> float:
        with Clock() as clock:
            update(config, algorithm.learner_group, rollout, rollout.steps)
        return clock.wall / (config.exams_per_iteration // config.exams_per_minibatch)

    seconds = median_of(measure, repeats)
    algorithm.stop()
    return seconds


def weight_sync(algorithm: ExamAlgorithm, repeats: int) -> dict[str, float]:
    """Bytes; seconds to read the learner, to publish, and of one runner to fetch and load (less an empty call)."""
    weights = module_weights(algorithm.learner_group)
    group = algorithm.env_runner_group

    def of(act: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            with Clock() as clock:
                act()
            return clock.wall

        return measure

    def load() -> None:
        reference = ray.put(weights)
        group.foreach_env_runner(
            lambda runner, weights: runner.module.set_state(ray.get(weights[0])),
            kwargs={"weights": [reference]},
            local_env_runner=False,
            remote_worker_ids=[1],
        )

    def nothing() -> None:
        group.foreach_env_runner(lambda runner: None, local_env_runner=False, remote_worker_ids=[1])

    times = {
        "read": median_of(of(lambda: module_weights(algorithm.learner_group)), repeats),
        "publish": median_of(of(lambda: ray.put(weights)), repeats),
        "call": median_of(of(nothing), repeats),
    }
    times["load"] = max(0.0, median_of(of(load), repeats) - times["call"] - times["publish"])
    return {"bytes": float(sum(value.nbytes for value in weights.values())), **times}


def costs(repeats: int) -> dict[str, Any]:
    """All costs of training with the agents' default settings."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found: dict[str, Any] = {}
    try:
        for name in ("ppo", "grpo"):
            mine: dict[str, Any] = {}
            for runners in (0, 1, 2):
                algorithm = build_algorithm(name, SPEC, seed=0, exam_seed=0, runners=runners)
                while len(algorithm.env_runner_group.healthy_env_runner_ids()) < runners:
                    time.sleep(0.1)
                    algorithm.restore_env_runners(algorithm.env_runner_group)
                mine[f"sampling_{runners}"] = sampling(algorithm, repeats)
                if runners == 0:
                    mine["answer"] = answer_costs(algorithm)
                    mine["learning"] = learning(algorithm, repeats)
                if runners == 1:
                    mine["driver_job"] = driver_job(algorithm, 3)
                    mine["sync"] = weight_sync(algorithm, 21)
                algorithm.stop()
            config = algorithm.config
            mine["settings"] = {
                "exams": config.exams_per_iteration,
                "per_job": config.exams_per_job,
                "minibatch": config.exams_per_minibatch,
                "epochs": config.num_epochs,
            }
            found[name] = mine
        found["learner_step"] = {str(learners): learner_step(learners, repeats) for learners in (0, 2)}
    finally:
        ray.shutdown()
    return found


def rollout_costs(folder: Path) -> dict[str, Any]:
    """Of `roi rollouts`: CPU seconds an episode of a worker, of the driver a part, bytes, and one `ray.wait` by its width."""
    found: dict[str, Any] = {}
    for agent, size in PLANNERS.items():
        config = RolloutConfig(agent, FamilyConfig(family="signal"), 0.3, exams=2 * size, part_episodes=size)
        player = prepare(config)

        def one(config: RolloutConfig = config, player: Any = player) -> float:
            with Clock() as clock:
                compute_part(config, player, 1)
            return clock.cpu / config.part_episodes

        table = compute_part(config, player, 0)
        found[agent] = {"episode": median_of(one, 3), "bytes": table.nbytes / len(table)}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        found["driver_part"] = {}
        for size in (2_000, 20_000):
            config = RolloutConfig(
                "remaining-share", FamilyConfig(family="signal"), 0.3, exams=size * 30, part_episodes=size
            )
            parts = folder / str(size)
            parts.mkdir()
            stored = run_on_ray(config, prepare(config), list(range(config.parts)), parts, workers=2, address=None)
            for _ in range(6):  # workers start
                next(stored)
            with Clock() as clock:
                rest = len(list(stored))
            found["driver_part"][str(size)] = clock.main / rest
            found["part_file_bytes"] = part_file(parts, 0).stat().st_size
        found["wait"] = {}
        never = ray.remote(resources={"nowhere": 1})(lambda: None)
        pending: list[Any] = []
        for width in (320, 3_200, 32_000):
            pending += [never.remote() for _ in range(width - len(pending))]

            def wait(pending: list[Any] = pending) -> float:
                with Clock() as clock:
                    ray.wait(pending, num_returns=1, timeout=0)
                return clock.cpu

            found["wait"][str(width)] = median_of(wait, 5)
    finally:
        ray.shutdown()
    return found


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A head and one more node, one CPU each, and this process as their driver."""
    folder = tempfile.mkdtemp(prefix="roi-", dir="/tmp")  # sockets lie there: their paths must be short
    os.environ["RAY_TMPDIR"] = folder
    head = {"include_dashboard": False, "object_store_memory": STORE, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)


def recovery(repeats: int) -> dict[str, list[float]]:
    """Seconds: of iterations undisturbed, struck, and with one runner; until a lost runner or one on a new node serves."""
    found: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    with two_nodes() as cluster:
        algorithm = build_algorithm("grpo", SPEC, seed=0, exam_seed=0, runners=2)
        group = algorithm.env_runner_group

        def iteration() -> float:
            with Clock() as clock:
                algorithm.train()
            return clock.wall

        def in_service() -> bool:
            return len(group.healthy_env_runner_ids()) == 2

        def until_back(since: float) -> float:
            # As a training does: iteration after iteration.
            while not in_service():
                iteration()
            return time.perf_counter() - since

        def struck_iteration(strike: Callable[[], object]) -> tuple[float, float]:
            """Seconds of an iteration with a strike 0.05 s after its start; when that was."""
            at: list[float] = []

            def act() -> None:
                at.append(time.perf_counter())
                strike()

            timer = threading.Timer(0.05, act)
            timer.start()
            seconds = iteration()
            timer.join()
            return seconds, at[0]

        until_back(time.perf_counter())
        iteration()
        for _ in range(repeats):
            for _ in range(5):
                note("iteration, two runners", iteration())
            places = group.foreach_env_runner(
                lambda _: (os.getpid(), ray.get_runtime_context().get_node_id()), local_env_runner=False
            )
            (node,) = cluster.worker_nodes
            (victim,) = [process for process, place in places if place == node.node_id]
            seconds, since = struck_iteration(lambda victim=victim: os.kill(victim, signal.SIGKILL))
            note("iteration in which a runner is killed", seconds)
            while in_service():  # its loss is noticed when it is asked
                iteration()
            note("runner killed: until it serves again", until_back(since))
            iteration()
            seconds, _ = struck_iteration(lambda node=node: cluster.remove_node(node, allow_graceful=False))
            note("iteration in which a node is killed", seconds)
            while in_service():
                iteration()
            for _ in range(5):
                note("iteration, one runner left", iteration())
            since = time.perf_counter()
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
            note("node added: until it is registered", time.perf_counter() - since)
            note("node added: until its runner serves", until_back(since))
            iteration()
        algorithm.stop()
    return found


def show(found: dict[str, Any]) -> None:
    """Print all figures."""
    for name in ("ppo", "grpo"):
        mine, settings = found[name], found[name]["settings"]
        print(
            f"{name}, {settings['exams']} exams an iteration ({mine['answer']['decisions']:.1f} decisions each), jobs of "
            f"{settings['per_job']}:"
        )
        for runners in (0, 1, 2):
            cost = mine[f"sampling_{runners}"]
            print(
                f"  sampled with {runners} runners: {1e6 * cost['wall']:.1f} us an exam by the clock; CPU: driver "
                f"{1e6 * cost['driver']:.1f} us, runners {1e6 * cost['runners']:.1f} us"
            )
        answer, sync = mine["answer"], mine["sync"]
        print(
            f"  answers: {answer['bytes']:,.0f} bytes an exam, read in {1e6 * answer['read']:.2f} us; batch and advantages "
            f"{1e6 * answer['batch']:.2f} us; {1e3 * mine['driver_job']:.2f} ms of the driver's main thread a job of one exam"
        )
        print(
            f"  weight sync: {sync['bytes']:,.0f} bytes; read {1e3 * sync['read']:.2f} ms, publish "
            f"{1e3 * sync['publish']:.2f} ms, a runner fetches and loads {1e3 * sync['load']:.2f} ms (an empty call "
            f"{1e3 * sync['call']:.2f} ms)"
        )
        print(f"  update: {1e6 * mine['learning']:.1f} us of CPU an exam, {settings['epochs']} epochs")
    step = found["learner_step"]
    print(
        f"gradient step on two exams: {1e3 * step['0']:.2f} ms here, {1e3 * step['2']:.2f} ms with two remote learners"
    )
    rollouts = found["rollouts"]
    for agent in PLANNERS:
        print(f"roi rollouts {agent}: {1e6 * rollouts[agent]['episode']:.1f} us an episode of a worker")
    for size, seconds in rollouts["driver_part"].items():
        print(f"  driver {1e3 * seconds:.2f} ms a part of {int(size):,} episodes")
    print(
        f"  {rollouts['remaining-share']['bytes']:.0f} bytes an episode ({rollouts['part_file_bytes']:,} a file of 20,000); "
        "one ray.wait over "
        + ", ".join(f"{int(width):,} tasks {1e3 * seconds:.1f} ms" for width, seconds in rollouts["wait"].items())
    )
    for name, seconds in found["recovery"].items():
        print(f"{name}: {np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, n={len(seconds)})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recoveries", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the constants")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found: dict[str, Any] = costs(arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        found["rollouts"] = rollout_costs(Path(folder))
    found["recovery"] = recovery(arguments.recoveries)
    show(found)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
