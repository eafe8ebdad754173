"""Tiny causal language models with random weights, of several architectures and in every dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from agents.llm.prompts import levels_explained, state_line

SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1},
    "gemma3_text": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip
"""Architectures, as transformers calls their configurations. Gemma's window is shorter than a text."""

CHAT = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
THINKING_CHAT = CHAT + (
    "{%- if add_generation_prompt and enable_thinking is defined and not enable_thinking -%}<think>\n\n</think>\n\n{%- endif -%}"
)
TEMPLATES: dict[str, str | None] = {"instruct": CHAT, "thinking": THINKING_CHAT, "bare": None}


def tiny_tokenizer(template: str | None, more: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerFast:
    """Bytes, what prompts say to every model, and little else; ``more``: further single tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["Final answer: 12 the step by step reasoning within boxed", levels_explained(4), state_line(1, 1)]
    tokenizer.train_from_iterator(words * 4, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in more])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def tiny_sentencepiece(template: str | None) -> transformers.PreTrainedTokenizerFast:
    """Characters with bytes for the rest, as Llama 2 and Mistral have them: a space is a sign, and one stands before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    signs = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "\u2581"]
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def tiny_model(folder: Path, architecture: str = "qwen2", dialect: str = "instruct", seed: int = 0) -> Path:
    """Write a model directory; ``dialect``: one of :data:`TEMPLATES`."""
    tokenizer = tiny_tokenizer(TEMPLATES[dialect], ("<think>", "</think>") if dialect == "thinking" else ())
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,  # an exam of three real problems has 700
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        # Sharp enough that texts differ and end now and then.
        initializer_range=0.4,
        **SIZES[architecture],
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
