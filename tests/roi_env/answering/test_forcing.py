r"""Answers forced over an endpoint: what is asked, what it costs, what may go wrong between the two requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from roi_env.answering.base import Ask, Question, Reply, is_unsent
from roi_env.answering.dialect import INSTRUCT
from roi_env.answering.forcing import ForcingSolver
from roi_env.answering.http import EndpointError
from roi_env.answering.ledger import Ledger
from roi_env.answering.recording import Limits, LiveRecording, RecordingProgress, live_table, record_live
from tests.tiny_models import CHAT, tiny_tokenizer
from tests.upstream import Upstream, serving

FORCE = INSTRUCT.force
# As Qwen2.5's: a turn is written alike whether it is begun or there.
ALIKE = CHAT.replace("<|im_start|>assistant\n", "{{ '<|im_start|>assistant\n' }}")
TOKENIZER = tiny_tokenizer(ALIKE)
FORCED = len(TOKENIZER(FORCE, add_special_tokens=False).input_ids)
ANSWER = FORCED + 5
TIERS = [INSTRUCT.tier("now", 0, ANSWER), INSTRUCT.tier("short", ANSWER + 6, ANSWER), INSTRUCT.tier("long", 60, ANSWER)]
NOW, SHORT, LONG = TIERS
QUESTIONS = [Question("d", str(n), f"What is {n} + {n}?", str(2 * n)) for n in range(5)]


def speaks(words: int, word: str = "hm") -> Callable[[str], str]:
    """A model that reasons for so many words, and goes on with a forced answer for eight."""
    return lambda prompt: "42} and so on until all is said" if prompt.endswith(FORCE) else " ".join([word] * words)


def solver(url: str, backend: Any = "vllm", **options: Any) -> ForcingSolver:
    kept = {"first_wait": 0.01, "deadline": 5.0, **options}
    return ForcingSolver(f"{url}/v1", "stub", backend, tokenizer=TOKENIZER, **kept)


def ask(upstream: Upstream, asks: Sequence[Ask], backend: Any = "vllm", **options: Any) -> list[Reply]:
    async def run(url: str) -> list[Reply]:
        one = solver(url, backend, **options)
        try:
            return [await one.answer(entry) for entry in asks]
        finally:
            await one.close()

    with serving(upstream.app()) as url:
        return asyncio.run(run(url))


def test_a_cut_reasoning_is_gone_on_with() -> None:
    upstream = Upstream(answer=speaks(100), thinks=0)
    (reply,) = ask(upstream, [Ask(QUESTIONS[1], SHORT, SHORT.most_tokens)])
    first, second = (seen.body for seen in upstream.seen)
    cap = SHORT.most_tokens - ANSWER
    assert first["max_completion_tokens"] == cap == 6
    assert first["messages"] == [{"role": "user", "content": INSTRUCT.asked(QUESTIONS[1].text)}]
    assert "continue_final_message" not in first
    assert "thinking_token_budget" not in first, "vLLM refuses it where it has no reasoning parser"
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert second["messages"] == [*first["messages"], {"role": "assistant", "content": "hm hm hm hm hm hm" + FORCE}]
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert second["max_completion_tokens"] == ANSWER - FORCED
    assert reply.text == "hm hm hm hm hm hm" + FORCE + "42} and so on until"
    assert reply.tokens == SHORT.most_tokens == upstream.generated + FORCED
    assert (reply.finish, reply.error, reply.attempts, reply.prompt_tokens) == ("length", None, 2, 18)


def test_reasoning_that_ends_is_not_forced_and_at_once_is_forced_from_the_start() -> None:
    upstream = Upstream(answer=speaks(4), thinks=0)
    whole, now = ask(upstream, [Ask(QUESTIONS[1], tier, tier.most_tokens) for tier in (SHORT, NOW)])
    assert (whole.text, whole.tokens, whole.finish) == ("hm hm hm hm", 4, "stop")
    assert now.text == FORCE + "42} and so on until"
    assert now.tokens == FORCED + 5
    assert len(upstream.seen) == 2
    assert upstream.seen[1].body["messages"][-1]["content"] == FORCE


@pytest.mark.parametrize("fits", [False, True])
def test_no_cap_is_ever_exceeded(fits: bool) -> None:
    upstream = Upstream(answer=speaks(100), thinks=0)
    asks = [Ask(QUESTIONS[0], tier, cap) for tier in TIERS for cap in range(1, tier.most_tokens + 1)]
    replies = ask(upstream, asks, fit_answer=fits)
    for one, reply in zip(asks, replies, strict=True):
        assert reply.error is None
        assert reply.tokens == one.cap, "it never ends by itself, so it is cut at its cap"
        room = min(one.cap, ANSWER) if fits else one.cap - (one.tier.most_tokens - ANSWER)
        assert (FORCE in reply.text) == (room > FORCED)
    assert sum(reply.tokens for reply in replies) >= upstream.generated


@pytest.mark.parametrize(
    ("faults", "tokens", "lost"),
    [(["ok", "422"], 6, False), (["ok", "429-after"], 6, False), (["ok", "reset"], 6 + 5, True), (["reset"], 6, True)],
)
def test_what_a_reasoning_cost_stays_charged(faults: list[str], tokens: int, lost: bool) -> None:
    upstream = Upstream(faults, answer=speaks(100), thinks=0, retry_after="100")
    (reply,) = ask(upstream, [Ask(QUESTIONS[0], SHORT, SHORT.most_tokens)], retries=0, patience=1)
    assert reply.error is not None
    assert (reply.tokens, reply.lost, reply.retry_in) == (tokens, lost, None)
    assert reply.unreachable == ("429-after" in faults), "it is asked again"


def test_an_interruption_between_the_requests_is_not_one_before_them() -> None:
    upstream = Upstream(["ok", *["503"] * 50], answer=speaks(100), thinks=0)

    async def run(url: str) -> BaseException:
        one = solver(url, first_wait=30.0)
        task = asyncio.create_task(one.answer(Ask(QUESTIONS[0], SHORT, SHORT.most_tokens)))
        while len(upstream.seen) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        await one.close()
        assert isinstance(end, asyncio.CancelledError)
        return end

    with serving(upstream.app()) as url:
        assert not is_unsent(asyncio.run(run(url)))


@pytest.mark.parametrize("backend", ["generic", "llama.cpp", "transformers"])
def test_a_rendered_prompt_stands_where_nothing_else_goes_on(backend: str) -> None:
    upstream = Upstream(answer=lambda prompt: speaks(100)(prompt), thinks=0)
    (reply,) = ask(upstream, [Ask(QUESTIONS[1], SHORT, SHORT.most_tokens)], backend, system="Be brief.")
    first, second = (seen.body for seen in upstream.seen)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": INSTRUCT.asked(QUESTIONS[1].text)}]
    rendered = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert (first["prompt"], first["max_tokens"]) == (rendered, 6)
    assert (second["prompt"], second["max_tokens"]) == (rendered + "hm hm hm hm hm hm" + FORCE, ANSWER - FORCED)
    assert reply.tokens == SHORT.most_tokens == upstream.generated + FORCED


@pytest.mark.parametrize(
    "template",
    [
        ALIKE + "{%- if add_generation_prompt -%}<think>\n\n</think>\n\n{%- endif -%}",
        ALIKE.replace("message.content }}", "message.content | trim }}"),
        None,
    ],
)
def test_a_template_that_writes_an_answer_otherwise_is_rendered_here(template: str | None) -> None:
    upstream, own = Upstream(answer=speaks(100), thinks=0), tiny_tokenizer(template)

    async def run(url: str) -> Reply:
        one = ForcingSolver(f"{url}/v1", "stub", "vllm", tokenizer=own)
        try:
            return await one.answer(Ask(QUESTIONS[1], SHORT, SHORT.most_tokens))
        finally:
            await one.close()

    with serving(upstream.app()) as url:
        reply = asyncio.run(run(url))
    first, second = (seen.body["prompt"] for seen in upstream.seen)
    assert second == first + "hm hm hm hm hm hm" + FORCE
    assert reply.tokens == SHORT.most_tokens


def test_a_prompt_begins_once() -> None:
    """The endpoint's tokenizer writes the beginning of a text itself, as Llama's does."""
    import tokenizers.processors

    own = tiny_tokenizer("<|pad|>" + CHAT)
    own.bos_token = "<|pad|>"
    bare = solver("http://h")
    bare.tokenizer = own
    assert bare._bare("<|pad|>x") == "<|pad|>x", "this one writes none"
    own._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<|pad|> $A", special_tokens=[("<|pad|>", 0)]
    )
    assert bare._bare("<|pad|>x") == "x"


@pytest.mark.parametrize("backend", ["openai", "anthropic", "gemini", "openai-responses", "deepseek"])
def test_who_cannot_go_on_with_a_text_is_refused(backend: str) -> None:
    with pytest.raises(EndpointError, match=rf"{backend} is not known to go on .*leave --dialect out.*vllm, sglang"):
        solver("http://h", backend)


def test_a_thought_that_is_shown_apart_is_an_error_that_says_what_to_do() -> None:
    (reply,) = ask(
        Upstream(answer=speaks(100), thinks=3, enforces=False), [Ask(QUESTIONS[0], SHORT, SHORT.most_tokens)], "sglang"
    )
    assert reply.error is None, "the stub obeys enable_thinking"
    told = {"message": {"role": "assistant", "content": None, "reasoning_content": "hm " * 6}}
    (reply,) = ask(Upstream(answer=speaks(100), thinks=0, told=told), [Ask(QUESTIONS[0], SHORT, SHORT.most_tokens)])
    assert "without a reasoning parser" in str(reply.error)
    assert reply.tokens == 6, "it was generated"


def test_what_is_no_single_conversation_is_refused() -> None:
    for more in ({"prompt": "x"}, {"choices": 2}):
        (reply,) = ask(Upstream(), [Ask(QUESTIONS[0], SHORT, SHORT.most_tokens)._replace(**more)])
        assert "takes conversations" in str(reply.error)
        assert reply.tokens == 0


def test_the_bound_of_prompts_holds_for_both_requests() -> None:
    upstream = Upstream(answer=speaks(100), thinks=0)
    one, question = solver("http://h"), Ask(QUESTIONS[0], LONG, LONG.most_tokens)
    ask(upstream, [question])
    read = sum(len(json.dumps(seen.body["messages"])) for seen in upstream.seen)
    assert one.most_prompt(question) >= read


# -- recordings -------------------------------------------------------------------------------------------------------


def record(upstream: Upstream, path: Path, samples: int = 2, **options: Any) -> tuple[Ledger, RecordingProgress]:
    tiers = options.pop("tiers", TIERS)

    async def run(url: str) -> RecordingProgress:
        one = solver(url, retries=20, patience=0.5)
        try:
            return await record_live(QUESTIONS, tiers, samples, one, ledger, concurrency=4, **options)
        finally:
            await one.close()

    ledger = Ledger(path, {"tiers": [list(tier.__dict__.values()) for tier in TIERS]})
    try:
        with serving(upstream.app()) as url:
            return ledger, asyncio.run(run(url))
    finally:
        ledger.close()


def rows(ledger: Ledger) -> list[dict[str, Any]]:
    recording = LiveRecording(ledger)
    correct = dict.fromkeys(recording.outcomes(), True)
    table = live_table(recording, TIERS, correct, menu="m", decision_cost=0)
    assert table.pairing
    found: list[dict[str, Any]] = table.rows.to_pylist()
    return found


@pytest.mark.parametrize("words", [3, 20, 100])
def test_one_reasoning_serves_all_tiers(words: int, tmp_path: Path) -> None:
    upstream = Upstream(answer=speaks(words), thinks=0)
    ledger, end = record(upstream, tmp_path / "j.jsonl")
    assert (end.done, end.total, end.errors) == (30, 30, 0)
    bodies = [seen.body for seen in upstream.seen]
    assert sum("continue_final_message" not in body for body in bodies) == 10, "one reasoning a sample"
    caps = {tier.name: tier.most_tokens - ANSWER for tier in TIERS}
    for row in rows(ledger):
        cap = caps[row["tier"]]
        cut = cap == 0 or words > cap
        assert row["tokens"] == (cap + FORCED + 5 if cut else words)
    cuts = sum(cap == 0 or words > cap for cap in caps.values())
    assert end.tokens == upstream.generated + 10 * cuts * FORCED, "what was generated, and what was forced"
    asked = len(upstream.seen)
    _, again = record(upstream, tmp_path / "j.jsonl", samples=3)
    assert again.done == 45
    assert len(upstream.seen) - asked == (asked // 2), "what was there is not asked again"


def test_a_recording_that_stops_goes_on_with_its_reasonings(tmp_path: Path) -> None:
    upstream, path, stops = Upstream(answer=speaks(100), thinks=0), tmp_path / "j.jsonl", 0
    for limit in range(40, 10**6, 60):
        ledger, end = record(upstream, path, limits=Limits(tokens=limit))
        assert end.tokens <= limit
        if end.stopped is None:
            break
        stops += 1
    assert stops > 5
    assert end.done == 30
    assert sum("continue_final_message" not in seen.body for seen in upstream.seen) == 10, "one reasoning a sample"
    assert len(rows(ledger)) == 30


def test_faults_lose_no_pairing_and_charge_what_was_generated(tmp_path: Path) -> None:
    faults = ["ok", "503", "reset", "ok", "429", "ok", "422", "truncated", "ok", "no-usage", "500"] * 4
    upstream, path = Upstream(faults, answer=speaks(100), thinks=0), tmp_path / "j.jsonl"
    for _ in range(6):
        ledger, end = record(upstream, path, retry_errors=True)
    assert (end.done, end.errors) == (30, 0)
    assert end.tokens >= upstream.generated
    made = LiveRecording(ledger)
    assert len(made.reasonings) == 10
    for (*name, tier, sample), reply in made.outcomes().items():
        if tier != "now":
            begun = made.reasonings[(*name, sample)].text  # type: ignore[index]
            assert reply.text.startswith(begun[:3])
    assert len(rows(ledger)) == 30


def test_a_reasoning_that_fails_is_an_error_of_its_tiers(tmp_path: Path) -> None:
    upstream = Upstream(["422"] * 1000, answer=speaks(100), thinks=0)
    _, end = record(upstream, tmp_path / "j.jsonl", samples=1)
    assert (end.done, end.errors, end.tokens) == (15, 15, 0)
    asked = len(upstream.seen)
    _, end = record(upstream, tmp_path / "j.jsonl", samples=1)
    assert len(upstream.seen) == asked, "permanent errors are not asked again"
