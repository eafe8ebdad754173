"""Is the environment a faithful simulator of the real thing?

The same exams twice: predicted from a recorded table of a model on vLLM (exact expectations under each question's own
samples), and taken live on that server, several times. Per budget, the mean over agents, exams and repetitions of
(live - predicted) is shown to lie within 3 % of the predicted score: its 95 % interval has the noise of the live answers
(variance between repetitions of the same exam by the same agent; agents' answers are independent) and that of the
recording's samples (jackknife, all agents together). Exams and questions are given: both sides have the same ones.

Sizes follow from a calculation on the package's own recording of this model: standard errors should be about .7 % of the
score in equal parts. The cheapest tier is played most where the budget is tight, and recorded most.

``python benchmarks/live_equivalence.py --vllm http://127.0.0.1:8000/v1 [--run runs/equivalence]``
(``make vllm`` serves the model.) Finished parts are kept in the run folder, and the run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agents.base import make_agent, public_problem
from agents.live.session import Session
from agents.playing import evaluate
from roi_env.answering.base import Question, ThinkingTier
from roi_env.answering.grading import exact
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import Ledger
from roi_env.answering.questions import read_questions
from roi_env.answering.recording import LiveRecording, live_table, record_live
from roi_env.envs.live import live_source
from roi_env.exams.config import ExamSpec, exam_spec
from roi_env.exams.exam import ExamBatch, draw_exams
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import TINYLM, tinylm_table
from roi_env.sources.recorded import recorded_source
from roi_env.sources.source import Source

TIERS = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
SAMPLES = {"answer": 192, "short": 32, "long": 64}
GROUPS = 16
"""Of samples, for the jackknife."""
AGENTS = ("lp-lookahead", "remaining-share", "roi(threshold=0.004)")
SIZES = {0.15: (400, 3), 0.3: (300, 2), 0.6: (200, 2)}
"""Of every budget: exams, and how often each is taken."""
QUESTIONS, TASKS = 150, 8
IN_FLIGHT = 128
MARGIN = 0.03


class Play(NamedTuple):
    """One live decision above skip."""

    question: str
    tier: int  # from 0
    cap: int
    tokens: int
    cut: bool
    right: bool


def solver(url: str) -> HTTPSolver:
    """The server of `make vllm`."""
    return HTTPSolver(url, "tiny", "vllm", temperature=0.7, concurrency=IN_FLIGHT)


def record(url: str, questions: list[Question], run: Path) -> OutcomeTable:
    """The recorded table; goes on where it stopped."""

    async def work() -> None:
        client = solver(url)
        try:
            for tier in TIERS:
                samples = SAMPLES[tier.name]
                progress = await record_live(questions, [tier], samples, client, ledger, concurrency=IN_FLIGHT)
                print(f"recorded {tier.name}: {progress}", flush=True)
        finally:
            await client.close()

    ledger = Ledger(run / "recording.jsonl", {"questions": len(questions), "samples": SAMPLES})
    asyncio.run(work())
    ledger.close()
    recording = LiveRecording(ledger)
    correct = {key: exact(recording.questions[key[:2]], reply.full_text) for key, reply in recording.outcomes().items()}
    return live_table(recording, TIERS, correct, menu="tiny", decision_cost=0)


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
) -> tuple[list[float], list[list[Play]]]:
    """Score and plays of every exam, taken live, many at a time. An exam that loses a request begins again."""
    player = make_agent(agent, public_problem(spec))
    ids = spec.source.question_ids

    async def take(exam: int, client: HTTPSolver, limit: asyncio.Semaphore) -> list[Play]:
        async with limit:
            while (plays := await attempt(exam, client)) is None:
                pass
            return plays

    async def attempt(exam: int, client: HTTPSolver) -> list[Play] | None:
        ledger = Ledger(None)
        try:
            session = Session(player, client, TIERS, batch.groups[exam].tolist(), ledger=ledger, seed=exam)
            plays = []
            for position in range(spec.num_tasks):
                question = questions[ids[batch.items[exam, position]]]
                ticket = await session.admit(position, question)
                if ticket is None:
                    break
                row, reply = await session.finish(ticket)
                if reply is None:
                    continue
                if reply.error is not None:
                    print(f"exam {exam} begins again: {reply.error}", flush=True)
                    return None
                right = row.status == "answered" and bool(exact(question, reply.full_text))
                cut = row.status != "answered"
                plays.append(Play(question.question_id, ticket.action - 1, ticket.cap, reply.tokens, cut, right))
            return plays
        finally:
            ledger.close()

    async def work() -> list[list[Play]]:
        client, limit = solver(url), asyncio.Semaphore(IN_FLIGHT)
        try:
            return list(await asyncio.gather(*(take(exam, client, limit) for exam in range(len(batch)))))
        finally:
            await client.close()

    plays = asyncio.run(work())
    return [float(sum(play.right for play in exam)) for exam in plays], plays


def kept(run: Path, spec: ExamSpec, agent: str, repeat: int) -> Path:
    """Where finished exams are."""
    return run / f"{spec.budget}-{agent}-{repeat}.json"


def predicted(spec: ExamSpec, batch: ExamBatch) -> npt.NDArray[np.float64]:
    """(A, E) expected scores under the table's samples."""
    batch = dataclasses.replace(batch, spec=spec)
    return np.array([evaluate(make_agent(agent, public_problem(spec)), batch, law="true").score for agent in AGENTS])


def recording_errors(
    table: OutcomeTable, questions: dict[str, Question], spec: ExamSpec, batch: ExamBatch
) -> npt.NDArray[np.float64]:
    """(A + 1,) standard errors of mean predicted scores (each agent's, then all agents') that the recording's samples
    cause: jackknife over groups of samples."""
    group = np.asarray(table.numbers("sample")) % GROUPS
    means = []
    for left_out in range(GROUPS):
        part = dataclasses.replace(table, rows=table.rows.filter(pa.array(group != left_out)))
        scores = predicted(spec.replace(source=source_of(part, questions)), batch).mean(1)
        means.append([*scores, scores.mean()])
    spread = np.array(means) - np.mean(means, axis=0)
    return np.asarray(np.sqrt((GROUPS - 1) / GROUPS * (spread**2).sum(0)))


def steps(table: OutcomeTable, plays: list[Play]) -> list[str]:
    """Where differences arise: of every tier, plays with room for its cap and plays that the budget clamps; what the table
    says of the same questions under the same caps against what happened (right, tokens, cut)."""
    samples: dict[tuple[str, str], list[npt.NDArray]] = {}
    columns = [table.rows[name].to_pylist() for name in ("question_id", "tier", "tokens", "correct")]
    for name, tier, tokens, correct in zip(*columns, strict=True):
        samples.setdefault((name, tier), []).append(np.array([tokens, correct]))
    outcomes = {key: np.array(value) for key, value in samples.items()}
    lines = []
    for number, tier in enumerate(TIERS):
        for clamped in (False, True):
            chosen = [play for play in plays if play.tier == number and (play.cap < tier.most_tokens) == clamped]
            if not chosen:
                continue
            expected, happened = [], []
            for play in chosen:
                tokens, correct = outcomes[play.question, tier.name].T
                fits = tokens <= play.cap
                expected.append([(correct * fits).mean(), np.minimum(tokens, play.cap).mean(), 1 - fits.mean()])
                happened.append([play.right, play.tokens, play.cut])
            difference = np.array(happened, float) - np.array(expected)
            error = difference.std(0, ddof=1) / np.sqrt(len(chosen))
            shown = ", ".join(
                f"{name} {there:.3f} / {here:.3f} ({(here - there) / max(scale, 1e-9):+.1f} s.e.)"
                for name, there, here, scale in zip(
                    ("right", "tokens", "cut"), np.mean(expected, 0), np.mean(happened, 0), error, strict=True
                )
            )
            lines.append(f"{tier.name}{', clamped' if clamped else ''}: {len(chosen):,} plays; table / live: {shown}")
    return lines


def main() -> None:
    """Record, predict, take the exams, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="base address of the server")
    parser.add_argument("--run", type=Path, default=Path("runs/equivalence"))
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    questions = read_questions(f"table:{TINYLM}?split=test&sample={QUESTIONS}&seed=0")
    begun, cpu = time.time(), time.process_time()
    table = record(arguments.vllm, questions, arguments.run)
    tokens = int(table.numbers("tokens").sum())
    print(f"recorded {table.num_rows:,} generations, {tokens:,} tokens ({time.time() - begun:.0f} s)", flush=True)
    by_id = {question.question_id: question for question in questions}
    settings = []
    for fraction, (exams, repeats) in SIZES.items():
        spec = exam_spec(source_of(table, by_id), num_tasks=TASKS, budget=fraction)
        settings.append((fraction, repeats, spec, draw_exams(spec, 1, np.arange(exams))))
    for repeat in range(max(repeats for _, repeats in SIZES.values())):
        for _, repeats, spec, batch in settings:
            for agent in AGENTS if repeat < repeats else ():
                file = kept(arguments.run, spec, agent, repeat)
                if not file.exists():
                    done = live(arguments.vllm, spec, batch, agent, by_id)
                    file.with_suffix(".part").write_text(json.dumps(done))
                    file.with_suffix(".part").rename(file)
                    print(f"{file.stem}: {time.time() - begun:.0f} s", flush=True)
    results, everything = [], []
    for fraction, repeats, spec, batch in settings:
        expected = predicted(spec, batch)
        taken = np.empty((len(AGENTS), len(batch), repeats))
        for a, repeat in np.ndindex(len(AGENTS), repeats):
            scores, plays = json.loads(kept(arguments.run, spec, AGENTS[a], repeat).read_text())
            taken[a, :, repeat] = scores
            everything += [Play(*play) for exam in plays for play in exam]
        # Standard errors of mean differences: each agent's, then all agents' together.
        noise = np.sqrt(taken.var(2, ddof=1).mean(1) / (len(batch) * repeats))
        noise = np.append(noise, np.sqrt((noise**2).sum()) / len(AGENTS))
        recorded = recording_errors(table, by_id, spec, batch)
        means = np.append(expected.mean(1), expected.mean())
        differences = np.append(taken.mean((1, 2)) - expected.mean(1), taken.mean() - expected.mean())
        for name, mean, difference, live_error, table_error in zip(
            (*AGENTS, "all"), means, differences, noise, recorded, strict=True
        ):
            half = 1.96 * float(np.hypot(live_error, table_error))
            results.append(
                {
                    "budget": spec.budget,
                    "fraction": fraction,
                    "agent": name,
                    "predicted": mean,
                    "live": mean + difference,
                    "difference": difference / mean,
                    "low": (difference - half) / mean,
                    "high": (difference + half) / mean,
                    "live_error": live_error / mean,
                    "recording_error": table_error / mean,
                    "within": bool(abs(difference) + half <= MARGIN * mean),
                }
            )
            print(
                "| {budget} ({fraction}) | {agent} | {predicted:.3f} | {live:.3f} | {difference:+.2%} [{low:+.2%}, {high:+.2%}] "
                "| {live_error:.2%}, {recording_error:.2%} | {within} |".format(**results[-1]),
                flush=True,
            )
    for line in steps(table, everything):
        print(line)
    played = sum(play.tokens for play in everything)
    print(f"{len(everything):,} live plays, {played:,} tokens; this process: {time.process_time() - cpu:.0f} CPU s")
    if arguments.out:
        arguments.out.write_text(json.dumps({"recorded": tokens, "played": played, "results": results}, indent=1))
    sys.exit(not all(result["within"] for result in results if result["agent"] == "all"))


if __name__ == "__main__":
    main()
