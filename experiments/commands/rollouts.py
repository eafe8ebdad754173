"""Rollouts as a product: one agent takes any number of exams, on this machine or a Ray cluster; Parquet parts out.

The exams are cut into parts of fixed size. A part depends on the configuration and its number alone, so any worker on any
node may compute it, and a lost one is computed again with the same result. Workers return tables; the driver alone writes, each
part by one rename: a resumed run computes what is missing, and no shared file system is needed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from agents.base import Agent, agent_text, is_saved
from agents.cluster import connected
from agents.playing import rollout
from experiments.compare.plan import Setting, build_agent, make_for, setting_spec
from experiments.config import ConfigError, FamilyConfig
from experiments.runs import check_folder, check_same
from roi_env.exams.config import ExamSpec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.files import replacing
from roi_env.measures.episodes import Records

MANIFEST: Final = "rollouts.json"
Rows = Literal["exams", "decisions"]


@dataclass(frozen=True)
class RolloutConfig:
    """What is rolled out; everything that the output depends on.

    :param agent: name with parameters, or the path of a saved agent.
    :param family: the task family.
    :param budget: fraction (float) or tokens (int).
    :param order: order of presentation.
    :param exams: exams ``first_exam .. first_exam + exams - 1`` of ``seed``.
    :param replicates: outcome draws of every exam.
    :param exam_seed: identity's seed of the exams, and of the agent's choices.
    :param training_seed: of agents that learn (they are trained once, by the driver).
    :param rows: one row an episode ("exams") or one a decision ("decisions").
    :param first_exam: id of the first exam.
    :param part_episodes: episodes of a part: a second of work for a cheap planner, a few megabytes.
    """

    agent: str
    family: FamilyConfig
    budget: int | float | str
    order: str = "random"
    exams: int = 100_000
    replicates: int = 1
    exam_seed: int = 0
    training_seed: int = 0
    rows: Rows = "exams"
    first_exam: int = 0
    part_episodes: int = 20_000

    @property
    def setting(self) -> Setting:
        """The kind of exam, as a comparison knows it."""
        return Setting(0, self.family.label, self.family, self.budget, self.order)

    @property
    def part_exams(self) -> int:
        """Exams of a part."""
        return max(1, self.part_episodes // self.replicates)

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.exams // self.part_exams)


@dataclass(frozen=True)
class PackedAgent:
    """An agent in transit: what another process needs to make the same one.

    :param text: name with parameters.
    :param learned: what training changed.
    :param setting: where a privileged agent gets its laws.
    :param spec: kind of exam.
    """

    text: str
    learned: dict[str, npt.NDArray[Any]]
    setting: Setting
    spec: ExamSpec

    def agent(self) -> Agent:
        """The agent."""
        agent = make_for(self.text, self.setting, self.spec)
        agent.restore(self.learned)
        return agent


def prepare(config: RolloutConfig) -> PackedAgent:
    """Make the agent (and train it, if it learns) once.

    :raises ConfigError: for an unknown agent or arguments that do not fit.
    """
    setting = config.setting
    spec = setting_spec(setting)
    agent = build_agent(config.agent, setting, spec, config.training_seed)
    text = agent_text(agent.name, agent.params()) if is_saved(config.agent) else config.agent
    return PackedAgent(text, agent.learned(), setting, spec)


def compute_part(config: RolloutConfig, player: PackedAgent, part: int) -> pa.Table:
    """The rows of one part, in the order of exam, replicate (and position)."""
    first = config.first_exam + part * config.part_exams
    stop = min(first + config.part_exams, config.first_exam + config.exams)
    batch = draw_exams(player.spec, config.exam_seed, np.arange(first, stop))
    records = rollout(player.agent(), batch, replicates=config.replicates, seed=config.exam_seed)
    return _episode_rows(records, batch) if config.rows == "exams" else _decision_rows(records, batch)


def _episode_rows(records: Records, batch: ExamBatch) -> pa.Table:
    return pa.table(
        {
            "exam": batch.exam_ids[records.exam],
            "replicate": records.replicate.astype(np.int32),
            "score": records.score,
            "reward": records.reward.sum(1),
            "tokens": records.tokens.sum(1),
            "decisions": records.reached.sum(1).astype(np.int16),
            "correct": records.correct.sum(1).astype(np.int16),
            "skipped": (records.reached & (records.action == 0)).sum(1).astype(np.int16),
            "truncated": records.overspent.any(1),
        }
    )


def _decision_rows(records: Records, batch: ExamBatch) -> pa.Table:
    episode, position = np.nonzero(records.reached)
    exam = records.exam[episode]
    at = (episode, position)
    return pa.table(
        {
            "exam": batch.exam_ids[exam],
            "replicate": records.replicate[episode].astype(np.int32),
            "position": position.astype(np.int16),
            "question": batch.items[exam, position],
            "group": batch.groups[exam, position],
            "remaining": records.remaining[at],
            "action": records.action[at].astype(np.int8),
            "tokens": records.tokens[at],
            "correct": records.correct[at],
            "overspent": records.overspent[at],
            "level_match": records.level_match[at],
            "value": records.value[at],
            "reward": records.reward[at],
        }
    )


def open_run(config: RolloutConfig, folder: Path) -> list[int]:
    """Claim a folder for a configuration; returns the numbers of the missing parts.

    :raises ConfigError: where the folder holds rollouts of another configuration, or another command's work.
    """
    setting = config.setting
    make_for(config.agent, setting, setting_spec(setting))  # a misspelt agent claims no folder
    described = json.loads(json.dumps(dataclasses.asdict(config)))
    if check_folder(folder, MANIFEST):
        check_same(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")), described, "the same command")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / MANIFEST) as path:
            path.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return [part for part in range(config.parts) if not part_file(folder, part).exists()]


def part_file(folder: Path, part: int) -> Path:
    """Where a part is kept."""
    return folder / f"part-{part:06d}.parquet"


def _store(table: pa.Table, folder: Path, part: int) -> None:
    with replacing(part_file(folder, part)) as path:
        pq.write_table(table, path)


def run_here(config: RolloutConfig, player: PackedAgent, parts: list[int], folder: Path) -> Iterator[int]:
    """Compute parts in this process, yielding each when it is stored."""
    for part in parts:
        _store(compute_part(config, player, part), folder, part)
        yield part


def run_on_ray(
    config: RolloutConfig, player: PackedAgent, parts: list[int], folder: Path, *, workers: int, address: str | None
) -> Iterator[int]:
    """Compute parts as Ray tasks, yielding each when it is stored.

    A task whose worker or node dies is run again by Ray, without limit; parts cannot differ by it. Twice as many tasks as
    CPUs are under way, so that finished tables do not pile up.

    :param workers: CPUs of a cluster started here; ignored with ``address``.
    :param address: cluster to join (as ``ray.init`` takes it), e.g. "auto".
    """
    import ray

    with connected(address, workers):
        compute = ray.remote(num_cpus=1, max_retries=-1)(_compute_on_worker)
        shared = ray.put((config, player))
        waiting = iter(parts)
        pending: dict[Any, int] = {}

        def submit() -> None:
            room = 2 * int(ray.cluster_resources().get("CPU", 1)) - len(pending)
            for _, part in zip(range(room), waiting, strict=False):
                pending[compute.remote(shared, part)] = part

        submit()
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(done[0])
            _store(ray.get(done[0]), folder, part)
            submit()
            yield part


def _compute_on_worker(shared: tuple[RolloutConfig, PackedAgent], part: int) -> pa.Table:
    return compute_part(*shared, part)


@dataclass(frozen=True)
class Summary:
    """Means over all episodes of a run, with the standard error of the score over exams."""

    exams: int
    episodes: int
    score: float
    score_error: float
    tokens: float
    truncated: float


def summarise_run(config: RolloutConfig, folder: Path) -> Summary:
    """Read all parts of a run with one row an episode.

    :raises ConfigError: where parts are missing.
    """
    files = [part_file(folder, part) for part in range(config.parts)]
    if absent := [file.name for file in files if not file.exists()]:
        raise ConfigError(f"{folder}: {len(absent)} parts are missing, the first is {absent[0]}; run it on")
    columns = {name: [] for name in ("score", "tokens", "truncated")}  # type: dict[str, list[npt.NDArray[Any]]]
    for file in files:
        table = pq.read_table(file, columns=list(columns))
        for name, parts in columns.items():
            parts.append(table[name].to_numpy())
    score, tokens, truncated = (np.concatenate(parts) for parts in columns.values())
    by_exam = score.reshape(-1, config.replicates).mean(1)
    error = float(by_exam.std(ddof=1) / np.sqrt(len(by_exam))) if len(by_exam) > 1 else float("nan")
    return Summary(len(by_exam), len(score), float(score.mean()), error, float(tokens.mean()), float(truncated.mean()))
