"""A budget in dollars over several models: never overspent, whatever usage says; one unit throughout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.live.answer import BudgetController, Result
from agents.live.session import Session
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.ledger import JournalError, Ledger
from roi_env.answering.prices import Price, Rates
from roi_env.envs.live import KnownGroups, default_laws, live_source

TIERS = [ThinkingTier("small", 0, 40), ThinkingTier("large", 0, 40), ThinkingTier("large-deep", 100, 20)]
RATES = Rates(
    {
        "small": Price(Decimal("0.05"), Decimal("0.4")),
        "large": Price(Decimal("1.25"), Decimal(10)),
        "large-deep": Price(Decimal("1.25"), Decimal(10)),
    }
)
QUESTIONS = [Question("d", f"q{n}", "why " * (1 + n % 17), "") for n in range(80)]


class Models:
    """Two models whose prompts and answers have as many tokens as a generator says; usage may leave them out.

    Keeps what it truly generated and read, at its true price.
    """

    name = "models"

    def __init__(self, seed: int, tells: float = 0.8, over: float = 0.0, delay: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tells, self.over, self.delay = tells, over, delay
        self.cost, self.now, self.most = Fraction(0), 0, 0
        self.asked: list[Ask] = []

    def most_prompt(self, ask: Ask) -> int:
        return len(ask.question.text.encode()) + 20

    async def answer(self, ask: Ask) -> Reply:
        self.asked.append(ask)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.delay * self.rng.random())
        self.now -= 1
        kind, price = self.rng.random(), RATES.prices[ask.tier.name]
        if kind < 0.1:
            return Reply("", None, 0, None, "error", "nothing", "HTTP 500")
        read = int(self.rng.integers(1, self.most_prompt(ask) + 1))
        made = int(self.rng.integers(0, ask.most + 1))
        if kind >= 0.2 and self.rng.random() < self.over:  # of a lost answer nobody knows that it was more
            read, made = 3 * self.most_prompt(ask), 2 * ask.most
        self.cost += read * Fraction(price.prompt) + made * Fraction(price.completion)
        if kind < 0.2:
            return Reply("", None, max(made, ask.most), None, "error", "reserved", "connection lost", lost=True)
        told = self.rng.random() < self.tells
        finish = "length" if made >= ask.cap else "stop"
        return Reply("42", None, made, None, finish, "server", prompt_tokens=read if told else None)

    async def close(self) -> None:
        return None


def run(
    models: Models, budget: str | int, window: int, *, agent: str = "online-lp", questions: Sequence[Question] = QUESTIONS,
    path: Path | None = None,
) -> Result:  # fmt: skip
    controller = BudgetController(agent, models, budget, tiers=TIERS, window=window, rates=RATES, ledger=path)
    return controller.run(questions)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60_000),
    st.sampled_from([1, 8, 64]),
    st.sampled_from(["online-lp", "fixed-3", "random", "remaining-share"]),
)
def test_dollars_are_never_overspent(seed: int, micro: int, window: int, agent: str) -> None:
    models = Models(seed, delay=0.001)
    result = run(models, f"{micro} micro-usd", window, agent=agent)
    audit = result.audit()
    assert audit["unit"] == "micro-usd"
    assert models.cost <= result.charged <= micro, "what was spent is charged, and is within the budget"
    assert audit["overshoot"] == 0
    assert models.most <= window
    assert len(result.rows) == len(QUESTIONS)
    assert sum(row.charged for row in result.rows) == result.charged
    assert all(row.reserved <= micro for row in result.rows)


@pytest.mark.parametrize("window", [1, 8, 64])
def test_more_than_the_caps_is_charged_and_shown(window: int) -> None:
    models = Models(3, tells=1.0, over=0.3, delay=0.001)
    audit = run(models, "0.03usd", window).audit()
    assert audit["within"]
    assert audit["overshoot"] > 0
    assert models.cost <= audit["charged"] <= 30_000 + audit["overshoot"]


def test_the_budget_is_spent_over_all_models() -> None:
    result = run(Models(5), "0.02usd", 1)
    played = {row.tier for row in result.rows}
    assert len(played & {tier.name for tier in TIERS}) > 1
    assert result.charged > 0.8 * 20_000
    assert {row.tier for row in run(Models(5), "10usd", 1).rows} <= {"large", "large-deep"}, (
        "a large one buys the dear ones"
    )


def test_a_prompt_that_is_too_dear_for_one_model_goes_to_a_cheaper_one() -> None:
    # 900 tokens of prompt may cost 1,125 micro-dollars at the large model, 45 at the small one.
    long = [Question("d", "q", "x" * 880, "")]
    models = Models(1)
    row = run(models, "500 micro-usd", 1, agent="fixed-3", questions=long).rows[0]
    assert (row.tier, [ask.tier.name for ask in models.asked]) == ("small", ["small"])
    models = Models(1)
    row = run(models, "40 micro-usd", 1, agent="fixed-3", questions=long).rows[0]
    assert (row.status, row.charged, models.asked) == ("cut", 0, []), "nobody can read it for that"


def test_a_run_is_resumed_in_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = run(Models(7), "0.02usd", 1, questions=QUESTIONS[:20], path=path)
    models = Models(8)
    again = run(models, "0.02usd", 1, path=path)
    assert [row.charged for row in again.rows[:20]] == [row.charged for row in first.rows]
    assert again.charged <= 20_000
    with pytest.raises(JournalError, match="it counts micro-usd, and the budget is tokens now"):
        BudgetController("online-lp", Models(1), 900, tiers=TIERS, ledger=path).run(QUESTIONS)
    BudgetController("fixed-1", Models(1), 900, tiers=TIERS, ledger=tmp_path / "tokens.jsonl").run(QUESTIONS)
    with pytest.raises(JournalError, match="it counts tokens, and the budget is micro-usd now"):
        run(Models(1), "0.02usd", 1, path=tmp_path / "tokens.jsonl")


def test_a_damaged_ledger_is_charged_at_the_dearest_request(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run(Models(7), "0.05usd", 1, path=path)
    lines = path.read_text().splitlines(keepends=True)
    most = json.loads(lines[0])["most"]
    path.write_text("".join([*lines[:5], "{garbage\n", *lines[7:]]))
    ledger = Ledger(path)
    assert ledger.lost == most, "one request cannot be read"
    ledger.close()
    longest = max(len(question.text.encode()) for question in QUESTIONS) + 20
    assert most == RATES.cost("large-deep", 121, longest)


def test_units_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from agents.base import make_agent, public_problem
    from roi_env.exams.config import exam_spec
    from roi_env.sources.packaged import tinylm_table

    def controller(budget: int | str, **options: object) -> None:
        BudgetController("online-lp", Models(1), budget, tiers=TIERS, **options).spec(QUESTIONS)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="budget 5000 has no unit, and the costs of 'live' are US dollars"):
        controller(5000, rates=RATES)
    with pytest.raises(ValueError, match=r"budget '2\.50usd' is money, but the costs of 'live' are tokens"):
        controller("2.50usd")
    with pytest.raises(ValueError, match=r"table's costs are tokens, those of the tiers US dollars .*--unit micro-usd"):
        controller("2.50usd", rates=RATES, table=tinylm_table())

    known = KnownGroups(
        tuple(tier.name for tier in TIERS), ("all",), default_laws(TIERS, [0.5]), np.zeros(1, np.int32), np.ones(1),
        lambda texts, columns: np.zeros(len(texts), np.int64),
    )  # fmt: skip
    assert live_source(QUESTIONS, TIERS, known=known).unit == "tokens"
    with pytest.raises(ValueError, match="the predictor's costs are tokens, those of the tiers US dollars"):
        live_source(QUESTIONS, TIERS, known=known, rates=RATES)
    with pytest.raises(ValueError, match=r"the predictor's costs are US dollars .*, those of the tiers tokens"):
        live_source(QUESTIONS, TIERS, known=replace(known, unit="micro-usd"))

    class Bare:
        name = "bare"

    with pytest.raises(ValueError, match="bare: prompts cost money, and this solver has no most_prompt"):
        BudgetController("online-lp", Bare(), "1usd", tiers=TIERS, rates=RATES).spec(QUESTIONS)  # type: ignore[arg-type]
    spec = exam_spec(live_source(QUESTIONS, TIERS), num_tasks=len(QUESTIONS), budget=500)
    agent = make_agent("online-lp", public_problem(spec))
    with pytest.raises(ValueError, match="the agent counts tokens, the tiers cost micro-usd"):
        Session(agent, Models(1), TIERS, [0] * len(QUESTIONS), ledger=Ledger(None), rates=RATES)
