"""Meta-cognitive fine-tuning on a recorded table: its labels, its examples, and trainings of several architectures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")
pytest.importorskip("peft", reason="needs the extra [llm]")

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from agents.base import exams_view, public_problem
from agents.llm.decisions.policy import LMPolicy, load_model, load_tokenizer, question_texts
from agents.llm.mcft.recorded import (
    ADAPTER,
    CHECKPOINT,
    TableRecipe,
    ample_decisions,
    announced,
    exam_decisions,
    fine_tune,
    single_decisions,
)
from agents.llm.mcft.rejection import Sampled, read_labels, table_samples
from agents.llm.mcft.self_knowledge import nats, tag_probabilities
from agents.llm.mcft.training import LABELS, RECIPE
from agents.llm.prompts import REFUSED
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.outcome_tables import OutcomeTable
from tests.tiny_models import tiny_model

TIERS = {"256": 256, "512": 512, "1024": 1024}
RECIPE_ = TableRecipe(single_epochs=6, exam_epochs=1, exams=6, batch=4, lora=4, lr=2e-2, exam_lr=2e-3, dtype="float32")


def table(questions: int = 48) -> OutcomeTable:
    """Questions whose first word tells what they take: ``short`` is right in 100 tokens, ``long`` in 700, ``never`` not at all."""
    rows = []
    for q in range(questions):
        kind = ("short", "long", "never")[q % 3]
        for sample in range(2):
            length = {"short": 100, "long": 700, "never": 2000}[kind] + q + sample
            rows += [
                {
                    "dataset": "sums", "question_id": f"q{q}", "question": f"{kind} {q} + 1 =", "answer": "1", "menu": "m", "tier": name,
                    "tier_order": k, "tokens": min(length, cap), "correct": kind != "never" and length <= cap, "sample": sample,
                }
                for k, (name, cap) in enumerate(TIERS.items(), 1)
            ]  # fmt: skip
    made = OutcomeTable.from_arrow(pa.Table.from_pylist(rows), "made.parquet")
    return dataclasses.replace(made, level_edges={"m": TIERS}, pairing=True)


def test_a_table_that_cannot_be_labelled_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"its metadata name no level_edges, .*level_edges=\{'m': \{'256': TOKENS"):
        table_samples(dataclasses.replace(table(), level_edges={}))
    two = dataclasses.replace(table(), rows=table().rows.filter(pc.not_equal(table().rows["tier"], "512")))
    with pytest.raises(
        ValueError, match=r"need 3 tiers, one a level, it has \['256', '1024'\]: choose them with --tier"
    ):
        table_samples(two)


def split(which: Any, questions: int = 48) -> list[Sampled]:
    return table_samples(table(questions).split(which))


def test_labels_are_those_of_the_samples() -> None:
    for one in table_samples(table()):
        level = {"short": 0, "long": 2, "never": REFUSED}[one.question.text.split()[0]]
        assert one.label == level
        assert one.counts[level] == (1 if level == REFUSED else 2)
        assert [sample.tokens for sample in one.kept] == (
            [] if level == REFUSED else [round(one.tokens[-1] + d) for d in (-0.5, 0.5)]
        )
        assert one.success == {0: (1, 1, 1), 2: (0, 0, 1), REFUSED: (0, 0, 0)}[level]
    shortest = table_samples(table(), keep="shortest")
    assert {len(one.kept) for one in shortest} == {0, 1}
    # At the first tier alone long questions are never right.
    early = table_samples(table(), sampled=["256"])
    assert {one.label for one in early if one.question.text.startswith("long")} == {REFUSED}
    with pytest.raises(ValueError, match=r"3 tiers.*--tier"):
        table_samples(table().select(tiers=["256", "512"]))
    with pytest.raises(ValueError, match="no tier 'low'"):
        table_samples(table(), sampled=["low"])


def test_examples_of_both_stages() -> None:
    found = split("train")
    recipe = dataclasses.replace(RECIPE_, states=3)
    for made, one in zip(single_decisions(found, recipe, Random(0)), found, strict=True):
        assert len({(d.remaining, d.tasks_left) for d in made}) > 1
        assert {d.text for d in made} == {one.question.text}
        assert all(np.argmax(d.target) == one.label and sum(d.target) == 1 for d in made)
    assert {(d.remaining, d.tasks_left) for (d,) in ample_decisions(found, recipe)} == {(1024, 1)}
    solved = refused_worth_solving = 0
    for exam in exam_decisions(found, 40, recipe, Random(0)):
        assert [d.tasks_left for d in exam] == list(range(len(exam), 0, -1))
        for d in exam:
            kind = d.text.split()[0]
            level = int(np.argmax(d.target))
            solved += level != REFUSED
            refused_worth_solving += level == REFUSED and kind != "never"
            assert level in (REFUSED, {"short": 0, "long": 2}.get(kind, REFUSED))
            # What is chosen fits what is left, with the tags still to come.
            assert level == REFUSED or d.remaining > {"short": 100, "long": 700}[kind]
    assert solved > 0
    assert refused_worth_solving > 0, "budgets are scarce at times"


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft 0.21 asks transformers 5.24 for it
@pytest.mark.parametrize(
    ("architecture", "dialect"), [("qwen2", "instruct"), ("llama", "thinking"), ("gpt_neox", "bare")]
)
def test_any_model_learns_what_the_table_says(architecture: str, dialect: str, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model", architecture, dialect))
    train, validation = split("train"), split("validation")
    losses = fine_tune(model, RECIPE_, tmp_path / "out", {"table": "made"}, train, validation)
    assert list(losses) == ["single problems", "exams"]
    assert min(losses["single problems"]) < 0.5 * losses["single problems"][0]
    assert not (tmp_path / "out" / CHECKPOINT).exists()
    labels = read_labels(tmp_path / "out" / LABELS, "validation")
    before, after = (
        tag_probabilities(load_model(one), load_tokenizer(one), labels.texts, 1024, 1)
        for one in (model, str(tmp_path / "out"))
    )
    assert nats(after, labels).mean() < 0.6 * nats(before, labels).mean()
    # An ordinary model directory with the same parts, finished: it is not trained again.
    base, tuned = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (model, tmp_path / "out"))
    assert base.keys() == tuned.keys()
    # LoRA alone makes the same of the model that it began as.
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "out" / ADAPTER)
    for name, weight in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(weight.bfloat16(), tuned[name], msg=name)
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert fine_tune(model, RECIPE_, tmp_path / "out", {"table": "made"}, train, validation) == losses
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another model, table or recipe"):
        fine_tune(model, RECIPE_, tmp_path / "out", {"table": "other"}, train, validation)
    graded = [dataclasses.replace(one, success=(1.0, 1.0, 1.0)) for one in train]
    with pytest.raises(ValueError, match=r"another model, table or recipe \(outcomes differ\)"):
        fine_tune(model, RECIPE_, tmp_path / "out", {"table": "made"}, graded, validation)
    other = shutil.copytree(tmp_path / "out", tmp_path / "other" / "model")
    with pytest.raises(ValueError, match=r"another model, table or recipe \(weights differ\)"):
        fine_tune(str(other), RECIPE_, tmp_path / "out", {"table": "made"}, train, validation)


def test_a_training_that_diverges_ends_and_says_what_to_do(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"single problems: the loss .* is nan, .* smaller learning rate \(lr="):
        fine_tune(
            model,
            dataclasses.replace(RECIPE_, lr=1e30),
            tmp_path / "out",
            {},
            split("train", 24),
            split("validation", 24),
        )


class Stopped(Exception):
    """Ends a training early, as Ctrl-C would."""


@pytest.mark.parametrize("layers", [0, 1])
def test_an_interrupted_training_ends_in_the_same_weights(layers: int, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    train, validation = split("train", 24), split("validation", 24)
    recipe = dataclasses.replace(RECIPE_, layers=layers, single_epochs=3, exam_epochs=2)
    whole = fine_tune(model, recipe, tmp_path / "whole", {}, train, validation)
    stops = [("single problems", 8), ("exams", 1), ("exams", 8)]  # in a second epoch, a first one, a second one

    def watch(what: str, done: int, total: int) -> None:
        if stops and (what.split(",")[0], done) == stops[0]:
            stops.pop(0)
            raise Stopped

    for _ in range(3):
        with pytest.raises(Stopped):
            fine_tune(model, recipe, tmp_path / "again", {}, train, validation, watch)
        assert "validation" not in json.loads((tmp_path / "again" / RECIPE).read_text())
    assert fine_tune(model, recipe, tmp_path / "again", {}, train, validation, watch) == whole
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert files[0] == files[1]


def test_a_table_without_a_right_answer_is_told_of(tmp_path: Path) -> None:
    model, told = str(tiny_model(tmp_path / "model")), list[str]()
    never = [one for one in split("train") if not one.kept]
    recipe = dataclasses.replace(RECIPE_, single_epochs=1, exam_epochs=0)
    fine_tune(model, recipe, tmp_path / "out", {}, never, never, say=told.append)
    assert f"No answer to the {len(never)} training questions is right" in told[0]


def test_lora_on_the_last_layers_leaves_those_below_alone(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    policy = LMPolicy(model, 4, lora=2, layers=1)
    assert {name.split(".layers.")[1][0] for name in policy.weights()} == {"1"}
    assert {name.split(".layers.")[1][0] for name in LMPolicy(model, 4, lora=2).weights()} == {"0", "1"}
    with pytest.raises(ValueError, match="layers=3: the model has 2"):
        LMPolicy(model, 4, lora=2, layers=3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("exams", 0, "exams must be at least 1"),
        ("keep", "longest", "all or shortest"),
        ("budget", [50], "smallest,largest"),
        ("dtype", "int8", "float32 or bfloat16"),
        ("lora", 0, "layers=1 says where LoRA is"),
        ("lr", float("inf"), "lr must be a finite number"),
    ],
)
def test_recipes_that_cannot_be_followed(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE_, **{"layers": 1, field: value})


def test_a_table_without_texts_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training question with a text"):
        fine_tune("tinylm", RECIPE_, tmp_path, {}, [], split("validation"))


def test_agents_that_read_are_told_of_questions_without_text() -> None:
    for family, message in (
        ("paper", r"'llm' reads questions, and 2 of these exams' have no text"),
        ("signal", "show none"),
    ):
        batch = draw_exams(exam_spec(family, num_tasks=3), 0, range(2))
        with pytest.raises(ValueError, match=message):
            question_texts(exams_view(batch, public_problem(batch.spec)), "llm")
    batch = draw_exams(exam_spec("math", num_tasks=3, datasets=("gsm8k", "math-500")), 0, range(2))
    assert all(text for row in question_texts(exams_view(batch, public_problem(batch.spec)), "llm") for text in row)


@pytest.mark.parametrize("layers", [0, 1])
def test_how_long_it_will_take_is_said_before_it_begins(layers: int, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "model"))
    recipe = dataclasses.replace(RECIPE_, layers=layers, single_epochs=1, exam_epochs=0)
    train, validation, order = split("train", 24), split("validation", 24), []
    fine_tune(
        model, recipe, tmp_path / "out", {}, train, validation,
        lambda what, done, total: order.append(what.split(",")[0]), lambda text: order.append(text),
    )  # fmt: skip
    said, *then = order
    assert f"{recipe.states * len(train):,} to learn from" in said
    assert "hours at most" in said
    # What lower layers make of prompts is computed once, where there are such layers.
    assert list(dict.fromkeys(then)) == ["reading with layers that are not trained"] * layers + ["single problems"]


def test_what_is_kept_for_the_report_is_what_both_models_announce(tmp_path: Path) -> None:
    model, out = str(tiny_model(tmp_path / "model")), tmp_path / "out"
    recipe = dataclasses.replace(RECIPE_, layers=1, dtype="bfloat16", single_epochs=2)
    train, validation, test = (split(which, 24) for which in ("train", "validation", "test"))
    fine_tune(model, recipe, out, {}, train, validation, asked=test)
    kept = announced(out)
    assert kept is not None
    texts = [one.question.text for one in (*train, *validation, *test)]
    assert list(kept) == texts
    for source, ours in (
        (str(out), [kept[text].taught for text in texts]),
        (model, [kept[text].untaught for text in texts]),
    ):
        read = tag_probabilities(load_model(source, "bfloat16"), load_tokenizer(source), texts, recipe.budget[1], 1)
        np.testing.assert_allclose(ours, read, atol=0.02)
    taught, untaught = (np.array([getattr(kept[text], name) for text in texts]) for name in ("taught", "untaught"))
    assert np.abs(taught - untaught).max() > 0.1
    # Weights of another type are not those of the folder, and without frozen layers nothing is saved by it.
    for other in ({"dtype": "float32"}, {"layers": 0}):
        folder = tmp_path / str(other)
        fine_tune(
            model, dataclasses.replace(recipe, single_epochs=1, exam_epochs=0, **other), folder, {}, train, validation
        )  # type: ignore[arg-type]
        assert announced(folder) is None
