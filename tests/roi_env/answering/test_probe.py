"""The probe tells caps that hold from caps that are accepted and ignored."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from roi_env.answering.http import HTTPSolver
from roi_env.answering.probe import Finding, _judge_efforts, _Measured, probe
from tests.upstream import Upstream, serving


def findings(upstream: Upstream, backend: str = "vllm") -> dict[str, Finding]:
    async def run(url: str) -> list[Finding]:
        solver = HTTPSolver(f"{url}/v1", "stub", backend)
        try:
            return await probe(solver, thinking=8, cap=200, trials=2)
        finally:
            await solver.close()

    with serving(upstream.app()) as url:
        return {finding.field: finding for finding in asyncio.run(run(url))}


def test_a_cap_that_holds_and_knobs_that_do_nothing() -> None:
    found = findings(Upstream(thinks=60))
    assert found["thinking_token_budget=8"].enforcement == "hard"
    assert found["custom_params.thinking_budget=8"].enforcement == "none", "accepted with status 200, and ignored"
    assert found["effort low/medium/high"].enforcement == "none"
    assert found["total cap=32"].enforcement == "hard"
    off = next(finding for field, finding in found.items() if "enable_thinking=False" in field)
    assert off.enforcement == "hard"


def test_a_server_that_ignores_the_cap_is_found_out() -> None:
    found = findings(Upstream(thinks=60, enforces=False))
    assert found["thinking_token_budget=8"] == (
        "thinking_token_budget=8", "none", "60 tokens of thought (most 60) instead of 60",
    )  # fmt: skip


def test_a_model_that_thinks_too_little_says_nothing() -> None:
    found = findings(Upstream(thinks=6))
    assert found["thinking_token_budget=8"].enforcement == "unclear"


def test_no_probe_sends_a_seed() -> None:
    upstream = Upstream(thinks=60, version="0.32.0")
    findings(upstream)
    assert len(upstream.seen) > 10
    assert not [seen for seen in upstream.seen if "seed" in str(seen.body)]


def test_an_error_inside_an_answer_is_no_measurement() -> None:
    found = findings(Upstream(script=[{"error": {"code": 429, "message": "slow down"}}]))
    assert found["(none)"][1:] == ("rejected", "slow down")


@pytest.mark.parametrize("said", [{}, {"usage": {"completion_tokens": 0}}])
def test_answers_that_do_not_say_their_tokens_measure_nothing(said: dict[str, object]) -> None:
    answer = {"choices": [{"message": {"content": "36"}, "finish_reason": "stop"}], **said}
    found = findings(Upstream(script=[answer]))
    assert list(found) == ["(none)"]
    assert found["(none)"].enforcement == "rejected"
    assert "tokens" in found["(none)"].evidence


def test_a_refusal_is_no_measurement() -> None:
    message = {"content": None, "refusal": "No"}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 5}}
    found = findings(Upstream(script=[answer]))
    assert found["(none)"][1:] == ("rejected", "it refused the prompt")


def test_an_endpoint_that_refuses_everything() -> None:
    found = findings(Upstream(["422"] * 99))
    assert list(found) == ["(none)"]
    assert found["(none)"].enforcement == "rejected"


def test_lengths_that_differ_by_chance_are_no_enforcement() -> None:
    """Per field: fewer tokens on average, while the trials of both overlap."""

    def answer(tokens: int) -> dict[str, object]:
        message = {"reasoning_content": "a" * 4 * tokens, "content": "36"}
        usage = {"completion_tokens": tokens, "completion_tokens_details": {"reasoning_tokens": tokens}}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}

    plain, half = [answer(100), answer(60)], [answer(50), answer(50)]
    others = [answer(n) for n in (20, 70)]
    found = findings(Upstream(script=[*plain, *half, *others * 40]))
    kinds = {name: finding.enforcement for name, finding in found.items()}
    assert kinds["thinking_token_budget=8"] == "unclear"
    assert "overlap" in found["thinking_token_budget=8"].evidence
    assert kinds["effort low/medium/high"] == "none", "equal on average"


@pytest.mark.parametrize(("low", "expected"), [((10, 70), "unclear"), ((10, 40), "hint")])
def test_efforts_are_told_apart_by_every_trial(low: tuple[int, int], expected: str) -> None:
    measured = {"low": _Measured(200, low), "medium": _Measured(200, (50, 60)), "high": _Measured(200, (60, 90))}
    assert _judge_efforts(measured).enforcement == expected
