"""Planners of this project against ParetoBandit on its own data: 1,793 prompts, four models, US dollars, graded rewards.

Everything is fitted on train prompts, what is chosen is chosen on validation prompts, and scored on test prompts, which all
take in the same orders. Later prompts are not shown to anybody. Three budgets, those of ParetoBandit's paper, in dollars a
request. Rewards are as recorded: a reward of .85 counts as 200 equally likely outcomes of which 170 are right, so that the
laws which planners and PPO learn from are those of graded rewards (to .005), and actions are scored at the recorded reward.

Our agents have a hard budget for all prompts and know how many there are; they see of a prompt the group that the text
predictor puts it into. ParetoBandit has a target a request and no end; its package runs in an environment of its own
(``make .venv-pareto/ready``), configured as in ``benchmarks/paretobandit_peer.py``, and is scored twice: with whatever it
spent, and cut where the same hard budget is gone.

Drift: two passes over the test prompts, and between them a price or a model changes. New prices are announced to
ParetoBandit, as in its paper; ours see what they pay.

``ROI_DATA=... python benchmarks/paretobandit.py --peer .venv-pareto/bin/python [--orders 20] [--split test] [--out FILE]``
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agents.base import Agent, make_agent, public_problem
from agents.playing import TrainingExams, rollout
from agents.predictors.exams import COLUMN, Case, grouped_table, predictor_of
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.importing.generations import Options
from roi_env.sources.importing.tables import import_logs
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable
from roi_env.sources.source import Source

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TARGETS = (3.0e-4, 6.62e-4, 1.87e-3)
"""US dollars a request: "tight", "moderate" and "loose" in ParetoBandit's configuration."""
GRID = 200
"""Outcomes of a cell: rewards are told apart to .005."""
PEER = "ParetoBandit"
STRONG = "online-lp(strength=64)"
"""Of the strengths 4 (the default), 16 and 64 the best on validation prompts."""
FADING = "online-lp-fading"
"""Its strength and memory are the best on validation prompts, mean of the three drifts, of 4, 16, 64 and 100, 200, 400."""


class Data(NamedTuple):
    """Q prompts and K models, cheapest first.

    :param table: graded outcomes.
    :param place: row of every prompt.
    :param reward: (Q, K) as recorded.
    :param usd: (Q, K) as recorded.
    :param split: (Q,) number of the split.
    """

    table: OutcomeTable
    prompts: tuple[str, ...]
    place: dict[str, int]
    models: tuple[str, ...]
    reward: Floats
    usd: Floats
    split: Ints

    def of(self, split: str) -> Ints:
        """Prompts of a split."""
        return np.flatnonzero(self.split == SPLITS.index(split))


def load(log: Path) -> Data:
    """Import the log as ``roi import`` does, and put graded outcomes in the place of right and wrong."""
    table, _, _ = import_logs([log], Options(correct_at=0.9), str(log))
    recorded = {
        (one["prompt"], model): arm for one in map(json.loads, log.open()) for model, arm in one["arms"].items()
    }
    models = table.tier_names(table.menus[0])
    rows = table.rows
    cells = list(zip(rows["question"].to_pylist(), rows["tier"].to_pylist(), strict=True))
    share = np.array([recorded[cell]["reward"] for cell in cells])
    graded = rows.take(pa.array(np.repeat(np.arange(len(cells)), GRID)))
    for name, values in (
        ("correct", (np.arange(GRID) < np.round(share * GRID)[:, None]).ravel()),
        ("sample", np.tile(np.arange(GRID), len(cells))),
    ):
        graded = graded.set_column(graded.schema.get_field_index(name), name, pa.array(values))
    # One published group: the data set that a prompt was taken from is not known of a request.
    graded = graded.append_column("all", pa.array([""] * len(graded)))
    prompts = tuple(dict.fromkeys(text for text, _ in cells))
    codes = dict(zip((text for text, _ in cells), table.split_codes().tolist(), strict=True))
    reward, usd = (np.array([[recorded[p, m][what] for m in models] for p in prompts]) for what in ("reward", "cost"))
    return Data(
        OutcomeTable.from_arrow(graded.replace_schema_metadata(rows.schema.metadata), str(log)),
        prompts,
        {text: at for at, text in enumerate(prompts)},
        models,
        reward,
        usd,
        np.array([codes[text] for text in prompts]),
    )


class Drift(NamedTuple):
    """What changes for the second pass.

    :param price: (K,) factors of cost.
    :param reward: (K,) added to rewards, which stay in [0, 1].
    :param announced: the model whose list price changes, and its dollars a million prompt and completion tokens.
    """

    name: str
    price: Floats
    reward: Floats
    announced: tuple[str, float, float] | None

    def laws(self, data: Data) -> tuple[Floats, Floats]:
        """(reward, dollars), (Q, K) each, after the change."""
        return np.clip(data.reward + self.reward, 0.0, 1.0), data.usd * self.price


def drifts(data: Data) -> tuple[Drift, ...]:
    """The paper's two (the dearest model at .10 USD a million tokens; Mistral's mean reward down to .75), and a price that rises."""
    nothing, none = np.ones(len(data.models)), np.zeros(len(data.models))
    names = [model.split("/")[1] for model in data.models]
    gemini, mistral = names.index("gemini-2.5-pro"), names.index("mistral-large-2512")
    cheap, dear, worse = nothing.copy(), nothing.copy(), none.copy()
    cheap[gemini] = (0.1 + 0.1) / (1.25 + 10.0)
    dear[mistral] = 4.0
    worse[mistral] = 0.75 - data.reward[data.of("train"), mistral].mean()
    return (
        Drift("gemini-2.5-pro at a fiftieth of its price", cheap, none, (data.models[gemini], 0.1, 0.1)),
        Drift("mistral-large at four times its price", dear, none, (data.models[mistral], 2.0, 6.0)),
        Drift("mistral-large's reward falls to .75", nothing, worse, None),
    )


class Play(NamedTuple):
    """What an agent did with every order: (orders, requests) each; a request that a hard budget did not reach has 0 and 0."""

    reward: Floats
    usd: Floats


def taken(reward: Floats, usd: Floats, orders: Ints, models: Ints, budget: float | None) -> Play:
    """Requests ``orders`` at ``models`` (-1: none), within a hard budget in dollars where there is one."""
    tried = models >= 0
    gain = np.where(tried, reward[orders, models], 0.0)
    cost = np.where(tried, usd[orders, models], 0.0)
    return within(gain, cost, budget)


def within(gain: Floats, cost: Floats, budget: float | None) -> Play:
    """An attempt that the rest of the budget does not pay costs that rest, earns nothing and is the last."""
    if budget is None:
        return Play(gain, cost)
    before = np.cumsum(cost, 1) - cost
    paid = np.clip(budget - before, 0.0, cost)
    return Play(np.where(before + cost <= budget + 1e-12, gain, 0.0), paid)


# ---------------------------------------------------------------------------------------------------------------------
# Ours


class Exams(NamedTuple):
    """The exams of all orders.

    :param orders: (orders, requests) prompts of the data.
    :param batch: the same as exams.
    :param train: the same kind of exam over train prompts.
    """

    orders: Ints
    batch: ExamBatch
    train: ExamSpec


def exams_of(data: Data, case: Case, split: str, orders: int, target: float, drift: Drift | None) -> Exams:
    """Every order has all prompts of the split once, or, where laws drift, once before and once after."""
    source, train = case.source(split, COLUMN), case.source("train", COLUMN)  # type: ignore[arg-type]
    many = source.num_items
    length = many * (1 if drift is None else 2)
    first = draw_exams(_spec(source, many, target), 0, np.arange(orders))
    batch, rows = first, first.rows
    if drift is not None:
        again = draw_exams(first.spec, 1, np.arange(orders))
        rows = np.concatenate([rows, again.rows + many], 1).astype(np.int32)
        spec = _spec(changed(source, drift), length, target)
        batch = dataclasses.replace(draw_exams(spec, 0, np.arange(orders)), rows=rows)
    row = np.array([data.place[text] for text in source.texts])
    return Exams(row[rows % many], batch, _spec(train, min(length, train.num_items), target))


def _spec(source: Source, tasks: int, target: float) -> ExamSpec:
    return exam_spec(source, num_tasks=tasks, preview=False, feedback="cost+correct").replace(
        budget=round(tasks * target * 1e6)
    )


def changed(source: Source, drift: Drift) -> Source:
    """A source with every question twice, the second time under the laws after the change; what agents are told stays."""
    cells, tier = len(source.outcome_count), np.arange(len(source.outcome_count)) % source.num_tiers
    packed = source.outcomes.reshape(cells, GRID).astype(np.int64)
    cost = np.maximum(np.round((packed[:, 0] >> 1) * drift.price[tier]), 1).astype(np.int64)
    share = np.clip((packed & 1).mean(1) + drift.reward[tier], 0.0, 1.0)
    right = np.arange(GRID) < np.round(share * GRID)[:, None]
    count = np.tile(source.outcome_count, 2)
    row_group = np.tile(source.row_group, 2)
    return dataclasses.replace(
        source,
        row_item=np.arange(2 * source.num_items, dtype=np.int32),
        row_group=row_group,
        row_given=np.arange(2 * source.num_items, dtype=np.int32),
        strata=np.array([0, 2 * source.num_items], np.int32),
        outcome_start=(np.cumsum(count) - count).astype(np.int32),
        outcome_count=count,
        outcomes=np.concatenate([source.outcomes, (cost[:, None] << 1 | right).ravel().astype(np.uint32)]),
        texts=source.texts * 2,
        question_ids=source.question_ids * 2,
        answers=source.answers * 2,
    )


def ours(data: Data, exams: Exams, names: Sequence[str], ppo_steps: int) -> Iterator[tuple[str, Ints]]:
    """Models (-1: none) that every agent gave to the requests of every order."""
    problem = public_problem(exams.batch.spec)
    for name in names:
        agent: Agent = make_agent(name, problem)
        if agent.stepwise:
            agent = make_agent(name, problem, steps=ppo_steps)
            agent.train(TrainingExams(exams.train, 0), seed=0)
        yield name, rollout(agent, exams.batch).action - 1
    for k, model in enumerate(data.models):
        yield f"always {model.split('/')[1]}", np.full(exams.orders.shape, k)


# ---------------------------------------------------------------------------------------------------------------------
# A cascade


class Cascade(NamedTuple):
    """Ask the models of a ladder until the confidence in an answer reaches a threshold.

    :param ladder: models, cheapest first.
    """

    ladder: tuple[int, ...]
    threshold: float

    def play(self, data: Data, confidence: Floats, prompts: Ints) -> tuple[Floats, Floats]:
        """(reward, dollars) of prompts: of the last answer, and of all of them."""
        reward, usd, open_ = np.zeros(prompts.shape), np.zeros(prompts.shape), np.ones(prompts.shape, np.bool_)
        for k in self.ladder:
            usd += np.where(open_, data.usd[prompts, k], 0.0)
            reward = np.where(open_, data.reward[prompts, k], reward)
            open_ &= confidence[prompts, k] < self.threshold
        return reward, usd


def confidences(data: Data, predicted: Floats) -> Floats:
    """(Q, K) expected reward of an answer: ridge regression on the prompt's predicted rewards and on what the answer cost, a
    model each, fitted on train prompts (whose predictions are out-of-fold)."""
    from sklearn.linear_model import Ridge

    train, found = data.of("train"), np.empty_like(data.reward)
    for k in range(len(data.models)):
        seen = np.column_stack([predicted, np.log(data.usd[:, k])])
        seen = (seen - seen[train].mean(0)) / seen[train].std(0)
        found[:, k] = Ridge().fit(seen[train], data.reward[train, k]).predict(seen)
    return found


def choose_cascade(data: Data, confidence: Floats, target: float) -> Cascade:
    """The best on validation prompts of those whose mean cost there is within the target."""
    prompts, best = data.of("validation"), (-1.0, Cascade((0,), 0.0))
    for size in range(1, len(data.models) + 1):
        for ladder in itertools.combinations(range(len(data.models)), size):
            for threshold in np.quantile(confidence[prompts][:, ladder], np.linspace(0, 1, 101)):
                one = Cascade(ladder, float(threshold))
                reward, usd = one.play(data, confidence, prompts)
                if usd.mean() <= target:
                    best = max(best, (float(reward.mean()), one))
    return best[1]


# ---------------------------------------------------------------------------------------------------------------------
# The peer


def embeddings(model: Path, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """(Q, 384) as sentence-transformers makes them of all-MiniLM-L6-v2: mean state of the first 256 tokens, of length one."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    found = []
    with torch.inference_mode():
        for text in prompts:
            states = network(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
            found.append(torch.nn.functional.normalize(states[0].mean(0), dim=0).numpy())
    return np.stack(found)


def kept_embeddings(peer: Path, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Made once and kept in the peer's environment."""
    home = peer.parent.parent
    kept = home / f"embeddings-{hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]}.npy"
    if not kept.exists():
        np.save(kept, embeddings(home / "minilm" / "all-MiniLM-L6-v2", prompts))
    return np.asarray(np.load(kept))


class Stream(NamedTuple):
    """One setting: a budget, and a change half-way or none."""

    name: str
    target: float
    drift: Drift | None
    exams: Exams


def peer(python: Path, data: Data, streams: Sequence[Stream], orders: int) -> dict[str, Ints]:
    """Models that the peer gave to the requests of every stream, (orders, requests) each."""
    arrays: dict[str, Any] = {
        "embeddings": kept_embeddings(python, data.prompts),
        "train": data.of("train"),
        "online": data.of("validation"),
        "reward": data.reward,
        "reward_first": data.reward,
        "usd_first": data.usd,
    }
    runs = []
    for at, stream in enumerate(streams):
        length, drift = stream.exams.orders.shape[1], stream.drift
        arrays[f"orders_{at}"] = stream.exams.orders
        if drift is not None:
            arrays[f"reward_{at}"], arrays[f"usd_{at}"] = drift.laws(data)
        runs.append(
            {
                "name": stream.name,
                "target": stream.target,
                "orders": f"orders_{at}",
                "laws": ["first", "first" if drift is None else str(at)],
                "change": length if drift is None else length // 2,
                "announced": drift and drift.announced,
            }
        )
    with tempfile.TemporaryDirectory() as folder:
        job = {"models": data.models, "prompts": data.prompts, "orders": orders, "runs": runs}
        (Path(folder) / "job.json").write_text(json.dumps(job))
        np.savez(Path(folder) / "job.npz", allow_pickle=False, **arrays)
        script = Path(__file__).with_name("paretobandit_peer.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([str(python), str(script), folder], check=True, env=environment)
        with np.load(Path(folder) / "actions.npz") as found:
            return {name: found[name] for name in found.files}


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def by_prompt(values: Floats, orders: Ints) -> Floats:
    """(orders, prompts) mean over an order's requests for the prompt: orders are now paired, prompt by prompt."""
    prompts = np.sort(orders[0])
    prompts = prompts[np.diff(prompts, prepend=-1) > 0]
    again = np.argsort(orders, axis=1, kind="stable")
    return np.asarray(np.take_along_axis(values, again, 1).reshape(len(orders), len(prompts), -1).mean(2))


def interval(paired: Floats, resamples: int = 2000) -> list[float]:
    """Mean and 95 % interval of (orders, prompts) values: orders and prompts are both drawn anew."""
    rng = np.random.default_rng(0)
    orders, prompts = (rng.multinomial(n, np.full(n, 1 / n), resamples) / n for n in paired.shape)
    means = ((orders @ paired) * prompts).sum(1)
    return [round(float(x), 4) for x in (paired.mean(), *np.quantile(means, (0.025, 0.975)))]


def compare(
    data: Data, stream: Stream, actions: dict[str, Ints], cascade: Cascade | None, confidence: Floats
) -> dict[str, Any]:
    """A row for every agent: mean reward a request, dollars spent as a share of the budget, difference from the peer."""
    orders, length = stream.exams.orders, stream.exams.orders.shape[1]
    budget = stream.target * length
    reward, usd = (np.stack([laws, laws]) for laws in (data.reward, data.usd))
    if stream.drift is not None:
        reward[1], usd[1] = stream.drift.laws(data)
    half = np.arange(length) >= (length if stream.drift is None else length // 2)
    rewards, costs = (table.reshape(-1, len(data.models)) for table in (reward, usd))
    row = orders + len(data.prompts) * half
    plays = {name: taken(rewards, costs, row, models, budget) for name, models in actions.items()}
    free = {name: taken(rewards, costs, row, models, None) for name, models in actions.items()}
    if cascade is not None:
        free["cascade"] = Play(*cascade.play(data, confidence, orders))
        plays["cascade"] = within(*free["cascade"], budget)
    rows = {}
    for name, play in plays.items():
        one: dict[str, Any] = {
            "reward": interval(by_prompt(play.reward, orders))[0],
            "spent": round(float(play.usd.sum(1).mean() / budget), 3),
            "most": round(float(play.usd.sum(1).max() / budget), 3),
            "uncut": {
                "reward": round(float(free[name].reward.mean()), 4),
                "spent": round(float(free[name].usd.sum(1).mean() / budget), 3),
                "most": round(float(free[name].usd.sum(1).max() / budget), 3),
            },
        }
        if stream.drift is not None:
            one["reward_after"] = round(float(play.reward[:, half].mean()), 4)
        if name in actions:
            one["requests"] = {
                model.split("/")[1]: round(float((actions[name] == k).mean()), 3) for k, model in enumerate(data.models)
            }
        if PEER in plays and name != PEER:
            one["more_than_peer"] = interval(by_prompt(play.reward - free[PEER].reward, orders))
            one["more_than_cut_peer"] = interval(by_prompt(play.reward - plays[PEER].reward, orders))
        rows[name] = one
    found: dict[str, Any] = {"stream": stream.name, "usd_a_request": stream.target, "requests": length, "agents": rows}
    if cascade is not None:
        found["cascade"] = {"ladder": [data.models[k] for k in cascade.ladder], "threshold": cascade.threshold}
    return found


def report(found: dict[str, Any]) -> None:
    """A line an agent."""
    print(f"\n{found['stream']}: {found['requests']} requests")
    for name, row in sorted(found["agents"].items(), key=lambda one: -one[1]["reward"]):
        more = " against the peer {:+.4f} [{:+.4f}, {:+.4f}]".format(*row.get("more_than_peer", [np.nan] * 3))
        after = f", after {row['reward_after']:.4f}" if "reward_after" in row else ""
        uncut = row["uncut"]
        print(
            f"  {name:28} {row['reward']:.4f}{after}, {row['spent']:.3f} of the budget (uncut {uncut['reward']:.4f} at "
            f"{uncut['spent']:.3f}){more}",
            flush=True,
        )


def main() -> None:
    """Fit, play, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="test_k4.jsonl; default: in $ROI_DATA/logs/paretobandit")
    parser.add_argument("--peer", type=Path, help="Python of the peer's environment; without it only ours play")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="prompts that are scored")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--predictor", default="text", help="as in `roi predict fit`, or a file that it wrote")
    parser.add_argument("--ppo-steps", type=int, default=300_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    log = arguments.log or Path(os.environ["ROI_DATA"]) / "logs" / "paretobandit" / "test_k4.jsonl"
    data = load(log)
    case = Case(data.table, {}, "all")
    predictor = predictor_of(arguments.predictor, case)
    grouped = case._replace(table=grouped_table(case, predictor))
    confidence = confidences(data, predictor.success(data.prompts, {"all": [""] * len(data.prompts)}))

    def stream(target: float, drift: Drift | None) -> Stream:
        exams = exams_of(data, grouped, arguments.split, arguments.orders, target, drift)
        return Stream(f"{target:g} USD" + (f", {drift.name}" if drift else ""), target, drift, exams)

    streams = [stream(target, None) for target in TARGETS] + [stream(TARGETS[1], drift) for drift in drifts(data)]
    played = {} if arguments.peer is None else peer(arguments.peer, data, streams, arguments.orders)
    rows = []
    for one in streams:
        actions = {PEER: played[one.name]} if one.name in played else {}
        planners = ["lp-lookahead", "resolve", "online-lp", STRONG, "sb3-ppo" if one.drift is None else FADING]
        actions |= dict(ours(data, one.exams, planners, arguments.ppo_steps))
        cascade = choose_cascade(data, confidence, one.target) if one.drift is None else None
        rows.append(compare(data, one, actions, cascade, confidence))
        report(rows[-1])
    if arguments.out is not None:
        settings = {name: getattr(arguments, name) for name in ("split", "orders", "predictor", "ppo_steps")}
        counts = {split: len(data.of(split)) for split in SPLITS}
        settings |= {"prompts": counts, "groups": predictor.facts.get("groups")}
        arguments.out.write_text(json.dumps({**settings, "streams": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
