"""Opening language models of Hugging Face. What is none, is not whole, or cannot be read here is refused by name, before any work.

What generation and packed reading rely on is asked of the model itself and not of a list of architectures: that a token sees
those before it alone, what its layers keep of a text, how far they look back, how many tokens it was made to read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from roi_env.answering.kv_cache import growing_cache
from roi_env.answering.tokenizer import SERVE, ModelError, adapter_of, naming


def open_causal(model: str | os.PathLike[str], dtype: torch.dtype | str) -> Any:
    """The causal language model of a folder or hub id, on the CPU; an adapter's is merged into the model that it belongs to.

    :param dtype: of its weights; "auto": as they are stored.
    :raises ModelError: where it is none, lacks weights, sees later tokens, or needs code or packages that are not here.
    :raises OSError: for a hub id out of reach.
    """
    base = adapter_of(model) if os.path.isdir(model) else None
    if base is None:
        try:
            causal = _whole(AutoModelForCausalLM, model, dtype).eval()
        except OSError:  # the hub has no such model; such an adapter?
            base = adapter_of(model)
            if base is None:
                raise
        else:
            base = adapter_of(model) if getattr(causal, "_hf_peft_config_loaded", False) else None
    if base is not None:
        from peft import PeftModel

        causal = open_causal(base, dtype)
        with naming(model), quiet_peft():
            return PeftModel.from_pretrained(causal, model).merge_and_unload()
    _check_causal(causal)
    kept(causal)
    return causal


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, peft does not warn of what nobody can change here."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.24 for a property by its old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2's layers: peft sets it
        yield


def open_network(model: str | os.PathLike[str], dtype: torch.dtype | str) -> Any:
    """The network below a model's head: an encoder's, or a causal language model's.

    :raises: as :func:`open_causal`.
    """
    if os.path.isdir(model) and adapter_of(model) is not None:
        return below_head(open_causal(model, dtype))
    return _whole(AutoModel, model, dtype).eval()


def below_head(causal: Any) -> Any:
    """The network of a causal LM that gives the last hidden states."""
    return causal.model if causal.base_model is causal else causal.base_model


def layers_of(causal: Any) -> nn.ModuleList | None:
    """The layers of a causal LM, the first one first; None where they are not one list of modules."""
    count = int(causal.config.get_text_config().num_hidden_layers)
    return next((one for one in causal.modules() if isinstance(one, nn.ModuleList) and len(one) == count), None)


def _whole(kind: Any, model: str | os.PathLike[str], dtype: torch.dtype | str) -> Any:
    with naming(model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ModelError(f"it is an encoder-decoder ({config.model_type}), not a causal language model: {SERVE}")
        network, told = kind.from_pretrained(model, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    # Nobody here reads what a pooler makes of the last states.
    lacking = [name for name, _ in network.named_parameters() if name in told["missing_keys"] and "pooler" not in name]
    if lacking:
        raise ModelError(
            f"its files lack {len(lacking)} weights that a {type(network).__name__} has ({', '.join(lacking[:2])}, ..), which would be "
            "random: it was saved without them (its head, say), or its config.json is another model's"
        )
    return network


@torch.inference_mode()
def _check_causal(causal: Any) -> None:
    """Refuse models that compute no numbers, and those whose tokens see later ones: encoders that have a head for words."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    logits = causal(input_ids=ids, use_cache=False).logits[:, :3].float()
    if logits.isnan().any():
        raise ModelError(
            f"it computes no numbers (NaN) in {str(causal.dtype)[6:]}: its files are damaged, or its training failed"
        )
    if (logits[0] - logits[1]).abs().max() > (1e-4 if causal.dtype == torch.float32 else 0.02) * logits.std():
        raise ModelError(
            f"its tokens see later ones ({causal.config.model_type}): it is an encoder, not a causal language model"
        )


# -- what its layers keep of a text ---------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What a model's layers keep of a text, and what follows for reading.

    :param cuts: whether that is keys and values of its tokens alone: such rows can be cut, copied and padded. Not where a state runs on
        (Mamba, short convolutions), keys stand for several tokens, layers are run several times, or places are counted in the row.
    :param beside: most tokens of texts that can be read beside one another in one row, told by mask and positions what belongs
        together. 0 where distances are counted in the row (ALiBi); a window's length where a layer looks back no farther.
    """

    cuts: bool
    beside: int


_kept: WeakKeyDictionary[Any, Kept] = WeakKeyDictionary()


def kept(causal: Any) -> Kept:
    """See :class:`Kept`; found out once a model, by two tokens."""
    if causal not in _kept:
        _kept[causal] = _find_kept(causal)
    return _kept[causal]


def _find_kept(causal: Any) -> Kept:
    network, config = below_head(causal), causal.config.get_text_config(decoder=True)
    if getattr(causal, "_is_stateful", False) or "cache" not in signature(causal.forward).parameters:
        return Kept(False, 0)
    layers = DynamicCache(config=causal.config).layers
    own = [layer for layer in layers if type(layer) is not DummyLayer]  # others look at an earlier layer's keys
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in own):
        return Kept(False, 0)
    cache = growing_cache()
    with torch.inference_mode():
        causal(input_ids=torch.zeros((1, 2), dtype=torch.long, device=causal.device), cache=cache, use_cache=True)
    if len(cache.layers) != len(own) or any(
        not layer.is_initialized or layer.keys.shape[2] != 2 for layer in cache.layers
    ):
        return Kept(False, 0)
    if "position_ids" not in signature(network.forward).parameters:
        return Kept(_can_be_padded(causal), 0)
    if len(own) < len(layers) or getattr(config, "alibi", False):
        return Kept(True, 0)
    windows = [layer.sliding_window for layer in own if type(layer) is DynamicSlidingWindowLayer]
    if (local := getattr(config, "window_size", None)) is not None:  # GPT-Neo's
        windows.append(local)
    return Kept(True, min(windows, default=2**31))


@torch.inference_mode()
def _can_be_padded(causal: Any) -> bool:
    """Whether a model that is told no positions reads a text alike behind padding: only distances count (Bloom, MPT)."""
    ids, mask = torch.tensor([[0, 0, 0, 1, 2, 3]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    ids, mask = ids.to(causal.device), mask.to(causal.device)
    padded, plain = (
        causal(input_ids=ids[:, first:], attention_mask=mask[:, first:], use_cache=False).logits[0, -1].float()
        for first in (0, 3)
    )
    return bool((padded - plain).abs().max() < 0.05 * plain.std())


def check_cached(causal: Any) -> None:
    """Refuse models whose cache cannot be cut and copied, as batched generation does.

    :raises ModelError: for them.
    """
    if not kept(causal).cuts:
        raise ModelError(
            f"what its layers ({causal.config.model_type}) keep of a text is not keys and values of tokens alone, which could be cut, copied "
            f"and padded, so it cannot generate in this process: {SERVE}"
        )


# -- where its turn ends, how many tokens it reads ---------------------------------------------------------------------------------------


def ends(causal: Any, tokenizer: Any) -> list[int]:
    """Tokens that end the model's turn, of its tokenizer and generation_config.json: several of Llama 3 and Gemma, say.

    :raises ModelError: where there are none.
    """
    configured = getattr(causal.generation_config, "eos_token_id", None)
    named = configured if isinstance(configured, list) else [configured]
    # transformers gives a tokenizer that names none its family's, as a token more than the model has.
    rows = causal.get_input_embeddings().weight.shape[0]
    found = [int(end) for end in (tokenizer.eos_token_id, *named) if end is not None and end < rows]
    if not found:
        raise ModelError(
            "its tokenizer and generation_config.json name no end of a text that it can write (eos_token): add it there"
        )
    return list(dict.fromkeys(found))


def most_positions(causal: Any) -> int | None:
    """Most tokens of a text that a model was made to read; None: its configuration says none."""
    config = causal.config.get_text_config(decoder=True)
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        # Beyond this all positions are turned otherwise, those that were read before as well.
        if one.get("rope_type") in ("longrope", "dynamic"):
            most = one.get("original_max_position_embeddings") or most
    return int(most) if most and most > 0 else None


def check_read(causal: Any, tokens: int, largest: int, what: str, more: int = 0) -> None:
    """Refuse a text that the model cannot read, or cannot go on with.

    :param tokens: it has.
    :param largest: of its token ids.
    :param what: it is, for the error.
    :param more: tokens to be written after it.
    :raises ModelError: where it is too long, or a token is not in the model's vocabulary.
    """
    most, rows = most_positions(causal), causal.get_input_embeddings().weight.shape[0]
    if most is not None and tokens + more > most:
        raise ModelError(
            f"{what} has {tokens:,} tokens"
            + (f" and {more:,} may follow" if more else "")
            + f", the model reads {most:,} at "
            "most: shorten it" + (", or lower what may follow" if more else "")
        )
    if largest >= rows:
        raise ModelError(
            f"{what} has token {largest}, and the model's vocabulary ends at {rows - 1}: its tokenizer is another model's"
        )
