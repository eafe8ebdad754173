"""Scores on recorded outcomes are predictions: do exams go as well when the answers are written live?

The exams of test questions that comparisons report, decided by an agent, answered with fresh samples. Beside it what the recorded
table predicts for the same exams, exactly. Intervals: of live answers alone (variance between repetitions of an exam, or where each was
taken once the law's own), exams given.

* The small model's: several times each, decided by models, answered by a model in this process (by default the one whose outcomes were
  recorded); ``--answers itself`` lets the model that decides write the answers as well.

    python benchmarks/live_check.py tinylm-grpo tinylm-mcft --out benchmarks/results/live-check.json

* The paper's, of a model that reasons in the open and that an endpoint serves, once each, decided by agents; ``--table`` has its recorded
  outcomes, ``--questions`` the texts (files of ``roi record``, named like the data sets of the table). Finished exams are kept in ``--folder``, and it goes on there.

    python benchmarks/live_check.py resolve fixed-2 --family paper --endpoint http://127.0.0.1:8000/v1 --served qwen --tokenizer FOLDER \\
        --questions gsm8k.jsonl --questions math-500.jsonl --questions aime-2024.jsonl --folder runs/live-exams --out live-exams.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import torch

from agents.base import Agent, exams_view, make_agent, public_problem
from agents.live.session import Session
from agents.llm.decisions.policy import model_source
from agents.playing import evaluate
from experiments.compare.plan import Setting, setting_spec
from experiments.config import FamilyConfig
from roi_env.answering.base import LiveSolver, Question, ThinkingTier
from roi_env.answering.dialect import INSTRUCT, OPEN_ANSWER_TOKENS
from roi_env.answering.grading import GradingPool, exact
from roi_env.answering.ledger import Ledger
from roi_env.answering.local import LocalLive, TransformersSolver
from roi_env.answering.questions import read_questions
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.packaged import PAPER_TIERS, TINYLM

TIERS = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
PAPER = [INSTRUCT.tier(name, int(name), OPEN_ANSWER_TOKENS) for name in PAPER_TIERS]
BUDGETS = {"tinylm": (0.15, 0.3), "paper": (512, 1024)}
EXAM_SEEDS = {"tinylm": 20261126, "paper": 20261129}
"""Of experiments/configs/paper.yaml and math-paper.yaml."""

Check = Callable[[Question, str], bool]


async def take(
    agent: Agent,
    solver: LiveSolver,
    tiers: list[ThinkingTier],
    batch: ExamBatch,
    questions: dict[str, Question],
    exam: int,
    check: Check,
) -> tuple[float, int]:
    """Right answers and tokens charged of one exam."""
    spec = batch.spec
    texts = exams_view(batch.take(slice(exam, exam + 1)), agent.problem).texts
    ledger = Ledger(None)
    session = Session(
        agent, solver, tiers, batch.groups[exam].tolist(), ledger=ledger, seed=exam, texts=texts[0] if texts else None
    )
    right = 0.0
    for position in range(spec.num_tasks):
        question = questions[spec.source.question_ids[batch.items[exam, position]]]
        ticket = await session.admit(position, question)
        if ticket is None:
            break
        row, reply = await session.finish(ticket)
        if reply is not None and reply.error is not None:
            raise RuntimeError(f"exam {exam}, question {question.question_id!r}: {reply.error}")
        judged = reply is not None and row.status == "answered"
        right += judged and await asyncio.to_thread(check, question, reply.full_text)  # type: ignore[union-attr]
    ledger.close()
    return right, session.charged


def small_model(
    given: argparse.Namespace, agent: Agent, model: str, batch: ExamBatch
) -> tuple[npt.NDArray[np.float64], list[list[int]]]:
    """(repeats, exams) scores, and tokens."""
    questions = {one.question_id: one for one in read_questions(f"table:{TINYLM}?split=test")}
    scores, tokens = [], []

    async def everyone(solver: LocalLive) -> list[tuple[float, int]]:
        # All at once: what they ask in the same moment is generated as one batch.
        exams = range(len(batch))
        return list(await asyncio.gather(*(take(agent, solver, TIERS, batch, questions, one, exact) for one in exams)))

    for repeat in range(given.repeats):
        # Other random numbers than the recording's, and than other repetitions'.
        answering = model_source(model if given.answers == "itself" else given.answers)
        solver = LocalLive(TransformersSolver(answering, temperature=0.7, seed=1000 + repeat))
        taken = asyncio.run(everyone(solver))
        scores.append([score for score, _ in taken])
        tokens.append([spent for _, spent in taken])
    return np.array(scores), tokens


def served(
    given: argparse.Namespace, agent: Agent, name: str, batch: ExamBatch, pool: GradingPool
) -> tuple[npt.NDArray[np.float64], list[list[int]]]:
    """(1, exams) scores, and tokens; finished exams are kept."""
    from transformers import AutoTokenizer

    from roi_env.answering.forcing import ForcingSolver

    questions = {one.question_id: one for source in given.questions for one in read_questions(source)}
    kept = given.folder / f"{name}-{batch.spec.budget}.jsonl"
    lines = map(json.loads, kept.read_text().splitlines()) if kept.exists() else ()
    done: dict[int, tuple[float, int]] = {line["exam"]: (line["right"], line["tokens"]) for line in lines}

    async def everyone() -> None:
        tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
        solver = ForcingSolver(
            given.endpoint,
            given.served,
            "vllm",
            tokenizer=tokenizer,
            temperature=0.7,
            concurrency=given.window,
            deadline=3600.0,
        )

        async def one(exam: int) -> None:
            right, tokens = await take(agent, solver, PAPER, batch, questions, exam, pool)
            done[exam] = right, tokens
            with kept.open("a") as file:
                file.write(json.dumps({"exam": exam, "right": right, "tokens": tokens}) + "\n")

        try:
            await asyncio.gather(*(one(exam) for exam in range(len(batch)) if exam not in done))
        finally:
            await solver.close()

    asyncio.run(everyone())
    exams = range(len(batch))
    return np.array([[done[exam][0] for exam in exams]]), [[done[exam][1] for exam in exams]]


def compared(live: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> dict[str, float]:
    """Means, and the half of the interval that the difference has by the noise of live answers.

    :param live: (repeats, exams).
    :param predicted: (exams,).
    """
    if len(live) > 1:
        error = np.sqrt(live.var(0, ddof=1).mean() / live.size)
    else:
        error = (live[0] - predicted).std(ddof=1) / np.sqrt(live.size)
    return {
        "predicted": round(float(predicted.mean()), 4),
        "live": round(float(live.mean()), 4),
        "difference": round(float(live.mean() - predicted.mean()), 4),
        "half_width": round(float(1.96 * error), 4),
    }


def main() -> None:
    """Take the exams, predict them, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "agents", nargs="+", help="who decides: agents, or folders or names of models for --family tinylm"
    )
    parser.add_argument("--family", choices=tuple(BUDGETS), default="tinylm")
    parser.add_argument(
        "--table", help="of the paper's exams, where another model answers than that of the packaged one"
    )
    parser.add_argument("--answers", default="tinylm", help="who answers: a model, or 'itself'")
    parser.add_argument("--endpoint", help="who answers the paper's exams")
    parser.add_argument("--served", help="the endpoint's name of the model")
    parser.add_argument("--tokenizer", help="of that model")
    parser.add_argument("--questions", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=Path("runs/live-exams"))
    parser.add_argument("--window", type=int, default=64, help="requests in flight")
    parser.add_argument("--budget", type=int, action="append", help="only this one; repeatable")
    parser.add_argument("--exams", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    small = given.family == "tinylm"
    found: list[dict[str, Any]] = []
    with GradingPool("math") as pool:
        for budget in given.budget or BUDGETS[given.family]:
            family = FamilyConfig(given.family, table=given.table, tiers=list(PAPER_TIERS) if given.table else None)
            spec = setting_spec(Setting(0, given.family, family, budget, "random"))
            batch = draw_exams(spec, EXAM_SEEDS[given.family], np.arange(given.exams))
            for name in given.agents:
                agent = make_agent(f"llm(model={name!r},bits=4)" if small else name, public_problem(spec))
                predicted = evaluate(agent, batch, law="true").score
                begun = time.process_time()
                live, tokens = (
                    small_model(given, agent, name, batch) if small else served(given, agent, name, batch, pool)
                )
                row = {
                    "budget": budget,
                    "decides": name,
                    "answers": given.answers if small else given.served,
                    "exams": given.exams,
                    "repeats": len(live),
                    **compared(live, predicted),
                    "tokens": round(float(np.mean(tokens)), 1),
                    "largest_spend": int(np.max(tokens)),
                    "budget_tokens": spec.budget,
                    "cpu_seconds": round(time.process_time() - begun, 1),
                }
                found.append(row)
                print(json.dumps(row), flush=True)
                if given.out:
                    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
