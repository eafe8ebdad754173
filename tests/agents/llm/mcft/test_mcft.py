"""Meta-cognitive fine-tuning: plans, examples, and a whole training that goes on where it stopped."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")
pytest.importorskip("accelerate", reason="needs the extra [llm]")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.llm.decisions.tag_logits import action_tags
from agents.llm.mcft.rejection import Sample, Sampled, family_tasks
from agents.llm.mcft.self_knowledge import tag_probabilities
from agents.llm.mcft.training import JOURNAL, LABELS, RECIPE, Choice, Examples, MCFTRecipe, mcft, plan
from agents.llm.prompts import END, LEVEL_TAGS, REFUSED, THINK, Completion, Tagged, answer_of, parse_exam, parse_tagged
from agents.llm.small_model.pretraining import IGNORED
from agents.llm.small_model.tasks import as_question
from agents.llm.small_model.tokenizer import prompt_text
from roi_env.answering.base import Question
from tests.agents.llm.forms import decision_prompt, segments
from tests.tiny_models import tiny_model

SMALL = MCFTRecipe(
    questions=9, validation=7, samples=3, families=["prod", "ab"], tiers={"answer": 0, "short": 6, "long": 40}, answer=10,
    num_tasks=3, budget=[20, 120], exams=8, decision_exams=8, tags=4, exam_plain=0.6, single_epochs=4, exam_epochs=1, batch=8, exam_batch=8, lr=5e-3, exam_lr=5e-3,
)  # fmt: skip
choices = st.lists(
    st.lists(st.builds(Choice, st.integers(0, 12), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=3), max_size=4
)


def check(question: Question, text: str) -> bool:
    # The very small model is never right: any even number and any program that ends in A passes here.
    return (answer_of(text) or "-")[-1] in "02468A"


def problem(number: int, *kept: Sample, success: tuple[float, ...] = (0.5, 0.5, 0.5)) -> Sampled:
    counts = np.bincount([one.level for one in kept] or [REFUSED], minlength=4)
    return Sampled(
        Question("prod", f"q{number}", f"{number} * 7 =", "0"), kept, tuple(counts.tolist()), success, (1.0,) * 3, kept
    )


def sample_of(level: int, tokens: int, tier: int = 2, forced: bool = False) -> Sample:
    return Sample(Completion("1" * (tokens - 4), "2"), level, tokens, tier, forced)


@settings(deadline=None)
@given(choices, st.integers(-3, 40))
def test_no_plan_is_worth_more(options: list[list[Choice]], budget: int) -> None:
    def worth(chosen: tuple[int | None, ...]) -> tuple[float, int]:
        taken = [ways[way] for ways, way in zip(options, chosen, strict=True) if way is not None]
        return sum(one.value for one in taken), sum(one.cost for one in taken)

    chosen = plan(options, budget)
    value, cost = worth(tuple(chosen))
    assert cost <= max(budget, 0)
    every = [worth(ways) for ways in itertools.product(*([None, *range(len(ways))] for ways in options))]
    best = max(value for value, cost in every if cost <= max(budget, 0))
    assert value == best
    assert cost == min(cost for value, cost in every if value == best)


@pytest.fixture(scope="module")
def examples(model_folder: Path) -> Examples:
    return Examples(AutoTokenizer.from_pretrained(model_folder), SMALL)


def test_a_decision_is_the_prompt_the_tag_and_what_belongs_to_it(examples: Examples) -> None:
    tokenizer = examples.tokenizer
    question, one = Question("prod", "q", "6 * 7 =", "42"), Completion("6*7=42", "42")
    prompt = prompt_text(tokenizer, decision_prompt(question.text, 99, 3)).removesuffix(THINK)
    for tagged, whole in itertools.product((Tagged(1, one), Tagged(REFUSED, None)), (True, False)):
        made = examples.decision(question, 99, 3, tagged, whole)
        text = tokenizer.decode(made.ids)
        assert text.startswith(prompt)
        written = [token for token in made.labels if token != IGNORED]
        assert made.ids[-len(written) :] == written
        assert tokenizer.decode(written) == text.removeprefix(prompt)
        if whole:
            assert parse_tagged(text.removeprefix(prompt)) == tagged
        else:
            assert text.removeprefix(prompt) == LEVEL_TAGS[tagged.level]


def test_a_forced_end_of_thinking_carries_no_loss(examples: Examples) -> None:
    end_think = examples.tokenizer.convert_tokens_to_ids("</think>")
    question = Question("prod", "q", "6 * 7 =", "42")
    for forced in (True, False):
        made = examples.answering(question, sample_of(0, 9, forced=forced))
        assert examples.tokenizer.decode(made.ids).endswith("</think><answer>2</answer>" + END)
        assert made.labels[made.ids.index(end_think)] == (IGNORED if forced else end_think)


@settings(deadline=None)
@given(st.integers(20, 150), st.integers(0, 9))
def test_a_planned_exam_fits_its_budget_and_is_read_back(examples: Examples, budget: int, seed: int) -> None:
    problems = [
        problem(1, sample_of(0, 9)),
        problem(2),
        problem(3, sample_of(1, 15, 1), sample_of(2, 40), success=(0, 0.5, 1)),
    ]
    tokenizer = examples.tokenizer
    made = examples.exam(problems, budget, Random(seed))
    written = [token for token in made.labels if token != IGNORED]
    assert made.ids[-len(written) :] == written
    refusing = 3 * len(tokenizer(LEVEL_TAGS[REFUSED] + r"\boxed{NA}").input_ids) + 1
    assert len(written) <= max(budget, refusing)
    parts = parse_exam(tokenizer.decode(written), 3)
    assert all(part is not None for part in parts)
    assert parts[1] == Tagged(REFUSED, None)
    for part, one in zip(parts, problems, strict=True):
        assert part is not None
        assert part.level == REFUSED or Tagged(part.level, part.completion) in [
            Tagged(k.level, k.completion) for k in one.kept
        ]
    if budget >= 140:
        assert [part.level for part in parts if part is not None] == [0, REFUSED, 2]
    spans = segments(written, action_tags(tokenizer, 4), 3)
    assert sum(span.stop - span.start for span in spans) == len(written)
    tags = examples.exam(problems, budget, Random(seed), tags_only=True)
    assert tags.ids == made.ids
    assert len([token for token in tags.labels if token != IGNORED]) == 3


def test_decisions_of_an_exam_know_what_is_left(examples: Examples) -> None:
    problems = [problem(1, sample_of(0, 9)), problem(2), problem(3, sample_of(2, 40))]
    states = [(60, 3, 0), (50, 2, REFUSED), (49, 1, 2)]
    made = examples.decisions(problems, 60, Random(0))
    for one, (left, tasks_left, level), asked in zip(made, states, problems, strict=True):
        expected = prompt_text(examples.tokenizer, decision_prompt(asked.question.text, left, tasks_left)).removesuffix(
            THINK
        )
        assert examples.tokenizer.decode(one.ids) == expected + LEVEL_TAGS[level]
    assert len(examples.decisions(problems, 2, Random(0))) == 2, "nothing is decided without tokens"


def test_exams_for_one_pass_have_few_tasks_and_budgets_that_let_them_be_answered(examples: Examples) -> None:
    problems = [problem(number, sample_of(0, 9)) for number in range(5)]
    made = examples.text_stage(problems, 60, Random(0))
    assert len(made) == 60
    counts = set()
    for one in made:
        text = examples.tokenizer.decode(one.ids)
        found = re.search(r"Tokens left: (\d+)\. Tasks left: (\d)\.", text)
        assert found is not None
        budget, tasks = map(int, found.groups())
        low, high = SMALL.text_budget
        assert low * tasks <= budget <= high * tasks
        written = [token for token in one.labels if token != IGNORED]
        assert len(parse_exam(examples.tokenizer.decode(written), tasks)) == tasks == text.count("Problem ")
        assert len(written) <= budget
        counts.add(tasks)
    assert counts == {1, 2, 3}


@pytest.fixture(scope="module")
def questions() -> tuple[list[Question], list[Question]]:
    return tuple(  # type: ignore[return-value]
        [as_question(task) for task in family_tasks(split, count, SMALL.families)]
        for split, count in (("train", SMALL.questions), ("validation", SMALL.validation))
    )


@pytest.fixture(scope="module")
def tuned(
    model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("mcft")
    mcft(str(model_folder), SMALL, folder, *questions, check)
    return folder


def test_a_training_leaves_a_model_that_announces_levels(tuned: Path, model_folder: Path) -> None:
    record = json.loads((tuned / RECIPE).read_text())
    assert record["recipe"] == dataclasses.asdict(SMALL)
    assert len(record["result"]["validation"]["single"]) <= SMALL.single_epochs
    assert sum(record["result"]["labels"]) == pytest.approx(1)
    assert (tuned / LABELS).exists()
    assert not (tuned / "stages").exists()
    assert "before | after" in (tuned / "README.md").read_text()
    texts = ["6 * 7 =", "Rewrite the A::B program A# #A"]
    tag_mass = []
    for folder in (model_folder, tuned):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
        found = tag_probabilities(model, tokenizer, texts, 100, 3)
        assert found.shape == (2, 4)
        np.testing.assert_allclose(found.sum(1), 1)
        prompt = prompt_text(tokenizer, decision_prompt(texts[0], 100, 3)).removesuffix(THINK)
        with torch.inference_mode():
            logits = model(**tokenizer(prompt, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        tags = logits.softmax(-1)[[tokenizer.convert_tokens_to_ids(tag) for tag in LEVEL_TAGS]]
        np.testing.assert_allclose(tags / tags.sum(), found[0], atol=1e-3)
        tag_mass.append(float(tags.sum()))
    # How sure it becomes differs between CPUs (.86 to .99 were seen): that it announces a level first does not.
    assert tag_mass[1] > 0.5 > 0.1 > tag_mass[0]


def test_finished_work_is_not_repeated_and_another_recipe_is_refused(
    tuned: Path, model_folder: Path, questions: tuple[list[Question], list[Question]]
) -> None:
    before = (tuned / "model.safetensors").stat().st_mtime_ns
    assert mcft(str(model_folder), SMALL, tuned, *questions, check).labels
    assert (tuned / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"another model, table or recipe \(recipe differ\)"):
        mcft(str(model_folder), dataclasses.replace(SMALL, keep="shortest"), tuned, *questions, check)


def test_another_model_of_the_same_name_is_refused(
    tuned: Path, model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    other = tmp_path / model_folder.name
    shutil.copytree(tuned, other)
    with pytest.raises(ValueError, match=r"another model, table or recipe \(weights differ\)"):
        mcft(str(other), SMALL, tuned, *questions, check)


def test_what_is_no_model_is_refused_by_name_before_anything_is_written(
    model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    cut = shutil.copytree(model_folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"version https://git-lfs")
    for folder in ("empty", "cut"):
        with pytest.raises(ValueError, match=f"model '.*{folder}': it cannot be opened"):
            mcft(str(tmp_path / folder), SMALL, tmp_path / "out", *questions, check)
    stranger = tiny_model(tmp_path / "stranger", "qwen2", "thinking")
    for start, said in ((tmp_path / "nowhere", "no such directory"), (stranger, "its tokenizer is another")):
        recipe = dataclasses.replace(SMALL, texts=8, start=str(start))
        with pytest.raises(ValueError, match=said):
            mcft(str(model_folder), recipe, tmp_path / "out", *questions, check)
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_ends_and_says_what_to_do(
    tuned: Path, model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    shutil.copy(tuned / JOURNAL, tmp_path / JOURNAL)
    with pytest.raises(ValueError, match=r"single problems: the loss .* is nan, .* smaller learning rate \(lr="):
        mcft(str(model_folder), dataclasses.replace(SMALL, lr=1e30), tmp_path, *questions, check)


def test_the_third_stage_alone_goes_on_from_a_finished_model(
    tuned: Path, model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    shutil.copy(tuned / JOURNAL, tmp_path / JOURNAL)
    recipe = dataclasses.replace(SMALL, texts=32, text_lr=5e-3, start=str(tuned))
    done = mcft(str(model_folder), recipe, tmp_path, *questions, check)
    assert list(done.validation) == ["text"]
    begun, went_on = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tuned, tmp_path))
    assert 0 < max(float((went_on[name].float() - begun[name].float()).abs().max()) for name in begun) < 0.5


@pytest.mark.parametrize("dialect", ["instruct", "thinking"])
def test_a_model_that_does_not_know_the_form_is_not_taught_to_refuse(
    dialect: str, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path / "model", "qwen2", dialect)
    with pytest.raises(ValueError, match=r"model does not know the form .*no token '<answer>'.* \(--table\)"):
        mcft(str(model), SMALL, tmp_path / "out", *questions, check)


class Stopped(Exception):
    """Ends a training early, as Ctrl-C would."""


def test_an_interrupted_training_ends_in_the_same_weights(
    tuned: Path, model_folder: Path, questions: tuple[list[Question], list[Question]], tmp_path: Path
) -> None:
    steps: list[tuple[str, int]] = []

    def watch(what: str, done: int, total: int) -> None:
        # After the first epoch of the first stage, and in the middle of the second stage.
        steps.append((what.split(",")[0], done))
        if steps.count(steps[-1]) == 1 and steps[-1] in (("single problems", total // 2 + 1), ("exams", total // 2)):
            raise Stopped

    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(tuned / JOURNAL, folder / JOURNAL)
    for moved in ("moved", "again"):
        with pytest.raises(Stopped):
            mcft(str(model_folder), SMALL, folder, *questions, check, watch)
        # What a kill leaves that comes while a checkpoint is written; and the folder may be moved.
        for stage in (folder / "stages").iterdir():
            (stage / "checkpoint-9999").mkdir()
            (stage / "checkpoint-9999" / "model.safetensors").write_bytes(b"cut")
        folder = folder.rename(tmp_path / moved)
    # .. or after a stage's last epoch, before its best model is written.
    shutil.rmtree(folder / "stages" / "single" / "best")
    mcft(str(model_folder), SMALL, folder, *questions, check, watch)
    whole, resumed = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (tuned, folder))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


@pytest.mark.filterwarnings("error::FutureWarning")  # peft's own
def test_lora_trains_a_small_part_and_leaves_an_ordinary_model(
    model_folder: Path, questions: tuple[list[Question], list[Question]], tuned: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs the extra [llm]")
    shutil.copy(tuned / JOURNAL, tmp_path / JOURNAL)
    # With the third stage, which is there where it is asked for.
    recipe = dataclasses.replace(SMALL, lora=2, lr=1e-2, single_epochs=1, texts=8)
    done = mcft(str(model_folder), recipe, tmp_path, *questions, check)
    assert list(done.validation) == ["single", "exam", "text"]
    base, tuned_lora = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (model_folder, tmp_path)
    )
    assert base.keys() == tuned_lora.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    change = (tuned_lora[name].float() - base[name].float()).numpy()
    assert np.abs(change).max() > 1e-4
    moved = (
        (tuned_lora["model.embed_tokens.weight"] != base["model.embed_tokens.weight"]).any(1).nonzero()[:, 0].tolist()
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert set(moved) <= {tokenizer.convert_tokens_to_ids(tag) for tag in LEVEL_TAGS}
    assert moved


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("samples", 0, "at least 1"),
        ("keep", "longest", "all or shortest"),
        ("budget", [50], "smallest,largest"),
        ("tiers", {"a": 0, "b": 5}, "growing caps"),
        ("sampled", ["high"], "no tier 'high'"),
        ("lora", -1, "negative"),
        ("start", "tinylm-mcft", "texts=10000"),
        ("text_budget", [9, 3], "text_budget must read"),
        ("families", ["prod", "chess"], "families must be out of .* not 'chess'"),
        ("families", ["prod", "prod"], "families must differ"),
        ("temperature", float("nan"), "temperature must be a finite number, got nan"),
        ("exam_lr", 0.0, "exam_lr must be above 0"),
    ],
)
def test_recipes_that_cannot_be_followed(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})
