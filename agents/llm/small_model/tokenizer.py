"""A byte-level BPE tokenizer made from the tasks, as a `PreTrainedTokenizerFast` with chat template.

Single digits are always one token, so are the symbols of A::B programs, the think and answer tags and every level tag.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agents.llm.prompts import ANSWER, END, END_ANSWER, END_THINK, LEVEL_TAGS, THINK
from roi_env.answering.dialect import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

USER, ASSISTANT, PAD = "<|user|>", "<|assistant|>", "<|pad|>"
VOCABULARY = 640

# System text is user text to this model. `enable_thinking` false closes the think block at once, as in Qwen3.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}" + ASSISTANT + THINK + "{{ message.content }}" + END + "{%- else -%}"
    "" + USER + "{{ message.content }}" + END + "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    ""
    + ASSISTANT
    + THINK
    + "{%- if enable_thinking is defined and not enable_thinking -%}"
    + END_THINK
    + "{%- endif -%}"
    "{%- endif -%}"
)

# What is never merged into anything else, in order of preference.
_ISOLATED = r"\d| ?[AB]#| ?#[AB]|, |: |; |[=?;:,.*+%-]"


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train on texts; ``vocabulary`` counts every entry, the 256 bytes included."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END, USER, ASSISTANT]
    tags = [THINK, END_THINK, ANSWER, END_ANSWER, *LEVEL_TAGS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ISOLATED), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(tags),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def prompt_text(tokenizer: PreTrainedTokenizerFast, question: str, thinking: bool = True) -> str:
    """The chat prompt of one question, its think block open (or, without thinking, closed); without a chat template bare text."""
    if not tokenizer.chat_template:
        return f"{question}\n"
    return chat_text(tokenizer, [{"role": "user", "content": question}], enable_thinking=thinking)
