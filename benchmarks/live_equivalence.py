"""Is the environment a faithful simulator of the real thing?

The same exams twice: predicted from a recorded table of a model on vLLM (exact expectations under each question's own
samples), and taken live on that server. Equivalence per budget: the 95 % interval of the difference, over exams of all
agents and over the recording's own samples, lies within 3 % of the predicted score.

``python benchmarks/live_equivalence.py --vllm http://127.0.0.1:8000/v1 [--exams 200] [--run runs/equivalence]``
(``make vllm`` serves the model.) Finished parts are kept in the run folder.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from agents.base import make_agent, public_problem
from agents.controller import Session
from agents.evaluation import evaluate
from roi_env.data import TINYLM, tinylm_table
from roi_env.exam import ExamBatch, ExamSpec, draw_exams, exam_spec
from roi_env.live import live_source
from roi_env.outcomes import OutcomeTable
from roi_env.recorded import recorded_source
from roi_env.solvers.base import Question, ThinkingTier
from roi_env.solvers.grading import exact
from roi_env.solvers.http import HTTPSolver
from roi_env.solvers.journal import Ledger
from roi_env.solvers.questions import read_questions
from roi_env.solvers.recording import LiveRecording, live_table, record_live
from roi_env.source import Source

TIERS = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
AGENTS = ("lp-lookahead", "remaining-share", "roi(threshold=0.004)")
BUDGETS = (0.15, 0.3, 0.6)
SAMPLES = 16
TASKS = 8
MARGIN = 0.03


def solver(url: str, concurrency: int) -> HTTPSolver:
    """The server of `make vllm`."""
    return HTTPSolver(url, "tiny", "vllm", temperature=0.7, concurrency=concurrency)


def record(url: str, questions: list[Question], run: Path) -> OutcomeTable:
    """The recorded table; goes on where it stopped."""

    async def work() -> None:
        client = solver(url, 64)
        try:
            await record_live(questions, TIERS, SAMPLES, client, ledger, concurrency=64)
        finally:
            await client.close()

    ledger = Ledger(run / "recording.jsonl", {"questions": len(questions), "samples": SAMPLES})
    asyncio.run(work())
    ledger.close()
    recording = LiveRecording(ledger)
    correct = {key: exact(recording.questions[key[:2]], reply.full_text) for key, reply in recording.outcomes().items()}
    return live_table(recording, TIERS, correct, family="tiny", decision_cost=0)


def source_of(table: OutcomeTable, questions: dict[str, Question]) -> Source:
    """Exams of all its questions. Beliefs are those of the package's own recording of other questions: a planner that
    believed the samples it is evaluated on would be predicted too well."""
    recorded = recorded_source(table, split="all", beliefs_split="all", group_by="kind", coupling="independent")
    asked = [questions[name] for name in recorded.question_ids]
    source = live_source(asked, TIERS, table=tinylm_table(), group_by="kind")
    return dataclasses.replace(
        source,
        outcome_start=recorded.outcome_start,
        outcome_count=recorded.outcome_count,
        outcomes=recorded.outcomes,
    )


def live(
    url: str, spec: ExamSpec, batch: ExamBatch, agent: str, questions: dict[str, Question]
) -> npt.NDArray[np.float64]:
    """(E,) scores of exams taken live, many at a time."""
    player = make_agent(agent, public_problem(spec))
    ids = spec.source.question_ids

    async def take(exam: int, client: HTTPSolver, limit: asyncio.Semaphore) -> float:
        async with limit:
            ledger = Ledger(None)
            groups = batch.groups[exam].tolist()
            session = Session(player, client, TIERS, groups, ledger=ledger, seed=exam)
            score = 0.0
            for position in range(spec.num_tasks):
                question = questions[ids[batch.items[exam, position]]]
                ticket = await session.admit(position, question)
                if ticket is None:
                    break
                row, reply = await session.finish(ticket)
                if reply is not None and reply.error is not None:
                    raise RuntimeError(reply.error)
                score += row.status == "answered" and reply is not None and exact(question, reply.full_text)
            ledger.close()
            return score

    async def work() -> list[float]:
        client, limit = solver(url, 64), asyncio.Semaphore(64)
        try:
            return list(await asyncio.gather(*(take(exam, client, limit) for exam in range(len(batch)))))
        finally:
            await client.close()

    return np.array(asyncio.run(work()))


def recording_error(
    table: OutcomeTable, questions: dict[str, Question], spec: ExamSpec, batch: ExamBatch, agents: tuple[str, ...]
) -> float:
    """Standard error of the mean predicted score that the recording's few samples cause: jackknife over sample numbers."""
    means = []
    for left_out in range(SAMPLES):
        rows = table.rows.filter(pc.not_equal(table.rows["sample"], pa.scalar(left_out)))
        part = spec.replace(source=source_of(dataclasses.replace(table, rows=rows), questions))
        fewer = dataclasses.replace(batch, spec=part)
        means.append(np.mean([evaluate(make_agent(a, public_problem(part)), fewer, law="true").score for a in agents]))
    return float(np.sqrt((SAMPLES - 1) / SAMPLES * np.sum((np.array(means) - np.mean(means)) ** 2)))


def main() -> None:
    """Record, predict, take the exams, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="base address of the server")
    parser.add_argument("--exams", type=int, default=200)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--run", type=Path, default=Path("runs/equivalence"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    questions = read_questions(f"table:{TINYLM}?split=test&sample={arguments.questions}&seed=0")
    begun = time.time()
    table = record(arguments.vllm, questions, arguments.run)
    tokens = int(table.numbers("tokens").sum())
    print(f"recorded {table.num_rows:,} generations, {tokens:,} tokens ({time.time() - begun:.0f} s)", flush=True)
    by_id = {question.question_id: question for question in questions}
    results, holds = [], True
    for fraction in BUDGETS:
        spec = exam_spec(source_of(table, by_id), num_tasks=TASKS, budget=fraction)
        batch = draw_exams(spec, 1, np.arange(arguments.exams))
        differences, predictions = [], []
        for agent in AGENTS:
            file = arguments.run / f"{agent}-{spec.budget}-{arguments.exams}.json"
            predicted = evaluate(make_agent(agent, public_problem(spec)), batch, law="true").score
            if not file.exists():
                file.write_text(json.dumps(live(arguments.vllm, spec, batch, agent, by_id).tolist()))
            taken = np.array(json.loads(file.read_text()))
            difference = taken - predicted
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            print(
                f"budget {spec.budget} ({fraction}), {agent}: predicted {predicted.mean():.3f}, live {taken.mean():.3f}, "
                f"difference {difference.mean():+.3f} +- {1.96 * error:.3f}",
                flush=True,
            )
            differences.append(difference)
            predictions.append(predicted)
            results.append(
                {
                    "budget": spec.budget,
                    "agent": agent,
                    "predicted": predicted.mean(),
                    "live": taken.mean(),
                    "error": float(error),
                }
            )
        # Exams are shared by the agents, their answers are not: exam means keep what is common.
        pooled = np.mean(differences, axis=0)
        noise = pooled.std(ddof=1) / np.sqrt(len(pooled))
        recorded = recording_error(table, by_id, spec, batch, AGENTS)
        half = 1.96 * float(np.hypot(noise, recorded))
        mean, score = float(pooled.mean()), float(np.mean(predictions))
        inside = abs(mean) + half <= MARGIN * score
        holds &= inside
        print(
            f"budget {spec.budget}: difference {mean / score:+.2%} of the score, 95 % interval [{(mean - half) / score:+.2%}, "
            f"{(mean + half) / score:+.2%}] (exams {noise / score:.2%}, recording {recorded / score:.2%} standard error): "
            f"{'within' if inside else 'NOT shown to be within'} {MARGIN:.0%}",
            flush=True,
        )
        results.append(
            {"budget": spec.budget, "difference": mean / score, "half_width": half / score, "within": inside}
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"exams": arguments.exams, "tokens": tokens, "results": results}, indent=1))
    sys.exit(not holds)


if __name__ == "__main__":
    main()
