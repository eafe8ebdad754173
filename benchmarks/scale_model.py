"""Throughput against nodes: a model whose constants ``bench_cluster.py --out`` measured; prints the tables of docs/scale.md.

What is not measured is an assumption, stated below: nothing here was run on more than one machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORES = 16
"""Assumed CPUs of a node, each as fast as those measured."""
NETWORK = 1.25e9
"""Assumed bytes a second into and out of the driver (10 Gbit/s)."""
NODES = (1, 10, 100, 1_000)
MEASURED = Path(__file__).parent / "results" / "cluster.json"


@dataclass(frozen=True)
class Throughput:
    """What a cluster gets done.

    :param rate: exams (episodes) a second.
    :param stages: seconds of one iteration (of one part) by what they are spent on.
    :param size: exams of the iteration (episodes of the part).
    """

    rate: float
    stages: dict[str, float]
    size: int

    @property
    def limit(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=lambda name: self.stages[name])


def training(
    measured: dict[str, Any],
    nodes: int,
    *,
    name: str = "grpo",
    exams: int | None = None,
    learners: int = 1,
    exam_seconds: float | None = None,
    per_job: int | None = None,
) -> Throughput:
    """Synchronous training: sync, sample, prepare, learn, one after the other.

    :param exams: of an iteration; None: one job a runner, at least the tuned number.
    :param learners: that share every minibatch; minibatches grow with them.
    :param exam_seconds: of a runner an exam; None: as measured.
    :param per_job: exams of a job; None: the tuned number.
    """
    mine, settings = measured[name], measured[name]["settings"]
    runners, size = nodes * CORES, per_job or settings["per_job"]
    total = exams or max(settings["exams"], runners * size)
    jobs = math.ceil(total / size)
    seconds = mine["sampling_2"]["runners"] if exam_seconds is None else exam_seconds
    sync, answer, step = mine["sync"], mine["answer"], measured["learner_step"]
    # One gradient step: what it costs at any size, and what its exams cost.
    steps_measured = settings["epochs"] * settings["exams"] / settings["minibatch"]
    by_exam = max(0.0, mine["learning"] - steps_measured * step["0"] / settings["exams"])
    steps = settings["epochs"] * math.ceil(total / (settings["minibatch"] * learners))
    one_step = step["0"] if learners == 1 else step["2"] + (math.log2(learners) - 1) * (step["2"] - step["0"])
    sampling = {
        "runners": math.ceil(jobs / runners) * size * seconds,
        "driver": jobs * mine["driver_job"] + total * answer["read"],
        "network": total * answer["bytes"] / NETWORK,
    }
    slowest = max(sampling, key=lambda stage: sampling[stage])
    others = {
        "weights": sync["read"] + sync["publish"] + sync["load"] + nodes * sync["bytes"] / NETWORK,
        "learner": total * by_exam / learners + steps * one_step,
    }
    prepared = total * answer["batch"]
    stages = {slowest: sampling[slowest] + (prepared if slowest == "driver" else 0.0), **others}
    if slowest != "driver":
        stages["driver"] = prepared
    return Throughput(total / sum(stages.values()), stages, total)


def rollouts(measured: dict[str, Any], nodes: int, agent: str, size: int = 20_000) -> Throughput:
    """`roi rollouts`: workers, the driver and its network work at the same time; the slowest counts.

    :param size: episodes of a part.
    """
    mine = measured["rollouts"]
    cpus = nodes * CORES
    parts = {int(count): seconds for count, seconds in mine["driver_part"].items()}
    (small, fast), (large, slow) = sorted(parts.items())
    by_episode = max(0.0, (slow - fast) / (large - small))
    widest, longest = max((int(width), seconds) for width, seconds in mine["wait"].items())
    waiting = 2 * cpus / widest * longest  # one ray.wait a part, over twice as many tasks as CPUs
    stages = {
        "workers": size * mine[agent]["episode"] / cpus,
        "driver": max(0.0, fast - small * by_episode) + size * by_episode + waiting,
        "network": size * mine["remaining-share"]["bytes"] / NETWORK,
    }
    return Throughput(size / max(stages.values()), stages, size)


def table(title: str, of: Callable[[int], Throughput], overlapping: bool = False) -> str:
    """Markdown rows of one scenario; where stages overlap the slowest one takes all the time."""
    first = of(1).rate
    rows = []
    for nodes in NODES:
        found = of(nodes)
        share = found.stages[found.limit] * found.rate / found.size
        limit = found.limit if overlapping else f"{found.limit} ({share:.0%})"
        rows.append(f"| {title} | {nodes:,} | {_short(found.rate)} | {found.rate / first:.1f}x | {limit} |")
    return "\n".join(rows)


def _short(rate: float) -> str:
    return f"{rate / 1e6:.2f} M" if rate >= 1e6 else f"{rate / 1e3:.1f} k" if rate >= 1e3 else f"{rate:.0f}"


def report(measured: dict[str, Any]) -> str:
    """The tables."""
    head = "| {} | nodes | {} a second | against 1 node | {} |\n|---|---|---|---|---|"
    grow = measured["grpo"]["settings"]
    lines = [
        head.format("training (GRPO)", "exams", "takes longest (share of the time)"),
        table("as tuned: 2,048 exams an iteration", lambda n: training(measured, n, exams=grow["exams"])),
        table("one job of 256 a runner, one learner", lambda n: training(measured, n)),
        table(
            "the same, a learner a node",
            lambda n: training(measured, n, learners=n),
        ),
        table(
            "a learner a node, exams of 1 s, jobs of 8",
            lambda n: training(measured, n, learners=n, exam_seconds=1.0, per_job=8),
        ),
        "",
        head.format("`roi rollouts`, parts of 20,000", "episodes", "limit"),
        *(table(agent, lambda n, a=agent: rollouts(measured, n, a), overlapping=True) for agent in _agents(measured)),
    ]
    return "\n".join(lines)


def _agents(measured: dict[str, Any]) -> list[str]:
    return [name for name, value in measured["rollouts"].items() if isinstance(value, dict) and "episode" in value]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, default=MEASURED, help="constants of bench_cluster.py --out")
    print(report(json.loads(parser.parse_args().measured.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
