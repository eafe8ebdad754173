"""The budget controller: the budget is a guarantee, sequentially the exam itself, in windows never beyond it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from agents.base import Agent, DecisionView, Problem, Probs, State, make_agent, one_hot, public_problem
from agents.live.answer import BudgetController, Result
from agents.live.session import Session
from agents.playing import evaluate_exact, evaluate_sampled
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.http import HTTPSolver
from roi_env.answering.ledger import Ledger
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from tests.upstream import FAULTS, Upstream, schedule, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10)]
QUESTIONS = [Question("sums", f"q{n}", f"{n} + {n} =" + " please" * (n % 3), str(2 * n)) for n in range(30)]


class Adder:
    """A real solver of these sums; takes as long as it is told, and knows how many it works on."""

    name = "adder"

    def __init__(self, overshoot: int = 0, delay: float = 0.0) -> None:
        self.asked: list[Ask] = []
        self.overshoot, self.delay, self.now, self.most = overshoot, delay, 0, 0

    async def answer(self, ask: Ask) -> Reply:
        self.asked.append(ask)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.now -= 1
        number = int(ask.question.text.split()[0])
        need = 3 if ask.tier.thinking == 0 else 20 + number % 11
        if need > ask.cap:
            return Reply("", "hm", ask.cap + self.overshoot, None, "length", "server")
        right = ask.tier.thinking > 0 or number % 3 == 0
        return Reply(str(2 * number if right else -1), None, need + self.overshoot, None, "stop", "server")

    async def close(self) -> None:
        return None


def check(question: Question, text: str) -> bool:
    return text == question.answer


class Always(Agent):
    """Plays one tier while it is legal."""

    name = "always"

    def __init__(self, problem: Problem, action: int = 2) -> None:
        super().__init__(problem)
        self.action = action

    def act(self, view: DecisionView, state: State) -> tuple[Probs, State]:
        action = np.where(view.mask[:, self.action], self.action, 0)
        return one_hot(action, view.problem.num_tiers + 1), state


def audited(result: Result) -> dict[str, Any]:
    audit = result.audit()
    assert audit["within"]
    assert sum(audit["by_status"].values()) == len(result.rows)
    assert audit["charged"] == sum(row.charged for row in result.rows)
    return audit


@pytest.mark.parametrize(
    "agent", ["online-lp", "lp-lookahead", "bellman", "remaining-share", "fixed-2", "random", "resolve"]
)
def test_sequential_is_the_live_environment(agent: str) -> None:
    from roi_env.envs.live import ROIReasoningLiveEnv

    controller = BudgetController(agent, Adder(), 300, tiers=TIERS, check=check, seed=3)
    result = controller.run(QUESTIONS)
    audit = audited(result)
    env = ROIReasoningLiveEnv(
        QUESTIONS, TIERS, Adder(), check, num_tasks=30, budget=300, order="given", feedback="cost+correct"
    )
    env.reset(seed=0)
    names = [None, "now", "long"]
    for row in result.rows:
        if row.status == "not reached":
            break
        _, _, terminated, _, info = env.step(names.index(row.tier))
        assert (info["tokens"], info["correct"], info["overspent"]) == (
            row.charged,
            bool(row.correct),
            row.status == "cut",
        )
    assert terminated
    assert (info["score"], info["spent"]) == (audit["right"] or 0, audit["charged"])
    env.close()


class Recorded:
    """Answers as a table says: (n, K) tokens and (n, K) right, of ``QUESTIONS``; cut at the cap like an endpoint."""

    name = "recorded"

    def __init__(self, tokens: np.ndarray, right: np.ndarray) -> None:
        self.tokens, self.right = tokens, right

    async def answer(self, ask: Ask) -> Reply:
        cell = QUESTIONS.index(ask.question), TIERS.index(ask.tier)
        tokens = int(self.tokens[cell])
        if tokens > ask.cap:
            return Reply("", "hm", ask.cap, None, "length", "server")
        # An answer that ends exactly at its tier's cap may be said to end by length: it is whole.
        finish: Any = "length" if tokens == ask.tier.most_tokens else "stop"
        return Reply(ask.question.answer if self.right[cell] else "no", None, tokens, None, finish, "server")

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("decision_cost", [0, 2])
@pytest.mark.parametrize("budget", [25, 60, 150])
def test_live_exams_score_what_the_table_predicts(budget: int, decision_cost: int) -> None:
    from dataclasses import replace

    from roi_env.envs.live import live_source

    rng = np.random.default_rng(budget + decision_cost)
    tokens = rng.integers(1, [tier.most_tokens + 1 for tier in TIERS], size=(len(QUESTIONS), len(TIERS)))
    right = rng.random(tokens.shape) < 0.6
    source = replace(
        live_source(QUESTIONS, TIERS),
        outcome_start=np.arange(tokens.size, dtype=np.int32),
        outcome_count=np.ones(tokens.size, np.int32),
        outcomes=(tokens << 1 | right).ravel().astype(np.uint32),
    )
    spec = exam_spec(source, num_tasks=8, budget=budget, decision_cost=decision_cost)
    batch = draw_exams(spec, 0, np.arange(12))

    async def live(agent: Agent, exam: int) -> tuple[int, int]:
        ledger, score = Ledger(None), 0
        session = Session(agent, Recorded(tokens, right), TIERS, batch.groups[exam].tolist(), ledger=ledger)
        for position, item in enumerate(batch.items[exam]):
            ticket = await session.admit(position, QUESTIONS[item])
            if ticket is None:
                break
            row, reply = await session.finish(ticket)
            score += row.status == "answered" and reply is not None and check(QUESTIONS[item], reply.text)
        ledger.close()
        return score, session.charged

    for name in ("lp-lookahead", "remaining-share", "fixed-2", "resolve"):
        agent = make_agent(name, public_problem(spec))
        told = evaluate_exact(agent, batch, law="true")
        found = np.array([asyncio.run(live(agent, exam)) for exam in range(len(batch))])
        np.testing.assert_allclose(found[:, 0], told.score, atol=1e-9)
        np.testing.assert_allclose(found[:, 1], told.spent, atol=1e-9)


def test_no_data_is_needed_and_costs_are_learned() -> None:
    solver = Adder()
    result = BudgetController("online-lp", solver, 400, tiers=TIERS).run(QUESTIONS)
    audit = audited(result)
    # The prior holds a long thought for 32 tokens; it takes 25: what is saved is spent on further questions.
    assert audit["charged"] > 350
    assert audit["by_status"]["answered"] > 400 / 32


@pytest.mark.parametrize("window", [2, 5, 16])
def test_in_windows_the_worst_case_fits(window: int) -> None:
    solver = Adder(delay=0.002)
    controller = BudgetController("online-lp", solver, 400, tiers=TIERS, window=window)
    result = controller.run(QUESTIONS)
    audit = audited(result)
    assert audit["overshoot"] == 0
    assert audit["charged"] <= 400
    assert 1 < solver.most <= window
    assert audit["charged"] > 300
    assert [row.position for row in result.rows] == list(range(30))


@pytest.mark.parametrize("window", [1, 6])
def test_an_overshoot_is_charged_shown_and_leaves_less_for_others(window: int) -> None:
    result = BudgetController("fixed-2", Adder(overshoot=40), 400, tiers=TIERS, window=window).run(QUESTIONS)
    audit = audited(result)
    assert audit["overshoot"] > 0
    honest = BudgetController("fixed-2", Adder(), 400, tiers=TIERS, window=window).run(QUESTIONS).audit()
    assert audit["by_status"]["answered"] < honest["by_status"]["answered"]


@pytest.mark.parametrize("window", [1, 8])
def test_a_thousand_faults_never_break_the_budget(window: int, tmp_path: Path) -> None:
    # 500 faults sequentially, 500 in windows.
    quick = tuple(fault for fault in FAULTS if fault not in ("drip", "silence"))
    asked = [Question("d", f"q{n}", f"{n} + {n} =", "42") for n in range(60)]
    faults, spent = schedule(window, 900, quick, share=0.8), 0
    upstream = Upstream(faults, drip_seconds=2.0)
    budget = 1500

    async def run(url: str, path: Path) -> Result:
        solver = HTTPSolver(
            f"{url}/v1",
            "stub",
            "vllm",
            first_wait=0.0005,
            deadline=5.0,
            retries=30,
            count=lambda text: len(text.split()),
        )
        try:
            return await BudgetController("fixed-2", solver, budget, tiers=TIERS, window=window, ledger=path).answer(
                asked
            )
        finally:
            await solver.close()

    statuses: set[str] = set()
    with serving(upstream.app()) as url:
        for number in range(40):
            if sum(seen.fault != "ok" for seen in upstream.seen) >= 500:
                break
            before = len(upstream.seen)
            path = tmp_path / f"{number}.jsonl"
            result = asyncio.run(run(url, path))
            audit = audited(result)
            seen = upstream.seen[before:]
            truth = sum(one.generated for one in seen)
            over = sum(max(0, one.generated - one.cap) for one in seen)
            assert truth <= audit["charged"] <= budget + audit["overshoot"], "every generated token is paid for"
            assert audit["overshoot"] <= over
            assert len(result.rows) == len(asked), "nothing is lost"
            assert sum(row.attempts for row in result.rows) == len(seen), "nothing is asked behind the book's back"
            ledger = Ledger(path)
            assert not ledger.unknown
            assert ledger.charged == audit["charged"], "nothing is charged twice"
            ledger.close()
            statuses |= set(audit["by_status"])
            spent += audit["charged"]
    assert sum(one.fault != "ok" for one in upstream.seen) >= 500
    assert statuses >= {"answered", "error", "not reached"}


@pytest.mark.parametrize("window", [1, 4])
def test_an_interruption_leaves_a_valid_partial_result_that_can_be_resumed(window: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    async def run() -> BudgetController:
        controller = BudgetController("online-lp", Adder(delay=0.02), 500, tiers=TIERS, window=window, ledger=path)
        task = asyncio.create_task(controller.answer(QUESTIONS))
        while controller.result is None or len(controller.result.rows) < 6:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return controller

    result = asyncio.run(run()).result
    assert result is not None
    assert result.interrupted
    audit = audited(result)
    assert 6 <= len(result.rows) < 30
    lost = [row for row in result.rows if row.error == "interrupted"]
    assert len(lost) <= window
    assert all(row.charged == row.reserved for row in lost)
    result.write(tmp_path)
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(result.rows)
    assert json.loads((tmp_path / "audit.json").read_text())["charged"] == audit["charged"]
    solver = Adder()
    again = BudgetController("online-lp", solver, 500, tiers=TIERS, window=window, ledger=path).run(QUESTIONS)
    audited(again)
    assert len(again.rows) == 30
    assert again.charged <= 500
    assert [row.question_id for row in again.rows[: len(result.rows)]] == [row.question_id for row in result.rows]
    assert [row.charged for row in again.rows[: len(result.rows)]] == [row.charged for row in result.rows]
    assert len(solver.asked) <= 30 - len(result.rows)


@pytest.mark.parametrize("window", [1, 5])
def test_a_check_that_breaks_stops_the_run_and_leaves_its_charges(window: int, tmp_path: Path) -> None:
    calls = []

    def breaks(question: Question, text: str) -> bool:
        calls.append(question)
        if len(calls) == 4:
            raise RuntimeError("no")
        return True

    controller = BudgetController(
        "fixed-2", Adder(delay=0.001), 600, tiers=TIERS, window=window, check=breaks, ledger=tmp_path / "l.jsonl"
    )
    with pytest.raises(RuntimeError, match="no"):
        controller.run(QUESTIONS)
    assert controller.result is not None
    assert [row.error for row in controller.result.rows].count("RuntimeError: no") == 1
    audited(controller.result)
    assert len(controller.result.rows) < 30
    ledger = Ledger(tmp_path / "l.jsonl")
    assert not ledger.unknown
    assert ledger.charged == controller.result.charged
    ledger.close()


def test_decisions_that_cost_never_break_the_budget() -> None:
    for cost in (1, 3, 7):
        for budget in (50, 61, 200):
            result = BudgetController("online-lp", Adder(), budget, tiers=TIERS, decision_cost=cost).run(QUESTIONS)
            assert audited(result)["charged"] <= budget


def test_a_kill_charges_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    BudgetController("fixed-2", Adder(), 500, tiers=TIERS, ledger=path).run(QUESTIONS)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]))  # settings, two settled requests, one that was sent
    result = BudgetController("fixed-2", Adder(), 500, tiers=TIERS, ledger=path).run(QUESTIONS)
    assert [row.status for row in result.rows[:4]] == ["answered", "answered", "unknown", "answered"]
    assert result.rows[2].charged == result.rows[2].reserved == 51
    assert audited(result)["charged"] <= 500


def test_answers_in_flight_are_judged_in_worker_processes() -> None:
    from roi_env.answering.grading import GradingPool

    with GradingPool("exact") as pool:
        controller = BudgetController("online-lp", Adder(delay=0.001), 600, tiers=TIERS, window=6, check=pool)
        result = controller.run(QUESTIONS)
    answered = [row for row in result.rows if row.status == "answered"]
    assert len(answered) > 10
    for row in answered:
        assert row.correct == (row.answer == QUESTIONS[row.position].answer)


def test_agents_that_do_not_fit_are_named() -> None:
    problem = public_problem(BudgetController("fixed-1", Adder(), 500, tiers=TIERS).spec(QUESTIONS))
    agent = Always(problem)
    assert audited(BudgetController(agent, Adder(), 500, tiers=TIERS).run(QUESTIONS))["charged"] > 400
    for options, message in (
        ({"budget": 600}, "budget is 500"),
        ({"budget": 500, "asked": QUESTIONS[:5]}, "takes exams of 30 tasks"),
        ({"budget": 500, "tiers": [TIERS[0], ThinkingTier("max", 50, 1)]}, "knows tiers"),
    ):
        asked = options.pop("asked", QUESTIONS)
        tiers = options.pop("tiers", TIERS)
        with pytest.raises(ValueError, match=message):
            BudgetController(agent, Adder(), options["budget"], tiers=tiers).run(asked)
    with pytest.raises(ValueError, match="give a table"):
        BudgetController("plugin-bellman", Adder(), 500, tiers=TIERS).run(QUESTIONS)


def test_a_table_gives_beliefs_and_training() -> None:
    from roi_env.sources.packaged import tinylm_table

    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
    asked = [Question("prod", f"p{n}", f"{n} + 1", "1", {"kind": f"prod {1 + n % 3}"}) for n in range(10)]
    for agent in ("lp-lookahead", "plugin-bellman"):
        controller = BudgetController(
            agent, Adder(), 230, tiers=tiers, table=tinylm_table(), group_by="kind", decision_cost=1
        )
        result = controller.run(asked)
        audited(result)
        played = dict.fromkeys(("prod 1", "prod 2", "prod 3"), 0)
        for row, question in zip(result.rows, asked, strict=True):
            played[str(question.extra["kind"])] += row.tier is not None
        # The table knows what this model can do: all one-digit products come first, three digits are beyond it.
        assert played["prod 1"] == 4
        assert played["prod 3"] == 0


def test_a_saved_agent_decides(tmp_path: Path) -> None:
    from agents.base import save_agent
    from roi_env.sources.packaged import tinylm_table

    tiers = [ThinkingTier("answer", 0, 24), ThinkingTier("short", 48, 24), ThinkingTier("long", 160, 24)]
    asked = [Question("prod", f"p{n}", f"{n} + 1", str(2 * n), {"kind": f"prod {1 + n % 3}"}) for n in range(10)]
    options: dict[str, Any] = {"tiers": tiers, "table": tinylm_table(), "group_by": "kind", "decision_cost": 1}
    trainer = BudgetController("plugin-bellman", Adder(), 230, **options)
    save_agent(trainer.make_agent(public_problem(trainer.spec(asked))), tmp_path / "agent.npz")
    saved = BudgetController(str(tmp_path / "agent.npz"), Adder(), 230, check=check, **options).run(asked)
    fresh = BudgetController("plugin-bellman", Adder(), 230, **options).run(asked)
    assert [row.tier for row in saved.rows] == [row.tier for row in fresh.rows]
    assert any(row.correct for row in saved.rows)


def test_online_beliefs_pay_where_the_published_ones_are_not_the_whole_truth() -> None:
    spec = exam_spec("latent", budget=0.3, feedback="cost+correct")
    batch = draw_exams(spec, 0, np.arange(60))
    problem = public_problem(spec)
    online = evaluate_sampled(make_agent("online-lp", problem), batch, replicates=10).score.mean()
    fixed = evaluate_sampled(make_agent("resolve", problem), batch, replicates=10).score.mean()
    assert online > 1.03 * fixed
    spec = exam_spec("signal", budget=0.3)
    batch = draw_exams(spec, 0, np.arange(60))
    sure = make_agent("online-lp(strength=1e12)", public_problem(spec))
    started = make_agent("online-lp", public_problem(spec))
    best = evaluate_sampled(sure, batch, replicates=10).score.mean()
    assert evaluate_sampled(started, batch, replicates=10).score.mean() > 0.95 * best
