"""Meta-cognitive fine-tuning: a causal LM learns to announce what a question will take of it, or to refuse.

The model answers training questions itself (:mod:`agents.llm.mcft.rejection`); its right samples, each with the level of its own
length, and refusals become examples. A curriculum of stages: single problems; exams of several problems under a budget, each
both as one text and as the decisions of which it consists; where asked for, many exams as one text alone. Examples of plain answering keep the ability
to answer. Trained by `transformers.Trainer` with early stopping on the tags of validation questions.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from agents.llm.decisions.policy import load_tokenizer, model_source, own_device, reading, weights_digest
from agents.llm.decisions.tag_logits import PromptEncoder
from agents.llm.mcft.rejection import Sample, Sampled, reject, sample, write_labels
from agents.llm.one_pass.transcripts import exam_ids
from agents.llm.prompts import (
    ANSWER,
    END_THINK,
    LEVEL_TAGS,
    NUM_LEVELS,
    REFUSED,
    Tagged,
    render,
    render_tagged,
)
from agents.llm.small_model.pretraining import IGNORED, Example, optimizers
from agents.llm.small_model.tasks import check_families
from agents.llm.small_model.tokenizer import prompt_text
from agents.parameters import check_numbers
from roi_env.answering.base import Checker, Question, ThinkingTier
from roi_env.answering.dialect import single_token
from roi_env.answering.models import quiet_peft
from roi_env.answering.tokenizer import open_tokenizer
from roi_env.files import replacing, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState

RECIPE, JOURNAL, LABELS = "mcft.json", "samples.journal.jsonl", "labels.parquet"
_STAGES = "stages"
Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and of how much."""


class Stage(NamedTuple):
    """A stage of the curriculum: its name in the folder, on the screen, and how it is trained."""

    name: str
    shown: str
    epochs: int
    lr: float
    batch: int


@dataclass
class MCFTRecipe:
    """Everything that meta-cognitive fine-tuning depends on, beside the model.

    :param seed: of examples and training.
    :param sample_seed: of the samples; another than that of recorded tables.
    :param questions: training questions of every kind of tasks (of hidden difficulty: twice as many).
    :param validation: the same for early stopping and for the accuracy before and after.
    :param families: kinds of tasks; empty: all.
    :param samples: K, of every question at most.
    :param enough: right free answers after which a question is asked no more (0: it is always asked K times). The law of a kept
        sample and of refusals does not change, and more questions can be asked.
    :param temperature: of sampling.
    :param tiers: name -> thinking cap of the solving levels, cheapest first.
    :param answer: most tokens of an answer.
    :param keep: which right samples are kept: ``all`` or the ``shortest``.
    :param sampled: tiers whose generations count as samples; empty: the last alone, where thinking is free.
    :param full: share of questions with an example of the whole completion, in the first stage.
    :param tags: examples a question that end with the tag.
    :param plain: examples a question of answering without a tag, in the first stage; ``exam_plain`` in the second.
    :param num_tasks: most tasks of an exam.
    :param budget: smallest and largest budget of an exam of ``num_tasks`` tasks; of shorter exams in proportion.
    :param exams: exams as one text.
    :param decision_exams: exams as decisions.
    :param ample: questions as the only task left of the largest budget, in the second stage.
    :param texts: exams as one text in a third stage of their own, which teaches to take them in one pass (0: no such stage).
    :param start: model that the third stage trains, where that is not what the first two make: they are left out then (the
        model that is named first answers the questions). Empty: all stages.
    :param text_tasks: most tasks of such an exam.
    :param text_budget: smallest and largest budget of such an exam, a task.
    :param single_epochs: most epochs of the first stage; ``exam_epochs`` of the second, ``text_epochs`` of the third.
    :param patience: epochs without improvement after which a stage ends.
    :param lr: peak of the learning rate; linear to 0 after a tenth of warm-up; ``exam_lr`` and ``text_lr``
        in the later stages.
    :param muon: hidden matrices are trained by Muon, at twice the rate of AdamW for the rest; else all by AdamW.
    :param batch: examples of an update; ``exam_batch`` in the later stages.
    :param lora: rank of LoRA on all linear layers (and the tags' embeddings); 0: all weights are trained.
    """

    seed: int = 0
    sample_seed: int = 1
    questions: int = 600
    validation: int = 50
    families: list[str] = field(default_factory=list)
    samples: int = 8
    enough: int = 1
    temperature: float = 0.7
    tiers: dict[str, int] = field(default_factory=lambda: {"answer": 0, "short": 48, "long": 160})
    answer: int = 24
    keep: str = "all"
    sampled: list[str] = field(default_factory=list)
    full: float = 0.1
    tags: int = 2
    plain: float = 0.1
    exam_plain: float = 1.5
    num_tasks: int = 8
    budget: list[int] = field(default_factory=lambda: [60, 420])
    exams: int = 200
    decision_exams: int = 300
    ample: int = 5000
    texts: int = 0
    start: str = ""
    text_tasks: int = 3
    text_budget: list[int] = field(default_factory=lambda: [20, 110])
    single_epochs: int = 5
    exam_epochs: int = 2
    text_epochs: int = 1
    patience: int = 2
    lr: float = 1.5e-3
    exam_lr: float = 3e-4
    text_lr: float = 1e-3
    batch: int = 32
    exam_batch: int = 16
    weight_decay: float = 0.1
    muon: bool = True
    lora: int = 0

    def __post_init__(self) -> None:
        positive = (
            "questions",
            "validation",
            "samples",
            "answer",
            "num_tasks",
            "single_epochs",
            "exam_epochs",
            "text_epochs",
            "text_tasks",
            "batch",
            "exam_batch",
            "patience",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "full",
            "tags",
            "plain",
            "exam_plain",
            "exams",
            "decision_exams",
            "texts",
            "lora",
            "temperature",
            "enough",
            "weight_decay",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        check_numbers(self, positive=("lr", "exam_lr", "text_lr"))
        check_families(self.families)
        if self.full + self.tags < 1 or self.exams + self.decision_exams < 1:
            raise ValueError("full + tags and exams + decision_exams must be at least 1")
        if self.start and not self.texts:
            raise ValueError(f"start={self.start} is trained on exams as one text: say how many, texts=10000")
        if self.keep not in ("all", "shortest"):
            raise ValueError(f"keep must be all or shortest, got {self.keep!r}")
        for name, bounds in (("budget", self.budget), ("text_budget", self.text_budget)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must read [smallest,largest], got {bounds}")
        if len(self.tiers) != NUM_LEVELS - 1 or sorted(set(self.tiers.values())) != list(self.tiers.values()):
            raise ValueError(f"tiers must be {NUM_LEVELS - 1} growing caps, got {self.tiers}")
        if unknown := set(self.sampled) - set(self.tiers):
            raise ValueError(f"sampled names no tier {sorted(unknown)[0]!r}; there are {list(self.tiers)}")

    @property
    def stages(self) -> list[Stage]:
        """The curriculum."""
        stages = [
            Stage("single", "single problems", self.single_epochs, self.lr, self.batch),
            Stage("exam", "exams", self.exam_epochs, self.exam_lr, self.exam_batch),
            Stage("text", "exams in one pass", self.text_epochs, self.text_lr, self.exam_batch),
        ]
        if self.start:
            return stages[2:]
        return stages if self.texts else stages[:2]

    @property
    def thinking_tiers(self) -> list[ThinkingTier]:
        """The tiers as a solver knows them."""
        return [ThinkingTier(name, cap, self.answer) for name, cap in self.tiers.items()]


@dataclass
class Result:
    """What became of a training.

    :param before: accuracy at every tier of one answer to each validation question; ``after``: fine-tuned, answering the same way.
    :param labels: share of each level among training questions.
    :param validation: loss of the tags (nats) on validation questions after each epoch, stage by stage.
    """

    labels: list[float] = field(default_factory=list)
    validation: dict[str, list[float]] = field(default_factory=dict)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)


class Choice(NamedTuple):
    """One way to take a problem: its cost in tokens beyond a refusal's, and what it is worth."""

    cost: int
    value: float


def plan(choices: Sequence[Sequence[Choice]], budget: int) -> list[int | None]:
    """The choices of an exam's problems that are worth most together within a budget; None: refuse.

    An exact multiple-choice knapsack (dynamic programming over tokens); of equal plans one of the cheapest, which refuses early
    problems rather than late ones.

    :param choices: of each problem.
    :param budget: tokens beyond what refusing every problem costs; negative: nothing fits.
    """
    room = max(budget, 0)
    best = np.zeros(room + 1)
    taken = []
    for ways in choices:
        value, way = best.copy(), np.full(room + 1, -1)
        for number, choice in enumerate(ways):
            if choice.cost <= room and choice.value > 0:
                with_it = best[: room + 1 - choice.cost] + choice.value
                better = with_it > value[choice.cost :] + 1e-9
                value[choice.cost :][better] = with_it[better]
                way[choice.cost :][better] = number
        best = value
        taken.append(way)
    left = int(np.argmax(best >= best[-1] - 1e-9))
    chosen: list[int | None] = []
    for ways, way in zip(reversed(choices), reversed(taken), strict=True):
        number = int(way[left])
        chosen.append(None if number < 0 else number)
        left -= 0 if number < 0 else ways[number].cost
    return chosen[::-1]


def draw_exam(
    found: Sequence[Sampled], num_tasks: int, budget: Sequence[int], rng: Random
) -> tuple[list[Sampled], int]:
    """Problems and budget of a random exam of 2 to ``num_tasks`` tasks; ``budget``: of one of ``num_tasks``, smallest and largest."""
    most = min(num_tasks, len(found))
    count = rng.randint(min(2, most), most)
    low, high = (bound * count / num_tasks for bound in budget)
    return rng.sample(list(found), count), round(rng.uniform(low, high))


def planned(problems: Sequence[Sampled], budget: int, rng: Random) -> list[tuple[Sampled, int, int, Sample | None]]:
    """The decisions of an exam's plan: problem, tokens left, tasks left, and the sample that is chosen (None: refuse).

    A tag costs one token, refusals too; nothing is decided without tokens.
    """
    options = [_options(problem, rng) for problem in problems]
    chosen = plan(
        [
            [Choice(one.tokens, problem.success[one.tier]) for one in ways]
            for ways, problem in zip(options, problems, strict=True)
        ],
        budget - len(problems),
    )
    decisions, left = [], budget
    for number, (problem, ways, way) in enumerate(zip(problems, options, chosen, strict=True)):
        if left < 1:
            break
        one = None if way is None else ways[way]
        decisions.append((problem, left, len(problems) - number, one))
        left -= 1 + (0 if one is None else one.tokens)
    return decisions


def _options(problem: Sampled, rng: Random) -> list[Sample]:
    """One kept sample of each tier, drawn at random: not the shortest, which would promise too little cost."""
    tiers = sorted({one.tier for one in problem.kept})
    return [rng.choice([one for one in problem.kept if one.tier == tier]) for tier in tiers]


class Examples:
    """Makes token ids and targets. All randomness comes from the generators given to the methods.

    :param tokenizer: whose vocabulary has every level tag as one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: MCFTRecipe) -> None:
        self.tokenizer, self.recipe = tokenizer, recipe
        self._prompts = PromptEncoder(tokenizer)
        self._end = str(tokenizer.eos_token)
        self._end_think = self._encode(END_THINK)
        self._refusal = len(self._encode(render_tagged(Tagged(REFUSED, None))))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decision(self, question: Question, remaining: int, tasks_left: int, tagged: Tagged, whole: bool) -> Example:
        """A decision prompt and the tag; ``whole``: and what follows it."""
        head = self._prompts.questions([question.text])[0].tolist()
        state = self._prompts.states(np.array([remaining]), np.array([tasks_left]))[0].tolist()
        prompt = [token for token in [*head, *state] if token >= 0]
        made = self._encode(render_tagged(tagged) + self._end if whole else LEVEL_TAGS[tagged.level])
        return Example(prompt + made, [IGNORED] * len(prompt) + made)

    def answering(self, question: Question, one: Sample) -> Example:
        """A right answer as it was sampled, without a tag; a forced end of thinking carries no loss."""
        prompt = self._encode(prompt_text(self.tokenizer, question.text))
        thought = self._encode(one.completion.thought)
        after = self._encode(render(one.completion._replace(thought="")) + self._end)[len(self._end_think) :]
        close = [IGNORED] * len(self._end_think) if one.forced else self._end_think
        return Example([*prompt, *thought, *self._end_think, *after], [IGNORED] * len(prompt) + thought + close + after)

    def exam(self, problems: Sequence[Sampled], budget: int, rng: Random, tags_only: bool = False) -> Example:
        """A whole exam as one text; its plan pays for every token that is written, the end of the turn included."""
        options = [_options(problem, rng) for problem in problems]
        texts = [[render_tagged(Tagged(one.level, one.completion)) for one in ways] for ways in options]
        ids = [[self._encode(text) for text in ways] for ways in texts]
        chosen = plan(
            [
                [
                    Choice(len(written) - self._refusal, problem.success[one.tier])
                    for written, one in zip(written_ways, ways, strict=True)
                ]
                for written_ways, ways, problem in zip(ids, options, problems, strict=True)
            ],
            budget - self._refusal * len(problems) - 1,
        )
        refusal = self._encode(render_tagged(Tagged(REFUSED, None)))
        made = [
            token for ways, way in zip(ids, chosen, strict=True) for token in (refusal if way is None else ways[way])
        ]
        made += self._encode(self._end)
        prompt = exam_ids(self.tokenizer, [problem.question.text for problem in problems], budget)
        tags = {self._encode(tag)[0] for tag in LEVEL_TAGS}
        targets = [token if token in tags or not tags_only else IGNORED for token in made]
        return Example(prompt + made, [IGNORED] * len(prompt) + targets)

    def decisions(self, problems: Sequence[Sampled], budget: int, rng: Random) -> list[Example]:
        """The decisions of an exam, with what is left when each is taken. A tag costs one token, refusals too."""
        return [
            self.decision(problem.question, left, tasks_left, _tagged(one), whole=False)
            for problem, left, tasks_left, one in planned(problems, budget, rng)
        ]

    def single_stage(self, found: Sequence[Sampled], rng: Random) -> list[Example]:
        """Examples of the first stage: every question on its own, whatever budget its prompt names."""
        examples: list[Example] = []
        for one in found:
            for number in range(self.recipe.tags + (rng.random() < self.recipe.full)):
                remaining, tasks_left = rng.randint(*self.recipe.budget), rng.randint(1, self.recipe.num_tasks)
                tagged = _tagged(rng.choice(one.kept) if one.kept else None)
                examples.append(self.decision(one.question, remaining, tasks_left, tagged, number >= self.recipe.tags))
        return examples + self.plain(found, self.recipe.plain, rng)

    def plain(self, found: Sequence[Sampled], each: float, rng: Random) -> list[Example]:
        """Right answers without tags, about ``each`` of them a question."""
        return [
            self.answering(one.question, rng.choice(one.plain))
            for one in found
            for _ in range(int(each + rng.random()) if one.plain else 0)
        ]

    def exam_stage(self, found: Sequence[Sampled], rng: Random) -> list[Example]:
        """Examples of the second stage: exams as one text, exams as decisions, questions without scarcity, plain answers."""
        examples = [self.exam(*self._draw(found, rng), rng) for _ in range(self.recipe.exams)]
        for _ in range(self.recipe.decision_exams):
            examples += self.decisions(*self._draw(found, rng), rng)
        for one in rng.sample(list(found), min(self.recipe.ample, len(found))):
            tagged = _tagged(rng.choice(one.kept) if one.kept else None)
            examples.append(self.decision(one.question, self.recipe.budget[1], 1, tagged, whole=False))
        return examples + self.plain(found, self.recipe.exam_plain, rng)

    def text_stage(self, found: Sequence[Sampled], count: int, rng: Random) -> list[Example]:
        """Examples of the third stage: exams as one text, under budgets that let most problems be answered."""
        low, high = self.recipe.text_budget
        examples = []
        for _ in range(count):
            tasks = rng.randint(1, min(self.recipe.text_tasks, len(found)))
            examples.append(self.exam(rng.sample(list(found), tasks), round(tasks * rng.uniform(low, high)), rng))
        return examples

    def stage(self, name: str, found: Sequence[Sampled], rng: Random) -> list[Example]:
        """Examples of a stage of :attr:`Recipe.stages`."""
        if name == "text":
            return self.text_stage(found, self.recipe.texts, rng)
        return self.single_stage(found, rng) if name == "single" else self.exam_stage(found, rng)

    def validation(self, name: str, found: Sequence[Sampled], rng: Random) -> list[Example]:
        """The first stage's tags, those of exams, or whole exams as one text."""
        if name == "text":
            return self.text_stage(found, len(found) // 4 + 1, rng)
        if name == "single":
            return [
                self.decision(
                    one.question,
                    rng.randint(*self.recipe.budget),
                    rng.randint(1, self.recipe.num_tasks),
                    _tagged(rng.choice(one.kept) if one.kept else None),
                    whole=False,
                )
                for one in found
            ]
        examples: list[Example] = []
        if self.recipe.decision_exams:
            for _ in range(len(found) // 4):
                examples += self.decisions(*self._draw(found, rng), rng)
        if self.recipe.exams:
            examples += [self.exam(*self._draw(found, rng), rng, tags_only=True) for _ in range(len(found) // 16 + 1)]
        return examples

    def _draw(self, found: Sequence[Sampled], rng: Random) -> tuple[list[Sampled], int]:
        return draw_exam(found, self.recipe.num_tasks, self.recipe.budget, rng)


def _tagged(one: Sample | None) -> Tagged:
    return Tagged(REFUSED, None) if one is None else Tagged(one.level, one.completion)


def mcft(
    model: str,
    recipe: MCFTRecipe,
    folder: Path,
    train: Sequence[Question],
    validation: Sequence[Question],
    check: Checker,
    watch: Watch = lambda what, done, total: None,
) -> Result:
    """Fine-tune a model (see :func:`agents.llm.decisions.policy.model_source`), or go on where that stopped; at the end the folder is a model directory.

    :raises ValueError: where the folder holds another model's or recipe's work.
    """
    model = model_source(model)
    with reading(model):
        tokenizer = open_tokenizer(model)
    _add_tags(tokenizer)
    # Looked for before hours of sampling.
    if recipe.start and not load_tokenizer(recipe.start).get_vocab().items() <= tokenizer.get_vocab().items():
        raise ValueError(
            f"start={recipe.start}: its tokenizer is another than that of {model}, whose answers it shall learn"
        )
    weights = {"weights": weights_digest(model)} | ({"start": weights_digest(recipe.start)} if recipe.start else {})
    begun = json.loads(json.dumps({"model": Path(model).name, "recipe": asdict(recipe)} | weights))
    record = folder / RECIPE
    there = json.loads(record.read_text()) if record.exists() else {}
    check_begun(folder, there, begun)
    if "result" in there:
        return Result(**there["result"])
    solver = _solver(model, recipe)
    if single_token(solver.tokenizer, ANSWER) is None:
        raise ValueError(
            f"{solver.name} does not know the form in which the small model's tasks are answered (no token {ANSWER!r}), so it could learn "
            "nothing but to refuse: record its answers to questions of yours (roi record) and give the table (--table)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not there:
        write_json(record, begun)
    result = Result(cpu_seconds=there.get("cpu_seconds", {}))
    clock = _Clock(result, lambda: write_json(record, {**begun, "cpu_seconds": result.cpu_seconds}))

    tiers = recipe.thinking_tiers
    questions = [*train, *validation]
    outcomes = sample(
        questions,
        check,
        solver,
        tiers,
        recipe.samples,
        folder / JOURNAL,
        recipe.enough,
        lambda done, total: watch("answering questions", done, total),
    )
    del solver  # its weights need not lie beside those that are trained
    clock("sampling")
    found = reject(questions, outcomes, tiers, recipe.samples, recipe.keep, recipe.sampled, recipe.enough)
    learned, held_out = found[: len(train)], found[len(train) :]
    write_labels(folder / LABELS, {"train": learned, "validation": held_out})
    result.labels = (np.bincount([one.label for one in learned], minlength=NUM_LEVELS) / len(learned)).tolist()
    result.before = _accuracy(validation, outcomes)

    make = Examples(tokenizer, recipe)
    source = model_source(recipe.start) if recipe.start else model
    for stage in recipe.stages:
        rng = Random(f"{recipe.seed} {stage.name}")
        examples, checked = make.stage(stage.name, learned, rng), make.validation(stage.name, held_out, rng)
        source = str(_stage(source, tokenizer, recipe, stage, folder / _STAGES / stage.name, examples, checked, watch))
        result.validation[stage.name] = json.loads((Path(source) / "validation.json").read_text())
        clock(stage.name)

    # Does it still answer as well as before? The same random numbers.
    solver = _solver(source, recipe)
    again = sample(
        validation,
        check,
        solver,
        tiers,
        1,
        folder / _STAGES / "after.journal.jsonl",
        watch=lambda done, total: watch("answering again", done, total),
    )
    result.after = _accuracy(validation, again)
    clock("answering again")
    solver.model.config.use_cache = True  # training switches it off
    with writing(folder):
        solver.model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        _card(Path(model).name, recipe, result, sum(p.numel() for p in solver.model.parameters()))
    )
    write_json(record, {**begun, "result": asdict(result)})
    shutil.rmtree(folder / _STAGES)
    return result


def _accuracy(
    questions: Sequence[Question], outcomes: Mapping[tuple[str, str, int], list[dict[str, Any]]]
) -> list[float]:
    """Of the first sample of every question, tier by tier: later samples are only drawn where the first are wrong."""
    first = [outcomes[one.dataset, one.question_id, 0] for one in questions]
    return [
        float(value) for value in np.mean([[bool(made["correct"]) for made in answers] for answers in first], axis=0)
    ]


class _Clock:
    """CPU seconds since the last call, added to a result; what was begun and interrupted is not counted."""

    def __init__(self, result: Result, keep: Callable[[], None]) -> None:
        self._result, self._keep, self._last = result, keep, time.process_time()

    def __call__(self, name: str) -> None:
        now = time.process_time()
        spent = self._result.cpu_seconds
        spent[name] = round(spent.get(name, 0.0) + now - self._last, 1)
        self._last = now
        self._keep()


def _solver(model: str, recipe: MCFTRecipe) -> Any:
    from roi_env.answering.local import TransformersSolver

    with reading(model):
        return TransformersSolver(model, temperature=recipe.temperature, seed=recipe.sample_seed, device=own_device())


def _add_tags(tokenizer: Any) -> None:
    """Make every level tag one token."""
    from transformers import AddedToken

    missing = [tag for tag in LEVEL_TAGS if len(tokenizer(tag, add_special_tokens=False).input_ids) != 1]
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in missing])


def _stage(
    source: str,
    tokenizer: Any,
    recipe: MCFTRecipe,
    stage: Stage,
    folder: Path,
    examples: list[Example],
    validation: list[Example],
    watch: Watch,
) -> Path:
    """Train one stage, or go on with it; returns the directory of its best model."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerState, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    done = folder / "best"
    if (done / "validation.json").exists():
        return done
    last = _last_checkpoint(folder)
    # Where a stage had ended, nothing is left to train.
    epochs = stage.epochs
    if last is not None and _ended(losses := _losses(TrainerState.load_from_json(str(last / _STATE))), recipe.patience):
        epochs = len(losses)
    cuda = own_device() == "cuda"
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    if recipe.lora:
        model = _with_lora(model, tokenizer, recipe)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=not cuda,
        bf16=cuda,
        seed=recipe.seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=stage.batch,
        per_device_eval_batch_size=64,
        learning_rate=stage.lr,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=recipe.weight_decay,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        prediction_loss_only=True,
        logging_strategy="epoch",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_rows(examples),
        eval_dataset=_rows(validation),
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(lambda: _muon, {"lr": arguments.learning_rate, "weight_decay": recipe.weight_decay})
        if recipe.muon and not recipe.lora
        else None,
        data_collator=lambda rows: _collate(rows, tokenizer.pad_token_id or 0),
        callbacks=[_watcher(stage, recipe.patience, folder, watch)],
    )
    trainer.remove_callback(PrinterCallback)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        best = model.merge_and_unload() if recipe.lora else model
        best.save_pretrained(done)
        tokenizer.save_pretrained(done)
    write_json(done / "validation.json", [round(loss, 4) for loss in _losses(trainer.state)])
    return done


_STATE = "trainer_state.json"


def _last_checkpoint(folder: Path) -> Path | None:
    """The Trainer's last whole checkpoint. It writes them in place, the state last: those that a kill or a full disk cut are deleted."""
    from transformers.trainer_utils import get_last_checkpoint

    while folder.is_dir() and (found := get_last_checkpoint(str(folder))) is not None:
        try:
            json.loads((Path(found) / _STATE).read_text())
        except (OSError, ValueError):
            shutil.rmtree(found)
        else:
            return Path(found)
    return None


def _losses(state: TrainerState) -> list[float]:
    """Of the validation examples, epoch by epoch."""
    return [float(entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]


def _ended(losses: Sequence[float], patience: int) -> bool:
    """Whether so many epochs brought nothing; told by the losses alone, so that a stage that goes on knows it as well."""
    return len(losses) - 1 - int(np.argmin(losses)) >= patience


def check_loss(what: str, loss: float) -> None:
    """Refuse to go on with, or to keep, weights that compute no numbers.

    :raises ValueError: where the loss is none.
    """
    if not np.isfinite(loss):
        raise ValueError(
            f"{what}: the loss on validation questions is {loss}, its training diverged: choose a smaller learning rate (lr=, exam_lr=, "
            "text_lr=) and another folder, or delete this one"
        )


def check_begun(folder: Path, there: Mapping[str, Any], begun: Mapping[str, Any]) -> None:
    """Refuse a folder with other work.

    :param there: its record, empty where there is none; of earlier folders it may lack entries.
    :param begun: the record of the work that is asked for.
    :raises ValueError: naming what differs.
    """
    # As JSON, which has no tuples.
    wanted = json.loads(json.dumps(begun))
    if differing := [name for name, value in wanted.items() if name in there and there[name] != value]:
        raise ValueError(
            f"{folder} holds work with another model, table or recipe ({', '.join(differing)} differ): choose another folder, or delete it"
        )


class _Both(torch.optim.Optimizer):
    """Several optimizers that look like one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = list(parts)
        # The groups are shared: a schedule changes the parts' learning rates.
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def _muon(model: torch.nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return _Both(optimizers(model, 2 * lr, lr, weight_decay))


def _with_lora(model: Any, tokenizer: Any, recipe: MCFTRecipe) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora,
        lora_alpha=2 * recipe.lora,
        target_modules="all-linear",
        trainable_token_indices=[int(tokenizer.convert_tokens_to_ids(tag)) for tag in LEVEL_TAGS],
    )
    with quiet_peft():
        return get_peft_model(model, settings)


def _watcher(stage: Stage, patience: int, folder: Path, watch: Watch) -> TrainerCallback:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        loss = ""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.best_global_step:  # by its path of then: the folder may have been moved
                state.best_model_checkpoint = str(folder / f"checkpoint-{state.best_global_step}")

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses = _losses(state)
            check_loss(stage.shown, losses[-1])
            control.should_training_stop = control.should_training_stop or _ended(losses, patience)
            self.loss = f", validation {losses[-1]:.3f}"

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch(stage.shown + self.loss, state.global_step, state.max_steps)

    return Watcher()


def _rows(examples: Iterable[Example]) -> list[dict[str, list[int]]]:
    return [{"input_ids": made.ids, "labels": made.labels} for made in examples]


def _collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Right padding; causal attention needs no mask then."""
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [fill] * (length - len(row[name])) for row in rows])
        for name, fill in (("input_ids", pad), ("labels", IGNORED))
    }


def write_json(path: Path, content: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _card(model: str, recipe: MCFTRecipe, result: Result, parameters: int) -> str:
    settings = " ".join(f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in asdict(recipe).items())
    rows = "\n".join(
        f"| {name} | {before:.3f} | {after:.3f} |"
        for name, before, after in zip(recipe.tiers, result.before, result.after, strict=True)
    )
    losses = "\n".join(f"* {name}: {', '.join(map(str, values))}" for name, values in result.validation.items())
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# {model}, which announces what a question will take of it

{parameters:,} parameters (bfloat16). Meta-cognitive fine-tuning of `{model}` on its own samples: after a question and a line `Tokens left:
.. Tasks left: ..` its first token is a level tag, `{LEVEL_TAGS[0]}` to `Level-2` for solving levels of at most
{", ".join(str(tier.most_tokens) for tier in recipe.thinking_tiers)} tokens, `Level-3` for a refusal. It takes whole exams in one text too, and answers without tags.

Recipe (`{RECIPE}`; `roi mcft {model} --out FOLDER ...`): {settings}

Shares of the levels among training questions: {", ".join(f"{share:.2f}" for share in result.labels)}. Nats a tag on validation questions, epoch by epoch:

{losses}

Accuracy on validation questions, answering without tags:

| tier | before | after |
|---|---|---|
{rows}

CPU seconds: {", ".join(f"{name} {seconds:.0f}" for name, seconds in result.cpu_seconds.items())}.
"""
