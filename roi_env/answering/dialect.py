r"""How a model speaks: where it reasons, how its reasoning is cut, and how an answer is forced from it.

* ``thinking`` (Qwen3, distillates of R1, the small model): reasoning stands in a think block, which is cut by closing it.
* ``instruct`` (Qwen2.5, Llama 3, SmolLM2, Gemma, models without a chat template): reasoning stands in the open and the
  answer in ``\boxed{}``; reasoning is cut by a text that asks for the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from roi_env.answering.base import ThinkingTier


class DialectError(ValueError):
    """A model does not speak as it is said to."""


@dataclass(frozen=True)
class Dialect:
    r"""How a model speaks.

    :param name: of the dialect.
    :param force: what is written where reasoning is cut, and what begins the answer where there is none.
    :param prompt: what a question is asked with; ``{question}`` stands for its text.
    :param opening: what begins the reasoning; it belongs to the prompt. Empty: nothing does.
    :param closing: what ends the reasoning when the model writes it, one token. Empty: the end of the turn alone.
    :param variables: of the chat template.
    :param whole_caps: whether a tier's number is the cap of all that is generated (reasoning, forced text and answer; the
        tokens kept for the answer hold the forced text), instead of the cap of the reasoning alone.
    """

    name: str
    force: str
    prompt: str = "{question}"
    opening: str = ""
    closing: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    whole_caps: bool = False

    def __post_init__(self) -> None:
        if not self.force:
            raise DialectError(f"dialect {self.name!r}: the text that forces an answer must not be empty")
        if self.closing not in self.force:
            raise DialectError(
                f"dialect {self.name!r}: the text that forces an answer must close the think block: write {self.closing!r} in it, "
                f"got {self.force!r}"
            )
        if "{question}" not in self.prompt:
            raise DialectError(
                f"dialect {self.name!r}: the prompt must hold {{question}} where the question stands, got {self.prompt!r}"
            )

    def asked(self, question: str) -> str:
        """What the user's turn says."""
        return self.prompt.replace("{question}", question)

    def tier(self, name: str, number: int, answer: int, effort: str | None = None) -> ThinkingTier:
        """A tier as ``NAME=NUMBER+ANSWER`` writes it. Number 0: answer at once.

        :raises ValueError: where the number leaves no token to reason beside the answer's.
        """
        if not self.whole_caps or number == 0:
            return ThinkingTier(name, number, answer, effort)
        if number < answer + 2:
            raise ValueError(
                f"its {number} tokens hold reasoning, the forced text and the answer, and {answer} are kept for the latter "
                f"two: give at least {answer + 2}, fewer answer tokens (NAME=CAP+ANSWER), or 0 to answer at once"
            )
        return ThinkingTier(name, number - answer - 1, answer, effort)

    def reasoning(self, tier: ThinkingTier) -> int:
        """Most tokens of reasoning at a tier, before it is cut."""
        return tier.most_tokens - tier.answer if self.whole_caps else tier.thinking

    def room(self, tier: ThinkingTier, forced: int) -> int:
        """Most tokens of a tier's answer after the text that forces it, which its tokens hold as well; the end of a block has a
        token of its own.

        :param forced: tokens of that text.
        """
        return tier.answer - forced + bool(self.closing)

    def check(self, tiers: Sequence[ThinkingTier], forced: int) -> None:
        """Refuse tiers that leave no token to answer.

        :param forced: tokens of the text that forces an answer.
        :raises ValueError: naming the first of them.
        """
        for tier in tiers:
            if (room := self.room(tier, forced)) < 1:
                raise ValueError(
                    f"tier {tier.name!r} keeps {tier.answer} tokens for the forced text and the answer; the text "
                    f"{self.force!r} has {forced}, so at least {tier.answer + 1 - room} are needed"
                )

    def rendered(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation as the model reads it, its answer begun where the dialect says how; without a chat template the bare
        texts.

        :raises DialectError: where the chat template refuses it, or leaves the system message out.
        """
        if not tokenizer.chat_template:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        text = chat_text(tokenizer, messages, **self.variables)
        written = "".join(text.split())  # some strip messages
        if any(one["role"] == "system" and "".join(one["content"].split()) not in written for one in messages):
            raise DialectError(f"its chat template does not write what the system message says: {_NO_SYSTEM}")
        if self.closing and text.rstrip().endswith(self.closing):
            raise DialectError(
                f"its chat template closes the think block before the model thinks ({text[-40:]!r}): say dialect instruct, or choose a "
                "model whose template leaves it open"
            )
        return text + (self.opening if self.opening and not text.rstrip().endswith(self.opening) else "")


_NO_SYSTEM = "where it takes no system message, leave --system out and say it in --prompt"
OPEN_ANSWER_TOKENS = 32
"""Tokens of a tier that reasons in the open which are kept for the forced text (about 8) and the answer."""
_BOX = r"{question}" + "\n\n" + r"Please reason step by step, and put your final answer within \boxed{}."
_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
"""Pairs of marks that models put around their reasoning."""

THINKING = Dialect("thinking", "</think>", "{question}", *_MARKS[0], {"enable_thinking": True})
INSTRUCT = Dialect(
    "instruct", "\n\nFinal answer: \\boxed{", _BOX, variables={"enable_thinking": False}, whole_caps=True
)
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (THINKING, INSTRUCT)}
"""Dialects by name."""


def single_token(tokenizer: Any, text: str) -> int | None:
    """The one token that a text is; None where it is several, or unknown."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1 or tokenizer.decode(ids).strip() != text.strip():
        return None
    return int(ids[0])


def dialect_of(tokenizer: Any) -> Dialect:
    """How a model speaks, by its tokenizer and chat template.

    It thinks in a block where the end of one is a single token and the template speaks of it; else it reasons in the open.
    """
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""  # of several the default one
    for opening, closing in _MARKS:
        if (opening in template or closing in template) and single_token(tokenizer, closing) is not None:
            return replace(THINKING, opening=opening, closing=closing, force=closing)
    return INSTRUCT


def named_dialect(name: str, tokenizer: Any = None) -> Dialect:
    """The dialect of a name; ``auto`` is :func:`dialect_of`, and so are the marks of a block where the tokenizer has some.

    :raises DialectError: for an unknown name.
    """
    if name not in ("auto", *DIALECTS):
        raise DialectError(f"unknown dialect {name!r}; there are auto, {', '.join(DIALECTS)}")
    if tokenizer is not None:
        found = dialect_of(tokenizer)
        if name in ("auto", found.name):
            return found
    return DIALECTS[name]


_ONE_DAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro %}"
"""Before a template that names today's date: what a model is asked must not depend on the day."""


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, goes_on: bool = False, **variables: Any) -> str:
    """A conversation by the chat template, the model's turn begun; the same on every day.

    :param goes_on: the last message is that beginning.
    :raises DialectError: where the template refuses it (some take no system message).
    """
    how = {"tokenize": False, "add_generation_prompt": not goes_on, "continue_final_message": goes_on, **variables}
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            how["chat_template"] = _ONE_DAY + template
        text: str = tokenizer.apply_chat_template(messages, **how)
    except Exception as error:  # whatever a template raises
        system = any(message["role"] == "system" for message in messages)
        raise DialectError(
            f"its chat template refuses the prompt: {error}" + (f" ({_NO_SYSTEM})" if system else "")
        ) from error
    return text


def unheeded_end(tokenizer: Any, stops: Collection[int]) -> str | None:
    """The special token by which the chat template ends an answer, where the model does not stop at it; None: it does."""
    if not tokenizer.chat_template:
        return None
    said = "It is 4."
    turns = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": said}]
    try:
        _, _, after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(said)
    except Exception:  # a template may know no answers
        return None
    ids = tokenizer(after, add_special_tokens=False).input_ids
    first = next((one for one in ids if one in tokenizer.added_tokens_decoder), None)
    return None if first is None or first in stops else str(tokenizer.convert_ids_to_tokens(first))


def beginning(tokenizer: Any) -> list[int]:
    """Token ids that stand before every text (Llama's and Gemma's first token); a chat template writes them itself."""
    if tokenizer.chat_template:
        return []
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    places = [at for at in range(len(whole)) if whole[at : at + len(bare)] == bare]
    return list(whole[: places[0]]) if places else []


def ids_after(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on after another: without the space that some tokenizers put before a text's beginning."""
    first, both = (tokenizer(one, add_special_tokens=False).input_ids for one in ("a", f"a{text}"))
    if both[: len(first)] == first:
        return list(both[len(first) :])
    # It makes one word with the letter before it.
    return list(tokenizer(text, add_special_tokens=False).input_ids)
