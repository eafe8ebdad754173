"""OpenAI's and Anthropic's clients for Python, litellm and LangChain against a real `roi serve`."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import Any

import anthropic
import langchain_openai
import litellm
import openai
import pytest
from asked import ANSWER, ASKED, COST, SCHEMA, TOOLS, Proxy, seen


@pytest.fixture
def chat(proxy: str) -> Any:
    return openai.OpenAI(base_url=f"{proxy}/a/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture
def claude(proxy: str) -> Any:
    return anthropic.Anthropic(base_url=f"{proxy}/a", api_key="unused", max_retries=0, timeout=60)


def test_openai_chat(chat: Any) -> None:
    answer = chat.chat.completions.create(model="stub", messages=ASKED)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.completion_tokens == answer.usage.roi["charged"] == 24
    pieces = list(chat.chat.completions.create(model="stub", messages=ASKED, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER
    assert pieces[-1].usage.roi["charged"] == 24
    answers = chat.chat.completions.create(model="stub", messages=ASKED, n=3)
    assert [choice.message.content for choice in answers.choices] == [ANSWER] * 3
    assert answers.usage.roi["charged"] == 72


def test_openai_tools_there_and_back(chat: Any, upstream: str) -> None:
    first = chat.chat.completions.create(model="stub", messages=ASKED, tools=TOOLS, tool_choice="auto")
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = first.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"question": "6 * 7"}
    history = [*ASKED, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    last = chat.chat.completions.create(model="stub", messages=history, tools=TOOLS, parallel_tool_calls=False)
    assert last.choices[0].message.content == ANSWER
    asked = seen(upstream)
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "tool"]
    assert asked["messages"][1]["tool_calls"][0]["function"]["name"] == "ask"
    assert (asked["tools"], asked["parallel_tool_calls"]) == (TOOLS, False)
    with chat.chat.completions.stream(model="stub", messages=ASKED, tools=TOOLS) as events:
        final = events.until_done().get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


def test_openai_fields_and_parts_arrive(chat: Any, upstream: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    fields = {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"], "logprobs": True, "top_logprobs": 2, "user": "me",
        "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {"5": 1}, "response_format": {"type": "json_object"},
    }  # fmt: skip
    parts = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]}]
    answer = chat.chat.completions.create(model="stub", messages=parts, **fields, extra_body={"top_k": 5})
    assert json.loads(answer.choices[0].message.content) == {"answer": 42}
    asked = seen(upstream)
    assert {name: asked[name] for name in fields} == fields
    assert (asked["messages"], asked["top_k"]) == (parts, 5)
    raw = chat.chat.completions.with_raw_response.create(model="stub", messages=ASKED, reasoning_effort="low")
    assert raw.headers["x-roi-replaced"] == "reasoning_effort"


def test_openai_structured_output(chat: Any) -> None:
    from pydantic import BaseModel

    class Sum(BaseModel):
        answer: int

    told = chat.chat.completions.parse(model="stub", messages=ASKED, response_format=Sum)
    assert told.choices[0].message.parsed == Sum(answer=42)
    assert chat.responses.parse(model="stub", input="?", text_format=Sum).output_parsed == Sum(answer=42)


def test_openai_responses(chat: Any, upstream: str) -> None:
    answer = chat.responses.create(model="stub", input="?", instructions="be brief", max_output_tokens=50)
    assert (answer.output_text, answer.status, answer.usage.output_tokens) == (ANSWER, "completed", 24)
    assert [message["role"] for message in seen(upstream)["messages"]] == ["system", "user"]
    tool = {"type": "function", "name": "ask", "parameters": SCHEMA, "strict": False}
    called = chat.responses.create(model="stub", input="?", tools=[tool])
    call = next(item for item in called.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
    again = chat.responses.create(model="stub", input=[*ASKED, *called.output, result], tools=[tool])
    assert again.output_text == ANSWER
    assert [message["role"] for message in seen(upstream)["messages"]] == ["user", "assistant", "tool"]
    with chat.responses.stream(model="stub", input="?") as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.output_text.delta") == 4
    assert final.output_text == ANSWER
    cut = chat.responses.create(model="stub", input="?", max_output_tokens=22)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_openai_text_completions_and_models(chat: Any) -> None:
    answer = chat.completions.create(model="stub", prompt=["a", "b"], max_tokens=3)
    assert [choice.text.strip() for choice in answer.choices] == ["the answer is"] * 2
    assert answer.usage.roi["charged"] == 6
    pieces = list(chat.completions.create(model="stub", prompt="a", max_tokens=3, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces).strip() == "the answer is"
    assert [model.id for model in chat.models.list()] == ["stub"]
    assert chat.models.retrieve("stub").id == "stub"
    with pytest.raises(openai.NotFoundError):
        chat.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        chat.embeddings.create(model="stub", input="x")


def test_openai_a_spent_budget_and_a_client_that_leaves(served: Proxy, chat: Any, upstream: str) -> None:
    small = openai.OpenAI(base_url=f"{served.address}/small/v1", api_key="unused", timeout=60)
    small.chat.completions.create(model="stub", messages=ASKED)
    assert small.chat.completions.create(model="stub", messages=ASKED).choices[0].finish_reason == "length"
    with served.refuses(), pytest.raises(openai.RateLimitError, match="is spent"):
        small.chat.completions.create(model="stub", messages=ASKED)
    stream = chat.chat.completions.create(model="stub", messages=ASKED, stream=True)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while not json.load(urllib.request.urlopen(f"{upstream}/left")):
        assert time.monotonic() < end, "the endpoint went on"
        time.sleep(0.05)


def test_openai_many_at_once(proxy: str) -> None:
    async def one(client: Any, stream: bool) -> int:
        answer = await client.chat.completions.create(model="stub", messages=ASKED, stream=stream)
        if not stream:
            return int(answer.usage.roi["charged"])
        return int([piece async for piece in answer][-1].usage.roi["charged"])

    async def all_() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{proxy}/a/v1", api_key="unused", timeout=60) as client:
            return await asyncio.gather(*(one(client, number % 2 == 0) for number in range(32)))

    assert asyncio.run(all_()) == [24] * 32


def test_anthropic_messages(claude: Any, upstream: str) -> None:
    answer = claude.messages.create(
        model="stub", max_tokens=60, messages=ASKED, system="be brief", stop_sequences=["END"]
    )
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert (answer.content[1].text, answer.stop_reason, answer.usage.output_tokens) == (ANSWER, "end_turn", 24)
    asked = seen(upstream)
    assert ([message["role"] for message in asked["messages"]], asked["stop"]) == (["system", "user"], ["END"])
    with claude.messages.stream(model="stub", max_tokens=60, messages=ASKED) as events:
        assert "".join(events.text_stream) == ANSWER
        final = events.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 24)
    cut = claude.messages.create(
        model="stub", max_tokens=22, messages=ASKED, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert cut.stop_reason == "max_tokens"


def test_anthropic_tools_there_and_back(claude: Any, upstream: str) -> None:
    tools = [{"name": "ask", "description": "asks", "input_schema": SCHEMA}]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "?"}, image]}]
    first = claude.messages.create(
        model="stub", max_tokens=60, messages=parts, tools=tools, tool_choice={"type": "any"}
    )
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert (call.name, call.input) == ("ask", {"question": "6 * 7"})
    assert (seen(upstream)["tool_choice"], seen(upstream)["messages"][0]["content"][1]["type"]) == (
        "required",
        "image_url",
    )
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "42"}
    history = [*parts, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(model="stub", max_tokens=60, messages=history, tools=tools).content[-1].text == ANSWER
    assert [message["role"] for message in seen(upstream)["messages"]] == ["user", "assistant", "tool"]
    with claude.messages.stream(model="stub", max_tokens=60, messages=parts, tools=tools) as events:
        assert events.get_final_message().content[-1].input == {"question": "6 * 7"}


def test_anthropic_errors_and_models(claude: Any, proxy: str) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="other", max_tokens=60, messages=ASKED)
    assert caught.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="stub", messages=ASKED)
    assert [model.id for model in claude.models.list()] == ["stub"]


def test_anthropic_is_told_that_a_budget_is_spent(served: Proxy) -> None:
    client = anthropic.Anthropic(base_url=f"{served.address}/spent", api_key="unused", timeout=60)
    for stream in (False, True):
        with served.refuses(), pytest.raises(anthropic.RateLimitError, match="is spent"):
            client.messages.create(model="stub", max_tokens=60, messages=ASKED, stream=stream)


def test_litellm(served: Proxy) -> None:
    options = {"model": "openai/stub", "api_base": f"{served.address}/a/v1", "api_key": "unused"}
    with served.charges(3 * COST):
        answer = litellm.completion(messages=ASKED, **options)
        assert (answer.choices[0].message.content, answer.usage.completion_tokens) == (ANSWER, COST)
        pieces = list(
            litellm.completion(messages=ASKED, stream=True, stream_options={"include_usage": True}, **options)
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == ANSWER
        assert pieces[-1].usage.completion_tokens == COST
        called = litellm.completion(messages=ASKED, tools=TOOLS, **options)
    (call,) = called.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("ask", {"question": "6 * 7"})
    history = [*ASKED, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    assert litellm.completion(messages=history, tools=TOOLS, **options).choices[0].message.content == ANSWER
    spent = {**options, "api_base": f"{served.address}/spent/v1"}
    for stream in (False, True):
        with served.refuses(), pytest.raises(litellm.RateLimitError, match="is spent"):
            list(litellm.completion(messages=ASKED, stream=stream, **spent))


def test_langchain(served: Proxy) -> None:
    model = langchain_openai.ChatOpenAI(model="stub", base_url=f"{served.address}/a/v1", api_key="unused")
    with served.charges(3 * COST):
        answer = model.invoke("six times seven?")
        assert (answer.content, answer.usage_metadata["output_tokens"]) == (ANSWER, COST)
        pieces = list(model.stream("six times seven?", stream_usage=True))
        assert "".join(str(piece.content) for piece in pieces) == ANSWER
        assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == COST
        called = model.bind_tools(TOOLS).invoke("six times seven?")
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("ask", {"question": "6 * 7"})
    history = [("user", "six times seven?"), called, {"role": "tool", "tool_call_id": call["id"], "content": "42"}]
    assert model.bind_tools(TOOLS).invoke(history).content == ANSWER
    spent = langchain_openai.ChatOpenAI(model="stub", base_url=f"{served.address}/spent/v1", api_key="unused")
    with served.refuses(), pytest.raises(openai.RateLimitError, match="is spent"):
        spent.invoke("six times seven?")
    with served.refuses(), pytest.raises(openai.RateLimitError, match="is spent"):
        list(spent.stream("six times seven?"))
