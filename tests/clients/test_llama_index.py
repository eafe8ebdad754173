"""LlamaIndex against a real `roi serve`."""

from __future__ import annotations

import pytest
from asked import ANSWER, COST, Proxy
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import RateLimitError


def model(served: Proxy, budget: str) -> OpenAILike:
    address = f"{served.address}/{budget}/v1"
    return OpenAILike("stub", api_base=address, api_key="unused", is_chat_model=True, is_function_calling_model=True)


def ask(question: str) -> str:
    """Ask somebody."""
    return "42"


def test_answers_streams_and_tools(served: Proxy) -> None:
    asked, llm = [ChatMessage("six times seven?")], model(served, "a")
    with served.charges(4 * COST):
        answer = llm.chat(asked)
        assert (answer.message.content, answer.raw.usage.completion_tokens) == (ANSWER, COST)
        assert llm.complete("six times seven?").text == ANSWER
        assert "".join(piece.delta or "" for piece in llm.stream_chat(asked)) == ANSWER
        called = llm.chat_with_tools([FunctionTool.from_defaults(ask)], chat_history=asked)
    (call,) = llm.get_tool_calls_from_response(called)
    assert (call.tool_name, call.tool_kwargs) == ("ask", {"question": "6 * 7"})
    result = ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": call.tool_id})
    assert llm.chat([*asked, called.message, result]).message.content == ANSWER


def test_a_spent_budget_is_one_error(served: Proxy) -> None:
    asked, llm = [ChatMessage("six times seven?")], model(served, "spent")
    with served.refuses(most=4), pytest.raises(RateLimitError, match="is spent"):
        llm.chat(asked)
    with served.refuses(most=4), pytest.raises(RateLimitError, match="is spent"):
        list(llm.stream_chat(asked))
