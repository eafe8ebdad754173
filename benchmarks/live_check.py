"""Language models were trained on replayed outcomes: do their exams go as well when the answers are written live?

The exams of test questions that comparisons report, decided by a model, answered with fresh samples by a model in this process
(by default the one whose outcomes were replayed), several times each. Beside it what the recorded table predicts for the same
exams, exactly. Intervals: of live answers alone (variance between repetitions of an exam), exams given.

``python benchmarks/live_check.py tinylm-grpo tinylm-mcft --out benchmarks/results/live-check.json``; ``--answers itself`` lets the
model that decides write the answers as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from agents.base import Agent, exams_view, make_agent, public_problem
from agents.live.session import Session
from agents.llm.decisions.policy import model_source
from agents.playing import evaluate
from experiments.compare.plan import Setting, setting_spec
from experiments.config import FamilyConfig
from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.grading import exact
from roi_env.answering.ledger import Ledger
from roi_env.answering.local import LocalLive, TransformersSolver
from roi_env.answering.questions import read_questions
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.packaged import TINYLM

TIERS = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
BUDGETS = (0.15, 0.3)
EXAM_SEED = 20261126
"""Of experiments/configs/paper.yaml."""


async def take(
    agent: Agent, solver: LocalLive, batch: ExamBatch, questions: dict[str, Question], exam: int
) -> tuple[float, int]:
    """Right answers and tokens charged of one exam."""
    spec = batch.spec
    texts = exams_view(batch.take(slice(exam, exam + 1)), agent.problem).texts
    ledger = Ledger(None)
    session = Session(
        agent, solver, TIERS, batch.groups[exam].tolist(), ledger=ledger, seed=exam, texts=texts[0] if texts else None
    )
    right = 0.0
    for position in range(spec.num_tasks):
        question = questions[spec.source.question_ids[batch.items[exam, position]]]
        ticket = await session.admit(position, question)
        if ticket is None:
            break
        row, reply = await session.finish(ticket)
        right += reply is not None and row.status == "answered" and bool(exact(question, reply.full_text))
    ledger.close()
    return right, session.charged


async def everyone(
    agent: Agent, solver: LocalLive, batch: ExamBatch, questions: dict[str, Question]
) -> list[tuple[float, int]]:
    """All exams at once: what they ask in the same moment is generated as one batch."""
    exams = range(len(batch))
    return list(await asyncio.gather(*(take(agent, solver, batch, questions, exam) for exam in exams)))


def main() -> None:
    """Take the exams, predict them, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="who decides: folders, or names of models that come with the package")
    parser.add_argument("--answers", default="tinylm", help="who answers: a model, or 'itself'")
    parser.add_argument("--exams", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for budget in BUDGETS:
        spec = setting_spec(Setting(0, "tinylm", FamilyConfig(family="tinylm"), budget, "random"))
        batch = draw_exams(spec, EXAM_SEED, np.arange(arguments.exams))
        questions = {one.question_id: one for one in read_questions(f"table:{TINYLM}?split=test")}
        for model in arguments.models:
            agent = make_agent(f"llm(model={model!r},bits=4)", public_problem(spec))
            predicted = evaluate(agent, batch, law="true").score
            answering = model_source(model if arguments.answers == "itself" else arguments.answers)
            begun, scores, tokens = time.process_time(), [], []
            for repeat in range(arguments.repeats):
                # Other random numbers than the recording's, and than other repetitions'.
                solver = LocalLive(TransformersSolver(answering, temperature=0.7, seed=1000 + repeat))
                taken = asyncio.run(everyone(agent, solver, batch, questions))
                scores.append([score for score, _ in taken])
                tokens.append([spent for _, spent in taken])
            live = np.array(scores)
            error = np.sqrt(live.var(0, ddof=1).mean() / live.size)
            difference = live.mean() - predicted.mean()
            row = {
                "budget": budget,
                "decides": model,
                "answers": arguments.answers,
                "exams": arguments.exams,
                "repeats": arguments.repeats,
                "predicted": round(float(predicted.mean()), 4),
                "live": round(float(live.mean()), 4),
                "difference": round(float(difference), 4),
                "half_width": round(float(1.96 * error), 4),
                "tokens": round(float(np.mean(tokens)), 1),
                "largest_spend": int(np.max(tokens)),
                "budget_tokens": spec.budget,
                "cpu_seconds": round(time.process_time() - begun, 1),
            }
            found.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
