"""Tune agents that learn in the environment, all with the same number of trials, on exams that are never reported.

Random search (Bergstra and Bengio, JMLR 13, 2012) over each agent's own ``search_space``: trial 0 is its defaults, later
ones are drawn with a seed. Every trial trains on every tuning setting and is judged by the validation score at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from agents.base import AGENTS, agent_text, make_agent, public_problem
from agents.playing import TrainingExams
from experiments.config import ConfigError
from experiments.training.training_run import train_stepwise, validation_exams
from experiments.training.workers import worker_pool
from roi_env.exams.config import exam_spec
from roi_env.files import replacing

if TYPE_CHECKING:
    from agents.neural import NeuralAgent

SEED: Final = 1_000_003
"""Names training and validation exams of tuning: no comparison uses it as a training seed."""


@dataclass(frozen=True)
class Trial:
    """One training run of a search.

    :param agent: registered name.
    :param trial: number of the trial; 0 is the agent's defaults.
    :param params: hyper-parameters of the trial, ``steps`` included.
    :param setting: keyword arguments of :func:`roi_env.exams.resolve.exam_spec`.
    """

    agent: str
    trial: int
    params: dict[str, Any]
    setting: dict[str, Any]

    @property
    def file(self) -> str:
        """Name of the result's file."""
        where = "-".join(str(value) for value in self.setting.values())
        return f"{self.agent}-{self.trial:02d}-{where}-{self.params['steps']}.json"


@dataclass(frozen=True)
class Tuning:
    """Chosen hyper-parameters by agent, all with one tuning budget.

    :param path: the file it was read from.
    :param trials: trials of every agent.
    :param params: hyper-parameters by agent.
    """

    path: Path
    trials: int
    params: dict[str, dict[str, Any]]


def read_tuning(path: Path) -> Tuning:
    """Read a file written by :func:`write_tuning`.

    :raises ConfigError: where the file is missing or malformed, or agents had different tuning budgets.
    """
    agents = _read_agents(path)
    try:
        budgets = {
            name: (len(entry["trials"]), len(entry["settings"]), entry["steps"]) for name, entry in agents.items()
        }
        params = {name: dict(entry["params"]) for name, entry in agents.items()}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a tuning file written by `roi tune` ({error!r})") from error
    if len(set(budgets.values())) != 1:
        raise ConfigError(
            f"{path}: agents were tuned with different budgets (trials, settings, steps): {budgets}; tune them all with "
            "one command of `roi tune`, or with equal --trials, --steps and numbers of --setting"
        )
    return Tuning(path, next(iter(budgets.values()))[0], params)


def _read_agents(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["agents"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a tuning file written by `roi tune` ({error!r})") from error


def search_tasks(
    names: list[str], settings: list[dict[str, Any]], trials: int, steps: int, seed: int = 0
) -> list[Trial]:
    """All runs of a search.

    :raises ConfigError: for an agent that does not learn in the environment.
    """
    tasks = []
    for name in names:
        if name not in AGENTS or not AGENTS[name].stepwise:
            stepwise = [n for n, entry in AGENTS.items() if entry.stepwise]
            raise ConfigError(f"agent {name!r} cannot be tuned: agents that learn in the environment are {stepwise}")
        space: dict[str, tuple[Any, ...]] = getattr(AGENTS[name].load(), "search_space", {})
        rng = np.random.default_rng([seed, *name.encode()])
        for trial in range(trials):
            drawn = {key: values[int(rng.integers(len(values)))] for key, values in sorted(space.items())}
            params = ({} if trial == 0 else drawn) | {"steps": steps}
            tasks += [Trial(name, trial, params, setting) for setting in settings]
    return tasks


def run_task(task: Trial, folder: Path) -> None:
    """Train and validate one trial on one setting; store the result."""
    spec = exam_spec(**task.setting)
    agent: NeuralAgent = make_agent(agent_text(task.agent, task.params), public_problem(spec))  # type: ignore[assignment]
    # Only the last point counts; a trial's seed is the same for all agents and trials.
    curve = train_stepwise(agent, TrainingExams(spec, SEED), SEED, validation_exams(spec, SEED), points=1)
    last = curve[-1]
    with replacing(folder / task.file) as path:
        path.write_text(json.dumps(asdict(task) | {"score": last.normalised, "cpu_seconds": last.cpu_seconds}))


def run_tasks(tasks: list[Trial], folder: Path, workers: int) -> Iterator[Trial]:
    """Run what is missing, yielding each run as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if not (folder / task.file).exists()]
    workers = min(workers, len(todo))
    if workers < 2:
        for task in todo:
            run_task(task, folder)
            yield task
        return
    with worker_pool(workers) as pool:
        futures = {pool.submit(run_task, task, folder): task for task in todo}
        for future in as_completed(futures):
            future.result()
            yield futures[future]


def check_tuning(tasks: list[Trial], folder: Path, path: Path) -> None:
    """See that a search may go on in a folder and be written to a file, before anything is trained.

    :param folder: of finished runs.
    :param path: file of :func:`write_tuning`.
    :raises ConfigError: where the file is not one of tuning, holds the same agents tuned otherwise or others with another
        tuning budget, or where the folder holds other runs of the same name.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file with --out")
    for task in tasks:
        if (file := folder / task.file).exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if different := [key for key, value in asdict(task).items() if found.get(key) != value]:
                raise ConfigError(
                    f"{file}: a run that differs in {', '.join(different)}: choose another folder with --run"
                )
    if not path.exists():
        return
    trials = len({task.trial for task in tasks})
    settings = [task.setting for task in tasks if (task.agent, task.trial) == (tasks[0].agent, 0)]
    steps = tasks[0].params["steps"]
    for name, entry in _read_agents(path).items():
        own = name in {task.agent for task in tasks}
        there = len(entry["trials"]), len(entry["settings"]), entry["steps"]
        if own and (there != (trials, len(settings), steps) or entry["settings"] != settings):
            raise ConfigError(
                f"{path}: holds {name} tuned on {entry['settings']} with (trials, settings, steps) {there}: choose "
                "another file with --out"
            )
        if there != (trials, len(settings), steps):
            raise ConfigError(
                f"{path}: holds {name} tuned with (trials, settings, steps) {there}, not {(trials, len(settings), steps)}: "
                "unequal tuning is not compared; choose another file with --out"
            )


def write_tuning(tasks: list[Trial], folder: Path, path: Path) -> dict[str, dict[str, Any]]:
    """Choose every agent's best trial by its mean validation score over the settings, and write the file.

    Other agents of a file that is there already stay in it: agents with memory are tuned where memory matters.

    :returns: the chosen entries by agent.
    :raises ConfigError: where the file that is there is not one of tuning.
    """
    kept = _read_agents(path) if path.exists() else {}
    results: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for task in tasks:
        result = json.loads((folder / task.file).read_text(encoding="utf-8"))
        results.setdefault(task.agent, {}).setdefault(task.trial, []).append(result)
    chosen: dict[str, dict[str, Any]] = {}
    for name, trials in results.items():
        rows = [
            {
                "params": {k: v for k, v in runs[0]["params"].items() if k != "steps"},
                "scores": [run["score"] for run in runs],
                "cpu_seconds": sum(run["cpu_seconds"] for run in runs),
            }
            for _, runs in sorted(trials.items())
        ]
        best = max(rows, key=lambda row: float(np.mean(row["scores"])))
        chosen[name] = {
            "params": best["params"],
            "score": float(np.mean(best["scores"])),
            "settings": [run["setting"] for run in trials[0]],
            "steps": tasks[0].params["steps"],
            "trials": rows,
        }
    record = {"seed": SEED, "agents": kept | chosen}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return chosen
