"""Real Inspect runs under one budget, against an endpoint that knows what it truly generated."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai", reason="needs an environment of make test-integrations")

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig, get_model
from inspect_ai.scorer import includes, model_graded_qa
from inspect_ai.solver import Generate, TaskState, generate, prompt_template, solver, system_message

from agents.base import Agent, DecisionView, Probs, one_hot
from agents.integrations.inspect import EvalBudget
from roi_env.answering.base import ThinkingTier
from roi_env.answering.prices import Price
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.packaged import TINYLM
from tests.servers import MODEL, transformers_serve
from tests.upstream import Upstream, serving

TIERS = [ThinkingTier("now", 0, 10), ThinkingTier("long", 40, 10, "high")]
DIRECT = {"now": {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}}
"""An answer costs 4 tokens at the first tier and 24 at the second."""


def task(count: int = 20, name: str = "sums", **options: Any) -> Task:
    samples = [Sample(f"what is {number}?", target="42", id=f"q{number}") for number in range(count)]
    return Task(MemoryDataset(samples), name=name, **{"solver": generate(), "scorer": includes(), **options})


def run(tasks: Any, url: str, tmp_path: Path, name: str = "stub", **options: Any) -> list[EvalLog]:
    options = {"model_args": {"api_key": "-", "max_retries": 0}, "display": "none", **options}
    options |= {"model": f"openai-api/local/{name}", "model_base_url": f"{url}/v1", "log_dir": str(tmp_path)}
    return evaluate(tasks, **options)


def right(log: EvalLog) -> int:
    return sum(score.value == "C" for sample in log.samples or () for score in (sample.scores or {}).values())


@pytest.mark.parametrize(("budget", "answered"), [(1, 0), (23, 0), (24, 1), (200, 8), (479, 19), (480, 20), (900, 20)])
def test_the_books_are_exact_and_every_sample_is_scored(budget: int, answered: int, tmp_path: Path) -> None:
    upstream, asked = Upstream(), task()
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, budget, tiers=TIERS, settings=DIRECT, agent="fixed-2")
        (log,) = run(asked, url, tmp_path)
    audit = made.audit()
    assert audit["charged"] == upstream.generated == min(budget, 480)
    assert (log.status, len(log.samples or ()), right(log)) == ("success", 20, answered)
    assert (audit["right"] or 0, audit["by_status"].get("answered", 0), audit["within"]) == (answered, answered, True)
    limits = [sample.limit for sample in log.samples or () if sample.limit]
    assert len(limits) == 20 - answered - (budget in (200, 479)) - (budget in (1, 23))
    assert all(limit.type == "custom" for limit in limits)
    assert all(seen.cap <= 51 and seen.body["reasoning_effort"] == "high" for seen in upstream.seen)


class EverySecond(Agent):
    """Skips, then answers at once, then thinks."""

    name = "every-second"

    def act(self, view: DecisionView, state: Any) -> tuple[Probs, Any]:
        return one_hot(view.position % 3, 3), state


def test_an_agent_skips_and_chooses_the_effort(tmp_path: Path) -> None:
    from agents.base import AGENTS, register

    if "every-second" not in AGENTS:
        register("every-second", f"{__name__}:EverySecond", "a test's")
    upstream, asked = Upstream(), task(9)
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, 1000, tiers=TIERS, settings=DIRECT, agent="every-second")
        (log,) = run(asked, url, tmp_path)
    assert [row.status for row in made.result.rows] == ["skipped", "answered", "answered"] * 3
    assert [row.charged for row in made.result.rows] == [0, 4, 24] * 3
    assert made.audit()["charged"] == upstream.generated == 84
    skipped = {sample.id for sample in log.samples or () if sample.limit}
    assert skipped == {"q0", "q3", "q6"}
    assert right(log) == 6


def test_an_agent_that_learns_from_scores_beats_first_come_first_served(tmp_path: Path) -> None:
    """Both tiers are always right, one costs a sixth."""
    scores = {}
    for agent in ("fixed-2", "online-lp"):
        upstream, asked = Upstream(), task(30)
        with serving(upstream.app()) as url:
            made = EvalBudget(asked, 240, tiers=TIERS, settings=DIRECT, agent=agent)
            (log,) = run(asked, url, tmp_path, max_samples=2)
        assert made.audit()["charged"] == upstream.generated <= 240
        scores[agent] = right(log)
    assert scores["fixed-2"] == 10
    assert scores["online-lp"] > 20


@solver
def several(calls: int) -> Any:
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        for _ in range(calls):
            state = await generate(state)
        return state

    return solve


def test_all_calls_of_a_sample_stay_within_what_it_got(tmp_path: Path) -> None:
    upstream, asked = Upstream(), task(4, solver=several(4))
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, 1000, tiers=TIERS, agent="fixed-2")
        (log,) = run(asked, url, tmp_path)
    assert [row.charged for row in made.result.rows] == [51] * 4
    assert made.audit()["charged"] == upstream.generated == 204
    said = [[turn.text for turn in sample.messages if turn.role == "assistant"] for sample in log.samples or ()]
    assert all(turns[:2] == ["the answer is 42"] * 2 for turns in said), "what the first calls said is kept"
    assert all("51 tokens that it got" in sample.limit.reason for sample in log.samples or () if sample.limit)


def test_a_configured_cap_several_choices_and_two_tasks_and_epochs(tmp_path: Path) -> None:
    config = GenerateConfig(max_tokens=22, num_choices=2)
    upstream, tasks = Upstream(), [task(3, "one", config=config, epochs=2), task(2, "two")]
    with serving(upstream.app()) as url:
        made = EvalBudget(tasks, 1000, tiers=TIERS, agent="fixed-2")
        run(tasks, url, tmp_path)
    assert len(made.result.rows) == 8
    assert made.audit()["charged"] == upstream.generated == 6 * 44 + 2 * 24


def test_failures_cost_what_they_may_have_cost(tmp_path: Path) -> None:
    """A free refusal, a gateway's error after generation, a broken answer, no usage."""
    for fault, charged in (("429", 24), ("503", 24), ("502", 51), ("no-usage", 51)):
        upstream, asked = Upstream(faults=[fault]), task(1)
        with serving(upstream.app()) as url:
            made = EvalBudget(asked, 1000, tiers=TIERS, agent="fixed-2")
            run(asked, url, tmp_path / fault, max_retries=1)
        assert made.audit()["charged"] == charged >= upstream.generated, fault
    upstream, asked = Upstream(faults=["422"]), task(2)
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, 1000, tiers=TIERS, agent="fixed-2")
        run(asked, url, tmp_path / "422", fail_on_error=False, max_samples=1)
    assert [row.status for row in made.result.rows] == ["error", "answered"]


def test_a_client_that_repeats_requests_unseen_is_refused(tmp_path: Path) -> None:
    upstream, asked = Upstream(faults=["502"]), task(1)
    with serving(upstream.app()) as url:
        EvalBudget(asked, 1000, tiers=TIERS, agent="fixed-2")
        logs = run(asked, url, tmp_path, model_args={"api_key": "-"})
    assert not upstream.seen
    assert not logs or "max_retries" in str(logs[0].error)


def test_graders_are_counted_beside_and_judge_after_the_end(tmp_path: Path) -> None:
    upstream = Upstream(answer=lambda prompt: "GRADE: C" if "GRADE" in prompt else "the answer is 42")
    with serving(upstream.app()) as url:
        grader = get_model(
            "openai-api/local/stub", base_url=f"{url}/v1", api_key="-", config=GenerateConfig(max_tokens=60)
        )
        asked = task(4, scorer=model_graded_qa(model=grader))
        made = EvalBudget(asked, 48, tiers=TIERS, agent="fixed-2")
        (log,) = run(asked, url, tmp_path)
    audit = made.audit()
    assert audit["charged"] == 48
    assert audit["charged"] + audit["scoring_tokens"] == upstream.generated
    assert len(log.samples or ()) == 4


def test_a_ledger_goes_on_and_other_samples_are_refused(tmp_path: Path) -> None:
    upstream, charged = Upstream(), []
    with serving(upstream.app()) as url:
        for _ in range(2):
            asked = task(4)
            made = EvalBudget(asked, 120, tiers=TIERS, agent="fixed-2", ledger=tmp_path / "ledger.jsonl")
            run(asked, url, tmp_path)
            charged.append(made.audit()["charged"])
        assert charged == [96, 120]
        assert upstream.generated == 120
        lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
        assert sum(record.get("charge", 0) for record in map(json.loads, lines)) == 120
        made = EvalBudget(task(4), 100, tiers=TIERS, agent="fixed-2")
        logs = run(task(5), url, tmp_path)
    assert upstream.generated == 120, "nothing is asked that the budget does not know"
    assert not logs or logs[0].status == "error"
    assert not made.active


def test_a_budget_ends_with_its_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upstream, asked = Upstream(), task(3)
    with serving(upstream.app()) as url, caplog.at_level(logging.WARNING):
        made = EvalBudget(asked, 24, tiers=TIERS, agent="fixed-2")
        run(asked, url, tmp_path)
        run(asked, url, tmp_path, max_tokens=40)
    assert made.audit()["charged"] == 24
    assert upstream.generated == 24 + 72
    assert not [record for record in caplog.records if "hook" in record.message], "Inspect only warns of faulty hooks"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"never": {}}}, "no tier 'never'"),
        ({"agent": "nobody"}, "unknown agent"),
        ({"budget": 0}, "budget"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalBudget(task(3), **{"budget": 100, "tiers": TIERS, **options})


def test_equal_names_are_refused() -> None:
    tasks: Sequence[Task] = [task(2), task(2)]
    with pytest.raises(ValueError, match="same task, id and epoch"):
        EvalBudget(tasks, 100, tiers=TIERS)


def test_the_example(tmp_path: Path) -> None:
    """Every answer is right, a thought costs five times as much: an agent that sees that answers all at once."""
    root = Path(__file__).parents[2]
    upstream = Upstream(answer=lambda prompt: "<answer>42</answer>", thinks=20)
    with serving(upstream.app()) as url:
        command = [sys.executable, str(root / "examples/integrations/inspect_run.py"), f"{url}/v1", "stub"]
        env = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
    lines = [line for line in done.stdout.splitlines() if "accuracy" in line]
    spent = [int(re.findall(r"(\d+) of", line)[0]) for line in lines]
    assert [line.split()[0] for line in lines] == ["fixed-2", "fixed-2", "lp-lookahead", "online-lp"]
    assert upstream.generated <= sum(spent), "a connection that broke is charged what it may have cost"
    assert 2100 <= spent[0] < 2300
    assert max(spent[1:]) <= 1050


PRICES = {"openai-api/local/stub": Price(Decimal(1), Decimal(10))}
"""A prompt of the endpoint has 9 tokens: an answer at the second tier costs 249 micro-dollars."""


@pytest.mark.parametrize("budget", ["0.0001usd", "0.0005usd", "0.002usd", "$0.004", "1usd"])
def test_dollars_are_charged_to_the_micro_dollar_and_never_overspent(budget: str, tmp_path: Path) -> None:
    upstream, asked = Upstream(), task()
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, budget, prices=PRICES, tiers=TIERS, settings=DIRECT, agent="fixed-2")
        (log,) = run(asked, url, tmp_path)
    audit = made.audit()
    assert audit["unit"] == "micro-usd"
    assert audit["charged"] == 10 * upstream.generated + 9 * len(upstream.seen) <= audit["budget"]
    assert (log.status, len(log.samples or ()), audit["within"]) == ("success", 20, True)
    assert right(log) == (20 if budget == "1usd" else audit["by_status"].get("answered", 0))
    if budget == "$0.004":
        assert right(log) >= 12, "what is not spent is not held back"
    limits = [sample.limit.reason for sample in log.samples or () if sample.limit]
    assert all("USD" in reason and "tokens" not in reason for reason in limits)


def test_what_is_reserved_suffices_for_the_first_call(tmp_path: Path) -> None:
    """Whatever solvers put around the data set's text, and for answers that cost less than their prompts may."""
    image = ContentImage(image="data:image/png;base64," + "A" * 2_000_000)
    shown = Sample([ChatMessageUser(content=[ContentText(text="what is it?"), image])], target="42", id="image")
    cases: list[tuple[str, str, Task]] = [
        ("fixed-1", "0.003usd", task()),
        ("fixed-2", "0.01usd", task(solver=[system_message("be brief " * 300), generate()])),
        ("online-lp", "0.01usd", task(solver=[prompt_template("think first " * 200 + "{prompt}"), generate()])),
        ("fixed-2", "0.1usd", Task(MemoryDataset([shown]), name="sums", solver=generate(), scorer=includes())),
    ]
    for number, (agent, budget, asked) in enumerate(cases):
        upstream = Upstream()
        with serving(upstream.app()) as url:
            made = EvalBudget(asked, budget, prices=PRICES, tiers=TIERS, settings=DIRECT, agent=agent)
            (log,) = run(asked, url, tmp_path / str(number))
        assert made.audit()["by_status"] == {"answered": len(asked.dataset)}, [s.limit for s in log.samples or ()]
        assert made.audit()["charged"] == sum(10 * seen.generated + seen.read for seen in upstream.seen)
        assert all(seen.cap == TIERS["reasoning_effort" in seen.body].most_tokens for seen in upstream.seen)


def test_a_call_that_does_not_fit_says_what_it_may_cost(tmp_path: Path) -> None:
    upstream, asked = Upstream(), task(2, solver=[system_message("be brief " * 300), generate()])
    with serving(upstream.app()) as url:
        made = EvalBudget(asked, "0.002usd", prices=PRICES, tiers=TIERS, settings=DIRECT, agent="fixed-2")
        (log,) = run(asked, url, tmp_path)
    assert not upstream.seen
    assert (made.audit()["charged"], log.status, len(log.samples or ())) == (0, "success", 2)
    first = next(sample.limit for sample in log.samples or () if sample.limit)
    assert re.search(r"are left, a call may cost 0\.00\d+ USD", first.reason)


@pytest.mark.slow
def test_dollars_of_a_real_model_are_those_of_its_own_usage(tmp_path: Path) -> None:
    """First without a limit, then with half of what that took: prices that do not divide, the endpoint counts."""
    price = Price(Decimal("12.3457"), Decimal("41.3579"))
    rows = {row["question_id"]: row for row in OutcomeTable.read(TINYLM).split("test").rows.to_pylist()}
    samples = [Sample(row["question"], target=row["answer"], id=name) for name, row in sorted(rows.items())[::97][:8]]
    tiers, limit = [ThinkingTier("answer", 0, 24), ThinkingTier("long", 160, 24)], "1usd"
    with transformers_serve() as real:
        for number, agent in enumerate(("fixed-2", "fixed-2", "fixed-1")):
            upstream = Upstream(real=real)
            asked = Task(MemoryDataset(samples), name="sums", solver=generate(), scorer=includes())
            with serving(upstream.app()) as url:
                ways = {"answer": DIRECT["now"]}
                prices = {f"openai-api/local/{MODEL}": price}
                made = EvalBudget(asked, limit, prices=prices, tiers=tiers, settings=ways, agent=agent)
                (log,) = run(asked, url, tmp_path / str(number), str(MODEL), max_retries=1)
            audit = made.audit()
            owed = [seen.read * price.prompt + seen.generated * price.completion for seen in upstream.seen]
            assert audit["charged"] == sum(map(math.ceil, owed)) <= audit["budget"]
            assert (log.status, audit["within"], audit["overshoot"]) == ("success", True, 0)
            assert all(sample.scores for sample in log.samples or ())
            assert len(upstream.seen) == 8 if number != 1 else 2 <= len(upstream.seen) < 8
            limit = f"{Decimal(audit['charged'] // 2) / 10**6}usd" if number == 0 else limit


def test_every_call_is_charged_at_its_own_models_price(tmp_path: Path) -> None:
    """Growing prompts too; a model without a price is not asked."""

    @solver
    def asks_another(name: str) -> Any:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state = await generate(state)
            other = get_model(name, base_url=f"{url}/v1", api_key="-", max_retries=0)
            await other.generate(state.messages)
            return state

        return solve

    prices = {**PRICES, "openai-api/local/other": Price(Decimal("0.1"), Decimal(1))}
    upstream = Upstream()
    with serving(upstream.app()) as url:
        for name, charged in (("openai-api/local/other", 249 + 25), ("openai-api/local/unknown", 249)):
            asked = task(3, solver=asks_another(name))
            made = EvalBudget(asked, "1usd", prices=prices, tiers=TIERS, agent="fixed-2")
            (log,) = run(asked, url, tmp_path / name)
            assert made.audit()["charged"] == 3 * charged
    assert all("no price of the model" in sample.limit.reason for sample in log.samples or () if sample.limit)
    assert {seen.body["model"] for seen in upstream.seen} == {"stub", "other"}


def test_dollars_of_failures_are_the_most_that_they_may_have_cost(tmp_path: Path) -> None:
    for fault in ("502", "no-usage"):
        upstream, asked = Upstream(faults=[fault]), task(1)
        with serving(upstream.app()) as url:
            made = EvalBudget(asked, "0.01usd", prices=PRICES, tiers=TIERS, agent="fixed-2")
            run(asked, url, tmp_path / fault, max_retries=1)
        audit = made.audit()
        assert 51 * 10 <= audit["charged"] <= made.result.rows[0].reserved
        assert audit["charged"] >= 10 * upstream.generated + 9 * len(upstream.seen)
