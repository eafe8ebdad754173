"""Folders that hold no whole causal language model are refused by name; those that come in other forms are read alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="needs the extra [llm]")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from agents.llm.decisions.policy import AgentError, load_encoder, load_model, load_tokenizer
from roi_env.answering.local import TransformersSolver
from roi_env.answering.models import ends, open_causal, open_network
from roi_env.answering.tokenizer import ModelError, open_tokenizer
from tests.tiny_models import tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
BERT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.5,
}


def config(folder: Path, file: str = "config.json", **changed: Any) -> None:
    there = json.loads((folder / file).read_text()) | changed
    (folder / file).write_text(json.dumps({name: value for name, value in there.items() if value is not None}))


def other(model: Any) -> Callable[[Path], None]:
    """Another model in the folder of a whole one."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder)

    return write


def without_head(folder: Path) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder)
    whole.config.tie_word_embeddings = False
    other(whole.base_model)(folder)


def damaged(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.nan
    other(model)(folder)


def code_of_its_own(folder: Path) -> None:
    config(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('was run')")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "an encoder-decoder": (
        other(transformers.BartForConditionalGeneration(transformers.BartConfig(**SIZES))), r"encoder-decoder \(bart\)"
    ),
    "an encoder": (
        other(transformers.BertForMaskedLM(transformers.BertConfig(**BERT))), r"see later ones \(bert\): it is an encoder"
    ),
    "no head": (without_head, r"lack 1 weights that a Qwen2ForCausalLM has \(lm_head.weight"),
    "more layers than weights": (
        lambda folder: config(folder, num_hidden_layers=3, layer_types=None), r"lack 12 weights .*model.layers.2"
    ),
    "not a number": (damaged, r"computes no numbers \(NaN\) in (b?float(32|16)): its files are damaged"),
    "code of its own": (code_of_its_own, "Python code of its own .* not run here: serve it"),
    "quantised": (
        lambda folder: config(folder, quantization_config={"quant_method": "gptq", "bits": 4}), "needs a package that is not here: .*GPTQ"
    ),
    "a file cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "cannot be opened: SafetensorError"
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "folder cannot be read: Error no file named"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_no_whole_causal_model_is_refused_by_name(how: str, whole: Path, tmp_path: Path) -> None:
    folder, (broken, said) = tmp_path / "model", BROKEN[how]
    shutil.copytree(whole, folder)
    broken(folder)
    with pytest.raises(ModelError, match=said):
        TransformersSolver(folder)
    with pytest.raises(AgentError, match=f"model '.*model': .*{said}"):
        load_model(str(folder))
    if how in ("an encoder", "no head", "not a number"):
        load_encoder(str(folder))  # whose last states alone are read
    else:
        with pytest.raises(AgentError, match=r"model '.*model'"):
            load_encoder(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("token*"):
        file.unlink()
    with pytest.raises(AgentError, match="no tokenizer that can read a text: put"):
        load_tokenizer(str(tmp_path))


def test_a_model_that_names_no_end_of_a_text_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for file, name in (
        ("config", "eos_token_id"),
        ("generation_config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
    ):
        config(tmp_path, f"{file}.json", **{name: None})
    with pytest.raises(ModelError, match="name no end of a text that it can write"):
        ends(open_causal(tmp_path, torch.float32), open_tokenizer(tmp_path))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_weights_in_other_forms_are_the_same_model(whole: Path, tmp_path: Path) -> None:
    ids, model = torch.tensor([[5, 6, 7, 8]]), open_causal(whole, torch.float32)
    folders = [shutil.copytree(whole, tmp_path / name) for name in ("sharded", "bin")]
    for folder in folders:
        (folder / "model.safetensors").unlink()
    model.save_pretrained(folders[0], max_shard_size="20KB")
    torch.save(model.state_dict(), folders[1] / "pytorch_model.bin")
    for folder in folders:
        torch.testing.assert_close(open_causal(folder, torch.float32)(ids).logits, model(ids).logits)
    # An adapter alone, of a model that lies elsewhere.
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    plain = open_causal(whole, torch.float32)
    expected = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
    merged = open_causal(tmp_path / "adapter", torch.float32)
    assert type(merged) is type(plain)
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-3, rtol=1e-3)
    network = open_network(tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(network(ids).last_hidden_state, merged.base_model(ids).last_hidden_state)
    assert open_tokenizer(tmp_path / "adapter").get_vocab() == open_tokenizer(whole).get_vocab()
