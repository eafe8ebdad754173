"""Opening a tokenizer of Hugging Face, and saying in a line why something there cannot be opened. Needs no PyTorch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import find_adapter_config_file


class ModelError(ValueError):
    """A folder or hub id cannot be used as the language model that it should be; the message says why and what to do."""


SERVE = "serve it (vLLM, SGLang, transformers serve) and give --endpoint, or choose another model"


def open_tokenizer(model: str | os.PathLike[str]) -> Any:
    """The tokenizer of a folder or hub id; of an adapter's where it has none of its own, its model's.

    :raises ModelError: where there is none, or it needs code of its own.
    :raises OSError: for a hub id out of reach.
    """
    base = adapter_of(model) if os.path.isdir(model) else None
    with naming(model):
        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError):
            if base is None:
                raise
            tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    # transformers makes an empty one where a folder has a config.json alone.
    known = set(tokenizer("What is 1 + 2?", add_special_tokens=False).input_ids) - {tokenizer.unk_token_id}
    if not known:
        raise ModelError(
            "it has no tokenizer that can read a text: put the model's tokenizer.json and tokenizer_config.json into its folder"
        )
    return tokenizer


def adapter_of(model: str | os.PathLike[str]) -> str | None:
    """The model that an adapter (PEFT) belongs to; None where it is none."""
    found = find_adapter_config_file(str(model))
    if found is None:
        return None
    base = json.loads(Path(found).read_text()).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"its {found} names no base_model_name_or_path: merge the adapter into its model and give that"
        )
    return str(base)


@contextmanager
def naming(model: str | os.PathLike[str]) -> Iterator[None]:
    """What transformers says where a model cannot be opened, in a line."""
    try:
        yield
    except ModelError:
        raise
    except OSError as error:
        if not os.path.isdir(model):
            raise  # a hub id out of reach
        raise ModelError(f"its folder cannot be read: {_line(error)}") from error
    except ImportError as error:
        raise ModelError(f"it needs a package that is not here: {_line(error)}") from error
    except Exception as error:  # whatever transformers, safetensors and torch raise of files that are not what they say
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"it needs Python code of its own (trust_remote_code), which is not run here: {SERVE}"
            ) from error
        if "Unrecognized configuration class" in str(error):
            raise ModelError(f"it is not a causal language model: {_line(error)[:120]}..") from error
        raise ModelError(f"it cannot be opened: {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
