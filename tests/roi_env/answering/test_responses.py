"""What a response is charged and when it is no answer: never less than it implies, no thought twice, no failure hidden."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from roi_env.answering.backends import BACKENDS
from roi_env.answering.base import Ask, Question, Reply, ThinkingTier
from roi_env.answering.responses import NothingGenerated, read

TIER = ThinkingTier("long", 1000, 500)
CHATS = [name for name, row in BACKENDS.items() if row.path == "/chat/completions"]
WORDS = " ".join(f"word{n}" for n in range(200))


def words(text: str) -> int:
    return len(text.split())


def reply_to(data: Any, backend: str = "generic", *, question: str = "2+2", cap: int = 1501, **options: Any) -> Reply:
    ask = Ask(Question("d", "1", question, "4"), options.pop("tier", TIER), cap)
    return read(BACKENDS[backend], ask, data, asked=question, **options)


def chat(message: Any, finish: Any = "stop", usage: Any = None, **more: Any) -> dict[str, Any]:
    data = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}], **more}
    data["choices"][0]["finish_reason"] = finish
    return data if usage is None else {**data, "usage": usage}


def usage(prompt: Any = 20, completion: Any = 198, total: Any = None, reasoning: Any = None) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if total is not None:
        found["total_tokens"] = total
    if reasoning is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return found


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# ---------------------------------------------------------------------------------------------------------------------
# Counts


@pytest.mark.parametrize("backend", CHATS)
@pytest.mark.parametrize(
    ("counts", "tokens", "reasoning", "noted"),
    [
        (usage(20, 198, 623, 405), 603, 405, True),  # the answer's tokens leave the thought out
        (usage(20, 198, 623), 603, None, True),
        (usage(20, 198, None, 405), 603, 405, True),
        (usage(20, 198, 700, 405), 680, 405, True),
        (usage(20, 298, 318, 100), 298, 100, False),
        (usage(20, 198, 318, 100), 298, 100, True),  # a thought shorter than the answer, left out likewise
        (usage(20, None, 623), 603, None, False),
        (usage(20, 198, 100), 198, None, True),  # a total that is too small
        (usage(20, 198, 10), 198, None, True),
        (usage(20, 198, 218, 198), 198, None, True),  # no token is left for the text
        (usage(20.0, 30.0, 50.0, 10.0), 30, 10, False),
        (usage("20", "30", "50", "10"), 30, 10, False),
        (usage(20, 30.2), 31, None, False),
        (usage(20, -5, 50), 30, None, True),
        (usage(20, float("nan"), 50), 30, None, True),
        (usage(20, 30, 50, -1), 30, None, True),
        (usage(20, 30, float("inf")), 30, None, True),
        (usage(20, True, 50), 30, None, True),
        (usage(20, "many", 50), 30, None, True),
        (usage(-20, 30, 50), 30, None, True),
        (usage(20, 10**12, 50), 30, None, True),
    ],
)
def test_charged_is_the_most_that_the_counts_imply(
    backend: str, counts: Any, tokens: int, reasoning: int | None, noted: bool
) -> None:
    reply = reply_to(chat(said("36"), usage=counts), backend)
    assert (reply.tokens, reply.reasoning_tokens, reply.counted, reply.text) == (tokens, reasoning, "server", "36")
    assert (reply.note is not None) == noted, reply.note
    assert reply.finish == "stop"


def test_counts_under_other_names() -> None:
    counts: dict[str, Any] = {"input_tokens": 20, "output_tokens": 198, "total_tokens": 623}
    split = {"output_tokens_details": {"reasoning_tokens": 405}}
    for backend in CHATS:
        assert reply_to(chat(said("36"), usage=counts), backend).tokens == 603
        reply = reply_to(chat(said("36"), usage={**counts, "total_tokens": None, **split}), backend)
        assert (reply.tokens, reply.reasoning_tokens) == (603, 405)
        assert reply.note is not None
        zeros = {**usage(20, 30, 50), "input_tokens": 0, "output_tokens": 0}
        reply = reply_to(chat(said("36"), usage=zeros), backend)
        assert (reply.tokens, reply.note) == (30, None)


def test_where_the_thought_alone_was_counted_the_text_is_not_free() -> None:
    alone = chat(said("36"), usage=usage(20, 0, None, 60))
    apart = gemini([{"text": "36"}], counts={"promptTokenCount": 20, "thoughtsTokenCount": 60})
    for data, backend in ((alone, "deepseek"), (apart, "gemini")):
        reply = reply_to(data, backend, cap=90)
        assert (reply.tokens, reply.counted, reply.text) == (90, "reserved", "36")
        assert reply.note is not None
        assert reply_to(data, backend, count=words).tokens == 62, "thought, text and the end of the turn"
    apart["usageMetadata"]["totalTokenCount"] = 85
    assert reply_to(apart, "gemini").tokens == 65


def test_a_thought_that_took_everything_is_paid() -> None:
    reply = reply_to(chat(said(""), "length", usage(21, 0, 81, 60)))
    assert (reply.text, reply.tokens, reply.reasoning_tokens, reply.finish, reply.error) == ("", 60, 60, "length", None)
    assert reply_to(chat(said(None), "length", usage(21, 60, 81, 60))).tokens == 60


def test_counts_that_are_none_leave_the_reservation() -> None:
    unreadable: list[Any] = [usage(20, -5), usage(20, float("nan")), usage(None, None, 50), {}, [], "?"]
    for counts in unreadable:
        reply = reply_to(chat(said("36"), usage=counts), cap=90)
        assert (reply.tokens, reply.counted) == (90, "reserved"), counts
    assert reply_to(chat(said("36"), usage=usage(20, None, None, 200)), cap=90).tokens == 200, "the thought alone"
    assert reply_to(chat(said(WORDS), "length"), cap=90, count=words).tokens == 200, "the text alone"


def test_whatever_the_counts_no_part_of_them_exceeds_the_charge() -> None:
    """Ten thousand usages at random: an independent statement of the rule."""
    rng = random.Random(0)
    for _ in range(10_000):
        prompt, completion, total, reasoning = (rng.choice([None, 0, rng.randrange(300)]) for _ in range(4))
        counts = usage(prompt, completion, total, reasoning)
        reply = reply_to(chat(said("36"), usage=counts), cap=100)
        tokens = reply.tokens
        assert tokens >= (completion or 0)
        assert tokens >= (reasoning or 0)
        if reasoning is not None and completion is not None and reasoning > completion:
            assert tokens >= reasoning + completion
        if total is not None and prompt is not None:
            assert tokens >= total - prompt
        assert tokens > 0, "there is a text"
        known = max(completion or 0, (reasoning or 0) + (completion or 0), (total or 0) - (prompt or 0))
        assert tokens <= max(known, 100)


def test_whatever_the_counts_of_other_endpoints_no_part_of_them_exceeds_the_charge() -> None:
    rng = random.Random(2)

    def some(**names: Any) -> dict[str, Any]:
        return {name: value for name, value in names.items() if value is not None}

    for _ in range(5_000):
        prompt, answer, thought, total = (rng.choice([None, 0, rng.randrange(300)]) for _ in range(4))
        counts = some(
            promptTokenCount=prompt, candidatesTokenCount=answer, thoughtsTokenCount=thought, totalTokenCount=total
        )
        tokens = reply_to(gemini([{"text": "36"}], counts=counts), "gemini", cap=100).tokens
        inclusive = total is not None and prompt is not None and total - prompt == answer
        inclusive = inclusive and (answer or 0) >= (thought or 0)
        apart = (answer or 0) + (thought or 0)
        assert tokens >= ((answer or 0) if inclusive else apart), counts
        assert tokens >= ((total or 0) - (prompt or 0) if prompt is not None else 0), counts
        assert 0 < tokens <= max(100, apart, (total or 0) - (prompt or 0))

        split = None if thought is None else {"reasoning_tokens": thought}
        counts = some(input_tokens=prompt, output_tokens=answer, total_tokens=total, output_tokens_details=split)
        message = {"type": "message", "content": [{"type": "output_text", "text": "36"}]}
        tokens = reply_to(responses([message], counts), "openai-responses", cap=100).tokens
        assert tokens >= max(answer or 0, thought or 0), counts
        assert tokens >= apart or answer is None or (thought or 0) <= answer, counts
        assert tokens >= ((total or 0) - (prompt or 0) if prompt is not None else 0), counts

        split = None if thought is None else {"thinking_tokens": thought}
        counts = some(input_tokens=prompt, output_tokens=answer, output_tokens_details=split)
        data = {"content": [{"type": "text", "text": "36"}], "stop_reason": "end_turn", "usage": counts}
        tokens = reply_to(data, "anthropic", cap=100).tokens
        assert tokens >= max(answer or 0, thought or 0), counts
        assert tokens >= apart or answer is None or (thought or 0) <= answer, counts


def test_a_tokenizer_sees_what_usage_leaves_out() -> None:
    data = chat(said(WORDS), usage=usage(20, 198, None, 100))
    assert reply_to(data).tokens == 198
    reply = reply_to(data, count=words)
    assert (reply.tokens, reply.reasoning_tokens, reply.counted) == (300, 100, "tokenizer")
    assert reply.note is not None
    assert reply_to(chat(said("36"), usage=usage(20, 198, 218, 190)), count=words).tokens == 198


def test_other_counts_of_the_same_answer() -> None:
    llama = chat(said("36"), usage=usage(20, 12), timings={"prompt_n": 20, "predicted_n": 50})
    assert reply_to(llama, "llama.cpp").tokens == 50
    both = chat(said("36"), usage={"prompt_tokens": 20, "completion_tokens": 0, "output_tokens": 77})
    assert reply_to(both).tokens == 77
    listed = chat(said("36"), usage=usage(20, 2))
    listed["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}] * 33}
    for backend in CHATS:
        assert reply_to(listed, backend).tokens == 33
    del listed["usage"]
    assert (reply_to(listed, cap=9).tokens, reply_to(listed, cap=99).tokens) == (33, 99)
    twice = chat(said("36"), usage={**usage(20, 100, 120, 30), "reasoning_tokens": 40})
    assert reply_to(twice, "sglang").reasoning_tokens == 40


def gemini(parts: Any, finish: Any = "STOP", counts: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": parts}, "finishReason": finish}],
        "usageMetadata": counts or {},
        **more,
    }


def test_gemini_counts_apart_and_its_total_is_a_floor() -> None:
    thought = [{"text": "hm", "thought": True}, {"text": "36"}]
    for counts, tokens in (
        ({"promptTokenCount": 3, "candidatesTokenCount": 10, "thoughtsTokenCount": 20, "totalTokenCount": 33}, 30),
        ({"promptTokenCount": 3, "candidatesTokenCount": 10, "totalTokenCount": 93}, 90),
        ({"promptTokenCount": 3, "totalTokenCount": 93}, 90),
        ({"promptTokenCount": 3, "thoughtsTokenCount": 20, "totalTokenCount": 33}, 30),
        ({"promptTokenCount": 3, "candidatesTokenCount": 30, "thoughtsTokenCount": 20, "totalTokenCount": 33}, 30),
        (
            {
                "promptTokenCount": 3,
                "candidatesTokenCount": 10,
                "thoughtsTokenCount": 20,
                "toolUsePromptTokenCount": 50,
                "totalTokenCount": 83,
            },
            30,
        ),
    ):
        for backend in ("gemini", "gemini-level"):
            reply = reply_to(gemini(thought, counts=counts), backend)
            assert (reply.tokens, reply.text, reply.reasoning) == (tokens, "36", "hm"), counts
    spent = gemini([], "MAX_TOKENS", {"promptTokenCount": 3, "thoughtsTokenCount": 60, "totalTokenCount": 63})
    reply = reply_to(spent, "gemini")
    assert (reply.tokens, reply.reasoning_tokens, reply.finish, reply.error) == (60, 60, "length", None)


def responses(output: Any, counts: Any = None, status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"object": "response", "status": status, "error": None, "output": output, "usage": counts, **more}


def test_totals_of_responses_and_what_anthropic_leaves_out() -> None:
    message = {"type": "message", "content": [{"type": "output_text", "text": "36"}]}
    counts: dict[str, Any] = {"input_tokens": 20, "output_tokens": 198, "total_tokens": 623}
    assert reply_to(responses([message], counts), "openai-responses").tokens == 603
    counts["output_tokens_details"] = {"reasoning_tokens": 405}
    reply = reply_to(responses([message], counts), "openai-responses")
    assert (reply.tokens, reply.reasoning_tokens) == (603, 405)
    for backend in ("anthropic", "anthropic-adaptive"):
        data = {
            "content": [{"type": "text", "text": "36"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 20, "output_tokens": 19, "output_tokens_details": {"thinking_tokens": 405}},
        }
        reply = reply_to(data, backend)
        assert (reply.tokens, reply.reasoning_tokens) == (424, 405)
        assert reply.note is not None
        data["usage"] = {"input_tokens": 20, "output_tokens": 198, "total_tokens": 723, "cache_read_input_tokens": 100}
        assert reply_to(data, backend).tokens == 603


@pytest.mark.parametrize(("echo", "tokens"), [(False, 90), (True, 30)])
def test_pieces_of_a_stream_are_tokens_but_for_a_prompt_that_is_repeated(echo: bool, tokens: int) -> None:
    data = {"choices": [{"index": 0, "text": "w " * 90, "finish_reason": "length"}], "usage": usage(20, 30)}
    ask = Ask(Question("q", "0", "?", ""), ThinkingTier("t", 0, 100), 100, prompt="?", fields={"echo": echo})
    assert read(BACKENDS["generic"].of_texts, ask, data, asked="?", pieces=90).tokens == tokens


def test_prices_are_numbers() -> None:
    given = (
        ("0.002", 0.002),
        (0.5, 0.5),
        (float("nan"), None),
        (-1, None),
        (True, None),
        ("free", None),
        (1e300, None),
    )
    for cost, usd in given:
        reply = reply_to(chat(said("36"), usage={**usage(20, 30), "cost": cost}), "openrouter")
        assert (reply.usd, reply.note is None) == (usd, usd is not None), cost


# ---------------------------------------------------------------------------------------------------------------------
# Thoughts and texts


def details(text: str) -> list[dict[str, Any]]:
    half = len(text) // 2
    return [{"type": "reasoning.text", "text": part, "index": n} for n, part in enumerate((text[:half], text[half:]))]


PLACES: dict[str, Any] = {
    "reasoning": {"reasoning": WORDS},
    "reasoning_content": {"reasoning_content": f"\n{WORDS}\n"},
    "thinking": {"thinking": WORDS},
    "reasoning_details": {"reasoning_details": details(WORDS)},
    "block": {"content": f"<think>{WORDS}</think>the answer"},
    "block with spaces": {"content": f"\n<think>\n{WORDS}\n</think>the answer"},
    "end alone": {"content": f"{WORDS}</think>the answer"},
    "parts": {"content": [{"type": "thinking", "thinking": WORDS}, {"type": "text", "text": "the answer"}]},
    "nested": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": WORDS}]},
            {"type": "text", "text": "the answer"},
        ]
    },
}


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(PLACES, 2)])
def test_a_thought_shown_in_two_places_counts_once(first: str, second: str) -> None:
    if "content" in PLACES[first] and "content" in PLACES[second]:
        first, second = "reasoning", second
    message = {"role": "assistant", "content": "the answer", **PLACES[first], **PLACES[second]}
    reply = reply_to(chat(message, usage=usage(20, 202)), count=words)
    assert (reply.text, reply.tokens, reply.counted, reply.note) == ("the answer", 202, "server", None)
    assert (reply.reasoning or "").split() == WORDS.split()
    alone = reply_to(chat(message), count=words)
    marks = 2 if "spaces" in first + second else 0  # other marks are no words of their own
    assert 203 <= alone.tokens <= 203 + marks, "and the end of the turn"
    assert alone.counted == "tokenizer"


def test_a_part_of_a_thought_adds_nothing_and_another_thought_does() -> None:
    part = said("36", reasoning=WORDS, reasoning_content=" ".join(WORDS.split()[:50]))
    assert reply_to(chat(part), count=words).tokens == 202
    other = said("36", reasoning=WORDS, reasoning_content="something else")
    reply = reply_to(chat(other), count=words)
    assert reply.tokens == 204
    assert reply.note is not None
    assert reply.reasoning == f"{WORDS}\nsomething else"


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "36"}], "36", None),
        ([{"type": "output_text", "text": "3"}, {"type": "output_text", "text": "6"}], "36", None),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "36"}], "36", "hm"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "36"}], "36", "hm"),
        ([{"type": "reasoning", "reasoning": "hm"}, "36"], "36", "hm"),
        ([{"type": "reasoning_content", "reasoning_content": "hm"}, "36"], "36", "hm"),
        ([{"type": "THINKING", "text": "hm"}, {"type": "TEXT", "text": "36"}], "36", "hm"),
        ([{"type": "redacted_thinking", "data": "xx"}, {"type": "text", "text": "36"}], "36", None),
        ([{"text": "36"}], "36", None),
        ({"type": "text", "text": "36"}, "36", None),
        (["3", "6"], "36", None),
        ([{"type": "text", "text": {"value": "36", "annotations": []}}], "36", None),
        ("<think>so \\boxed{36}? wait", "", "so \\boxed{36}? wait"),
        ("<think></think>36", "36", None),
        ("a <think>b</think> c", "a <think>b</think> c", None),
    ],
)
@pytest.mark.parametrize("backend", ["vllm", "transformers", "openrouter", "generic"])
def test_contents_of_all_kinds(backend: str, content: Any, text: str, reasoning: str | None) -> None:
    reply = reply_to(chat(said(content), usage=usage(20, 400)), backend)
    assert (reply.text, reply.reasoning, reply.tokens, reply.error) == (text, reasoning, 400, None)


def test_what_is_no_text_is_told() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    reply = reply_to(chat(said([{"type": "text", "text": "36"}, image]), usage=usage(20, 40)))
    assert reply.text == "36"
    assert "image_url" in (reply.note or "")
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    for message in (said([image]), said(36), said(None, tool_calls=calls), said("", function_call={"name": "f"})):
        reply = reply_to(chat(message, usage=usage(20, 40)))
        assert reply.error is not None
        assert (reply.tokens, reply.lost, reply.counted) == (40, False, "server")


def test_the_thought_of_responses_is_no_text_and_its_summary_no_count() -> None:
    shown = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": WORDS}]}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "36"}]}
    reply = reply_to(responses([shown, message]), "openai-responses", count=words)
    assert (reply.text, reply.reasoning, reply.tokens, reply.counted) == ("36", WORDS, 202, "tokenizer")
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I add"}], "encrypted_content": "x"}
    reply = reply_to(responses([summary, message]), "openai-responses", count=words, cap=900)
    assert (reply.text, reply.reasoning, reply.tokens, reply.counted) == ("36", "I add", 900, "reserved")
    hidden = [{"type": "reasoning.summary", "summary": "I add"}, {"type": "reasoning.encrypted", "data": "x"}]
    reply = reply_to(chat(said("36", reasoning="I add", reasoning_details=hidden)), "openrouter", count=words, cap=900)
    assert (reply.reasoning, reply.tokens) == ("I add", 900), "the thought itself is not shown"


def test_a_repeated_prompt_is_emptied_where_it_is_one() -> None:
    answer = said("2+2 = 4, so \\boxed{4}. Also", reasoning="hm")
    for backend in CHATS:
        reply = reply_to(chat(answer, "length", usage(20, 30)), backend)
        assert (reply.text, reply.reasoning) == (answer["content"], "hm"), backend
    echo = "<|user|>2+2<|end|><|assistant|>"
    for content in (echo, "2+2"):
        assert reply_to(chat(said(content, reasoning="hm"), "length", usage(20, 30)), "transformers").text == ""
        assert reply_to(chat(said(content, reasoning="hm"), "length", usage(20, 30)), "vllm").text == content
    assert reply_to(chat(said(echo, reasoning="hm"), "stop", usage(20, 30)), "transformers").text == ""
    assert reply_to(chat(said("", reasoning="hm"), "length", usage(20, 30)), "transformers", question="").text == ""


# ---------------------------------------------------------------------------------------------------------------------
# How it ended


@pytest.mark.parametrize(
    ("data", "backend", "tokens"),
    [
        (chat(said(""), "error", usage(20, 0)), "generic", 0),
        (chat(said(""), "error", usage(20, 0, 80)), "openrouter", 60),
        (chat(said("3"), "error", usage(20, 7)), "openrouter", 7),
        (chat(said(""), "something new", usage(20, 0)), "generic", 0),
        (chat(said(None), "something new", usage(20, 9)), "vllm", 9),
        (chat(said(" \n"), None, usage(20, 9)), "vllm", 9),
        (chat(said(""), "something new", usage(20, 1501)), "vllm", 1501),
        (chat(said(""), "stop", usage(20, 0)), "vllm", 0),
        (chat(said(" \n"), "stop", usage(20, 0)), "vllm", 0),
        (chat(said(""), "length", usage(20, 0, 20)), "vllm", 0),
        (chat(said(None), "insufficient_system_resource", usage(20, 4)), "deepseek", 4),
        (chat(said(None), "abort", usage(20, 4)), "sglang", 4),
        (chat(None, "stop", usage(20, 4)), "generic", 4),
        ({"choices": [], "usage": usage(20, 0)}, "dashscope", 0),
        ({"choices": [], "usage": usage(20, 30, 50)}, "openai", 30),
        ({"choices": None, "usage": usage(20, 30, 50)}, "openai", 30),
        (chat(said("36"), "stop", usage(20, 30), error={"message": "upstream died", "code": 502}), "openrouter", 30),
        (chat(said(""), "stop", usage(20, 0), error="no capacity"), "generic", 0),
        (chat(said(""), "stop", error={"message": "bad", "code": 400}), "generic", 0),
        (chat(said(""), "stop", usage(20, None, None, 60), error={"message": "bad", "code": 400}), "generic", 60),
        (chat(said(""), "stop", usage(20, None, None, 60), error={"message": "slow", "code": 429}), "generic", 60),
        ({"error": {"message": "bad", "type": "invalid_request_error"}}, "generic", 0),
        ({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, "vllm", 0),
        ({"code": "invalid_argument", "message": "no such model", "request_id": "x"}, "dashscope", 0),
        ({"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}}, "anthropic", 0),
        (responses([], None, "failed", error={"code": "invalid_prompt", "message": "no"}), "openai-responses", 0),
        (responses([], {"input_tokens": 3, "output_tokens": 5}, "cancelled"), "openai-responses", 5),
        (responses([], {"input_tokens": 3, "output_tokens": 5}, "incomplete"), "openai-responses", 5),
        (responses([], {"input_tokens": 3, "output_tokens": 5}, "completed"), "openai-responses", 5),
        (chat("36", "stop", usage(20, 4)), "generic", 4),
        ({"content": [{"type": "text", "text": "I"}], "stop_reason": "pause_turn", "usage": {"output_tokens": 5}},
         "anthropic", 5),
        ({"content": [{"type": "tool_use", "name": "f"}], "stop_reason": "tool_use", "usage": {"output_tokens": 5}},
         "anthropic", 5),
        (gemini([], "OTHER", {"promptTokenCount": 3, "totalTokenCount": 3}), "gemini", 0),
        (gemini([], "MALFORMED_FUNCTION_CALL", {"promptTokenCount": 3, "totalTokenCount": 23}), "gemini", 20),
        (gemini([], "STOP", {"promptTokenCount": 3, "totalTokenCount": 3}), "gemini", 0),
        ({"usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}}, "gemini", 0),
        ({"candidates": [], "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}}, "gemini", 0),
        ({"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}, "gemini", 0),
    ],
)  # fmt: skip
def test_a_failed_answer_is_an_error_and_costs_what_it_says(data: Any, backend: str, tokens: int) -> None:
    reply = reply_to(data, backend)
    assert reply.error, reply
    assert (reply.finish, reply.text, reply.tokens, reply.lost) == ("error", "", tokens, False)
    assert reply.counted == ("server" if tokens else "nothing")


@pytest.mark.parametrize(
    ("data", "backend"),
    [
        (chat(said(""), "error"), "openrouter"),
        (chat(said("36"), "stop", error={"message": "upstream died", "code": 502}), "openrouter"),
        (chat(said("36"), "stop", error={"message": "slow down", "code": 429}), "openrouter"),
        ({"choices": []}, "generic"),
        ({"error": {"message": "provider returned an error"}}, "generic"),
        ({"error": "?"}, "generic"),
        ({"detail": "?"}, "generic"),
        ({"type": "error", "error": {"type": "timeout_error", "message": "late"}}, "anthropic"),
        (responses([], None, "in_progress"), "openai-responses"),
        ([], "generic"),
        ("text", "vllm"),
        (None, "gemini"),
        ({"choices": [{"text": "36"}]}, "generic"),
        ({"choices": [3]}, "generic"),
        ({"choices": {"message": {"content": "36"}}}, "generic"),
    ],
)
def test_a_failure_of_unknown_cost_is_charged_at_its_reservation(data: Any, backend: str) -> None:
    reply = reply_to(data, backend, cap=70)
    assert reply.error
    assert (reply.finish, reply.tokens, reply.lost, reply.counted) == ("error", 70, True, "reserved")


@pytest.mark.parametrize(
    ("data", "backend"),
    [
        ({"error": {"message": "slow down", "code": 429}}, "openrouter"),
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, "generic"),
        ({"code": "Throttling.RateQuota", "message": "slow down", "request_id": "x"}, "dashscope"),
        (chat(said(""), "error", usage(20, 0)) | {"error": {"code": 502, "message": "x"}}, "openrouter"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "anthropic"),
        ({"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}, "gemini"),
        ({"error": {"message": "busy", "status": "RESOURCE_EXHAUSTED"}}, "gemini-level"),
        (responses([], None, "failed", error={"code": "server_error", "message": "sorry"}), "openai-responses"),
    ],
)
def test_an_error_that_generated_nothing_may_be_asked_again(data: Any, backend: str) -> None:
    with pytest.raises(NothingGenerated):
        reply_to(data, backend)


def test_an_error_inside_a_choice() -> None:
    data = chat(said(""), "error", usage(20, 11))
    data["choices"][0]["error"] = {"code": 502, "message": "the provider is gone"}
    reply = reply_to(data, "openrouter")
    assert (reply.error, reply.tokens) == ("the provider is gone", 11)
    data["choices"][0]["error"] = {"code": None, "message": None}
    data["choices"][0]["finish_reason"] = "stop"
    data["choices"][0]["message"]["content"] = "36"
    assert reply_to(data, "openrouter").error is None, "an empty error is none"


REFUSAL = "I cannot help with that"


@pytest.mark.parametrize(
    ("data", "backend", "tokens"),
    [
        (chat(said(None, refusal=REFUSAL), "stop", usage(20, 9)), "openai", 9),
        (chat(said([{"type": "refusal", "refusal": REFUSAL}]), "stop", usage(20, 9)), "openai", 9),
        (chat(said(None), "content_filter", usage(20, 0)), "openai", 0),
        (responses([{"type": "message", "content": [{"type": "refusal", "refusal": REFUSAL}]}],
                   {"input_tokens": 3, "output_tokens": 9}), "openai-responses", 9),
        (responses([], {"input_tokens": 3, "output_tokens": 9}, "incomplete",
                   incomplete_details={"reason": "content_filter"}), "openai-responses", 9),
        ({"content": [], "stop_reason": "refusal", "usage": {"output_tokens": 9}}, "anthropic", 9),
        (gemini([], "SAFETY", {"promptTokenCount": 3, "totalTokenCount": 12}), "gemini", 9),
        (gemini([], "PROHIBITED_CONTENT", {"promptTokenCount": 3, "totalTokenCount": 3}), "gemini", 0),
        ({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}},
         "gemini", 0),
        ({"promptFeedback": {"blockReason": "OTHER"}}, "gemini-level", 0),
        (chat(said(""), "stop", usage(20, 9)) | {"native": 1}, "openrouter", None),
    ],
)  # fmt: skip
def test_a_refusal_is_refused(data: Any, backend: str, tokens: int | None) -> None:
    if tokens is None:
        data["choices"][0]["native_finish_reason"] = "SAFETY"
    reply = reply_to(data, backend)
    assert (reply.finish, reply.text, reply.tokens, reply.error) == (
        "refused",
        "",
        9 if tokens is None else tokens,
        None,
    )
    assert (REFUSAL in json.dumps(data)) == (REFUSAL in (reply.note or ""))


def test_reasons_of_every_spelling() -> None:
    for reason, finish in (
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
    ):
        assert reply_to(chat(said("36"), reason, usage(20, 9))).finish == finish
    assert reply_to(chat(said("36"), None, usage(20, 9))).finish == "stop", "null, with a text"
    assert reply_to(chat(said("36"), None, usage(20, 9)), cap=9).finish == "length"
    reply = reply_to(chat(said("36"), "something new", usage(20, 9)))
    assert (reply.finish, reply.text) == ("stop", "36")
    assert "something new" in (reply.note or "")
    data = chat(said("36"), "stop", usage(20, 9))
    data["choices"][0]["native_finish_reason"] = "MAX_TOKENS"
    assert reply_to(data, "openrouter").finish == "length"
    part = [{"type": "message", "content": [{"type": "output_text", "text": "3"}]}]
    reply = reply_to(responses(part, {"input_tokens": 3, "output_tokens": 5}, "incomplete"), "openai-responses")
    assert (reply.text, reply.finish) == ("3", "length")
    assert reply.note is not None
    cut = responses(
        [], {"input_tokens": 3, "output_tokens": 60}, "incomplete", incomplete_details={"reason": "max_output_tokens"}
    )
    assert (reply_to(cut, "openai-responses").finish, reply_to(cut, "openai-responses").error) == ("length", None)


def test_halves_of_characters_do_not_reach_what_cannot_hold_them() -> None:
    def count(text: str) -> int:
        return len(text.encode().split())

    half = "a \ud83d b"
    for message in (said(half), said(None, refusal=half), said([{"type": "refusal", "refusal": half}]),
                    said("36", reasoning=half), said(f"<think>{half}</think>36")):  # fmt: skip
        reply = reply_to(chat(message), count=count)
        assert reply.error is None
        assert "a \ufffd b" in f"{reply.full_text}{reply.note}"


def test_nothing_that_comes_back_breaks_the_reader() -> None:
    """Any JSON where another is expected: an answer, an error or a free repetition, never an exception."""
    rng = random.Random(1)
    junk: list[Any] = [
        None,
        0,
        -1,
        1.5,
        True,
        "",
        "x",
        [],
        {},
        [None],
        [[]],
        {"type": 3},
        [{"type": None}],
        float("nan"),
    ]

    def spoilt(value: Any) -> Any:
        if rng.random() < 0.12:
            return rng.choice(junk)
        if isinstance(value, dict):
            return {key: spoilt(entry) for key, entry in value.items()}
        return [spoilt(entry) for entry in value] if isinstance(value, list) else value

    whole = {
        "generic": chat(said("36", **PLACES["reasoning_details"], refusal=None), "stop", usage(1, 2, 3, 1), error=None),
        "anthropic": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "36"}],
                      "stop_reason": "end_turn", "usage": {"output_tokens": 5}},
        "gemini": gemini([{"text": "hm", "thought": True}, {"text": "36"}], counts={"candidatesTokenCount": 3}),
        "openai-responses": responses([{"type": "message", "content": [{"type": "output_text", "text": "36"}]}], {}),
    }  # fmt: skip
    for backend, data in whole.items():
        for _ in range(2000):
            try:
                reply = reply_to(spoilt(data), backend, cap=50, count=words)
            except NothingGenerated:
                continue
            assert (reply.error is None) != (reply.finish == "error")
            assert isinstance(reply.text, str)
            assert reply.tokens >= 0
            assert reply.error is not None or reply.text or reply.reasoning or reply.tokens or reply.finish == "refused"
