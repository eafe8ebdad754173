"""``roi probe``: what is printed of an endpoint is what it does."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from experiments.config import ConfigError
from tests.commands import roi
from tests.upstream import Upstream, serving


def probed(upstream: Upstream, *options: str) -> dict[str, tuple[str, str]]:
    """Enforcement and measurement of every field; the endpoint's model is found by the command."""
    with serving(upstream.app()) as url:
        printed = roi("probe", f"{url}/v1", "--backend", "vllm", "--trials", "1", "--cap", "200", *options)
        assert f"stub at {url}/v1" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    return {field: (enforcement, measured) for field, enforcement, measured in rows}


def test_caps_that_hold_and_caps_that_are_ignored_are_told_apart() -> None:
    upstream = Upstream(thinks=60)
    found = probed(upstream, "--thinking", "5", "--prompt", "why?", "--temperature", "0.25")
    assert found["thinking_token_budget=5"][0] == "hard"
    assert found["custom_params.thinking_budget=5"][0] == "none"
    assert {seen.prompt for seen in upstream.seen} == {"why?"}
    assert {seen.body["temperature"] for seen in upstream.seen} == {0.25}
    assert max(seen.cap for seen in upstream.seen) == 200
    assert probed(Upstream(thinks=60, enforces=False))["thinking_token_budget=8"][0] == "none"


def test_an_endpoint_that_answers_nothing_is_an_error_with_its_own_words() -> None:
    with (
        serving(Upstream(script=[{"error": {"code": 429, "message": "slow down"}}]).app()) as url,
        pytest.raises(ConfigError, match=f"{url}/v1: slow down"),
    ):
        roi("probe", f"{url}/v1", "--model", "stub", "--trials", "1")


def test_an_endpoint_that_is_not_there_is_told_before_its_model_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"does not tell its model \(http://127\.0\.0\.1:9/v1/models: .*\): start it"):
        roi("probe", "http://127.0.0.1:9/v1", "--trials", "1")


def test_a_model_must_be_named_where_it_cannot_be_found() -> None:
    with serving(Upstream().app()) as url, pytest.raises(ConfigError, match="--model is needed"):
        roi("probe", f"{url}/elsewhere", "--trials", "1")
