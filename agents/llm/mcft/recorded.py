"""Meta-cognitive fine-tuning on recorded outcomes: labels from a table's own samples, a loss on the announced level alone.

For any causal LM, whether its level tags are tokens or text (:mod:`agents.llm.decisions.tag_logits`). Nothing is generated: a right sample of the
table is labelled with the level of its own length, a question without one with the refusal. Two stages: single problems, whose
target is the share of each level among their labels; then exams under a budget, planned as an exact knapsack over the kept
samples, whose decisions are the targets, and single problems again where nothing is scarce. Only the level is learned: how the
model answers is left to LoRA's small change of the weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from agents.llm.decisions.policy import LMPolicy, load_tokenizer, model_source, weights_digest
from agents.llm.decisions.tag_logits import Ids, PromptEncoder
from agents.llm.mcft.rejection import Sampled, write_labels
from agents.llm.mcft.training import LABELS, RECIPE, Watch, check_begun, check_loss, draw_exam, planned, write_json
from agents.llm.prompts import NUM_LEVELS, REFUSED
from agents.parameters import check_numbers

CHECKPOINT, ANNOUNCED = "training.pt", "announced.npz"
ADAPTER = "adapter"
"""Folder of LoRA's weights alone, as peft reads them."""
_TOGETHER = 16
"""Decisions read together where nothing is learned."""
_LEVELS = [REFUSED, *range(REFUSED)]
"""Levels in the order of actions."""


@dataclass
class TableRecipe:
    """Everything that the training depends on, beside model and table.

    :param seed: of new weights, states and exams.
    :param keep: which right samples are kept: ``all`` or the ``shortest``.
    :param sampled: tiers whose generations count as samples; empty: the last alone, where reasoning is free.
    :param states: budgets and numbers of tasks left that a question is read with in the first stage.
    :param num_tasks: most tasks of an exam.
    :param budget: smallest and largest budget of an exam of ``num_tasks`` tasks; of shorter exams in proportion.
    :param exams: of the second stage, the same in every epoch.
    :param single_epochs: most epochs of the first stage; ``exam_epochs`` of the second.
    :param patience: epochs without improvement on validation questions after which a stage ends.
    :param lr: peak of the learning rate (AdamW), linear to 0 after a tenth of warm-up; ``exam_lr`` in the second stage.
    :param batch: questions, or exams, of an update.
    :param lora: rank of LoRA on all linear layers but the head; 0: all weights are trained.
    :param layers: number of last layers that LoRA is on; those below are run once a prompt, and what they gave is kept; 0: all
        layers.
    :param dtype: of the model's weights (LoRA's own are float32).
    """

    seed: int = 0
    keep: str = "all"
    sampled: list[str] = field(default_factory=list)
    states: int = 2
    num_tasks: int = 3
    budget: list[int] = field(default_factory=lambda: [256, 1024])
    exams: int = 100
    single_epochs: int = 4
    exam_epochs: int = 2
    patience: int = 2
    lr: float = 3e-4
    exam_lr: float = 1e-4
    batch: int = 8
    lora: int = 16
    layers: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        least = {"states": 1, "num_tasks": 1, "exams": 1, "single_epochs": 1, "exam_epochs": 0, "patience": 1, "batch": 1, "lora": 0, "layers": 0}  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        check_numbers(self, positive=("lr", "exam_lr"))
        if self.keep not in ("all", "shortest"):
            raise ValueError(f"keep must be all or shortest, got {self.keep!r}")
        if len(self.budget) != 2 or not 0 < self.budget[0] <= self.budget[1]:
            raise ValueError(f"budget must read [smallest,largest], got {self.budget}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.layers and not self.lora:
            raise ValueError(f"layers={self.layers} says where LoRA is: give its rank, lora=16")


class Decision(NamedTuple):
    """One prompt and what is to be announced: ``target`` (NUM_LEVELS,) probabilities of the levels."""

    text: str
    remaining: int
    tasks_left: int
    target: npt.NDArray[np.float64]


Examples = Sequence[Sequence[Decision]]
"""Decisions in lists that are read together."""


def single_decisions(found: Sequence[Sampled], recipe: TableRecipe, rng: Random) -> list[list[Decision]]:
    """A question a list, under budgets that do not matter: what it takes is said, whatever is left."""
    return [
        [
            Decision(one.question.text, rng.randint(*recipe.budget), rng.randint(1, recipe.num_tasks), _shares(one))
            for _ in range(recipe.states)
        ]
        for one in found
    ]


def ample_decisions(found: Sequence[Sampled], recipe: TableRecipe) -> list[list[Decision]]:
    """Every question as the only one left of the largest budget: where nothing is scarce."""
    return [[Decision(one.question.text, recipe.budget[1], 1, _shares(one))] for one in found]


def exam_decisions(found: Sequence[Sampled], count: int, recipe: TableRecipe, rng: Random) -> list[list[Decision]]:
    """An exam a list: the decisions of its plan, with what is left when each is taken."""
    return [
        [
            Decision(one.question.text, left, tasks_left, np.eye(NUM_LEVELS)[REFUSED if way is None else way.level])
            for one, left, tasks_left, way in planned(*draw_exam(found, recipe.num_tasks, recipe.budget, rng), rng)
        ]
        for _ in range(count)
    ]


def _shares(one: Sampled) -> npt.NDArray[np.float64]:
    return np.array(one.counts) / sum(one.counts)


def fine_tune(
    model: str,
    recipe: TableRecipe,
    folder: Path,
    table: dict[str, Any],
    train: Sequence[Sampled],
    validation: Sequence[Sampled],
    watch: Watch = lambda what, done, total: None,
    say: Callable[[str], None] = lambda text: None,
    asked: Sequence[Sampled] = (),
) -> dict[str, list[float]]:
    """Train a model (see :func:`agents.llm.decisions.policy.model_source`), or go on after the last whole epoch; the folder becomes a model directory.

    :param table: what tells the table apart, kept with the recipe.
    :param train: labelled questions (:func:`agents.llm.mcft.rejection.table_samples`); ``validation``: for early stopping.
    :param say: is told how long it will take, before it begins.
    :param asked: questions that are announced as well, for a report (:func:`announced`).
    :returns: nats a label on validation questions before and after each epoch, by stage.
    :raises ValueError: where the folder holds another model's, table's or recipe's work, or there are no questions.
    """
    for name, questions in (("training", train), ("validation", validation)):
        if not questions:
            raise ValueError(f"the table has no {name} question with a text: record more questions")
    outcomes = [(one.question.text, one.counts, one.success, one.tokens) for one in (*train, *validation)]
    begun = {
        "model": Path(model_source(model)).name,
        "recipe": asdict(recipe) | table,
        "outcomes": hashlib.sha256(repr(outcomes).encode()).hexdigest()[:16],  # a table may be graded anew
        "weights": weights_digest(model),
    }
    record = folder / RECIPE
    there = json.loads(record.read_text()) if record.exists() else {}
    check_begun(folder, there, begun)
    if "validation" in there:
        return there["validation"]  # type: ignore[no-any-return]
    trainer = _Trainer(model, recipe, folder / CHECKPOINT, watch)  # refuses a model before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    if not any(one.kept for one in train):
        say(
            f"No answer to the {len(train):,} training questions is right: all that can be learned is to refuse. Was the table graded as "
            "its answers are meant (roi record --grader)?"
        )
    write_json(record, begun)
    write_labels(folder / LABELS, {"train": train, "validation": validation})
    # The same in every epoch, so that layers below the trained ones read them once.
    single = single_decisions(train, recipe, Random(f"{recipe.seed} single problems"))
    rng = Random(f"{recipe.seed} exams")
    exams = exam_decisions(train, recipe.exams, recipe, rng) + ample_decisions(train, recipe)
    ample = ample_decisions(validation, recipe)
    rng = Random(f"{recipe.seed} validation")
    scarce = exam_decisions(validation, max(len(validation) // 2, 1), recipe, rng) + ample
    every = ample_decisions([*train, *validation, *asked], recipe)
    trainer.prepare([(single, ample, recipe.single_epochs), (exams, scarce, recipe.exam_epochs), ([], every, 0)], say)
    trainer.stage("single problems", recipe.single_epochs, recipe.lr, single, ample)
    trainer.stage("exams", recipe.exam_epochs, recipe.exam_lr, exams, scarce)
    trainer.policy.save(folder, model)
    if recipe.lora:
        trainer.policy.lm.save_pretrained(folder / ADAPTER)
    # The folder's weights are bfloat16: of others the frozen layers would not be those that read.
    if trainer.policy.lower is not None and recipe.dtype == "bfloat16":
        trainer.announce(folder, [one for (one,) in every])
    write_json(record, begun | {"validation": trainer.losses})
    trainer.checkpoint.unlink()
    return trainer.losses


def announced(folder: Path) -> dict[str, Announced] | None:
    """What was announced of questions after a training of the last layers alone, by text; None where nothing was kept."""
    if not (folder / ANNOUNCED).exists():
        return None
    with np.load(folder / ANNOUNCED) as kept:
        columns = [kept[name] for name in ("texts", *Announced._fields)]
    return {str(text): Announced(*rest) for text, *rest in zip(*columns, strict=True)}


class Announced(NamedTuple):
    """Of one question with the largest budget, as the only one left.

    :param taught: (NUM_LEVELS,) probabilities of the levels 0, 1, .. of the model as it was written; ``untaught``: of the model that it began as.
    :param state: (hidden,) what the frozen layers give the first trained one at the place where the level is announced.
    """

    taught: npt.NDArray[np.float64]
    untaught: npt.NDArray[np.float64]
    state: npt.NDArray[np.float32]


class _Trainer:
    """Trains a policy stage by stage; what is needed to go on is kept after every epoch.

    :param checkpoint: file of the state, read where it is there.
    """

    def __init__(self, model: str, recipe: TableRecipe, checkpoint: Path, watch: Watch) -> None:
        self.policy = LMPolicy(
            model, NUM_LEVELS, lora=recipe.lora, layers=recipe.layers, keep=True, dtype=recipe.dtype, seed=recipe.seed
        )
        self.recipe, self.checkpoint, self.watch = recipe, checkpoint, watch
        self.encoder = PromptEncoder(load_tokenizer(model), levels=NUM_LEVELS)
        self.losses: dict[str, list[float]] = {}
        self._kept: dict[str, Any] = {}
        if checkpoint.exists():
            self._kept = torch.load(checkpoint, weights_only=False)
            self.losses = self._kept["losses"]
            self._take(self._kept["best"])

    def stage(
        self,
        name: str,
        epochs: int,
        lr: float,
        examples: Examples,
        validation: Examples,
    ) -> None:
        """Train one stage, or go on with it; at the end the policy has its best weights.

        :param examples: of every epoch, in lists whose decisions are read together.
        """
        losses = self.losses.setdefault(name, [])
        if list(self.losses)[-1] != name:
            return  # done before
        if not losses:
            losses.append(self._nats(validation))
        optimizer = torch.optim.AdamW(
            [one for one in self.policy.parameters() if one.requires_grad], lr, weight_decay=0.0
        )
        best = self._weights()
        if len(losses) > 1:
            self._take(self._kept["weights"])
            optimizer.load_state_dict(self._kept["optimizer"])
        for epoch in range(len(losses) - 1, epochs):
            if epoch + 1 - int(np.argmin(losses)) > self.recipe.patience:
                break
            rng = Random(f"{self.recipe.seed} {name} {epoch}")
            made = rng.sample(examples, len(examples))
            steps = -(-len(made) // self.recipe.batch)
            for step in range(steps):
                done = epoch + (step + 1) / steps
                rate = lr * min(1.0, done / (0.1 * epochs), (epochs + 1 / steps - done) / (0.9 * epochs))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._loss(made[step * self.recipe.batch : (step + 1) * self.recipe.batch]).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
                optimizer.step()
                self.watch(f"{name}, validation {losses[-1]:.3f}", epoch * steps + step + 1, epochs * steps)
            losses.append(self._nats(validation))
            check_loss(name, losses[-1])
            if losses[-1] == min(losses):
                best = self._weights()
            self._keep(best, optimizer)
        self._take(best)

    def prepare(self, stages: Sequence[tuple[Examples, Examples, int]], say: Callable[[str], None]) -> None:
        """Say how long the stages will take at most, measured on some questions; then read all prompts with the layers that are
        not trained.

        :param stages: examples, validation and epochs of each.
        """
        every = [
            one for made, held_out, _ in stages for examples in (made, held_out) for row in examples for one in row
        ]
        chosen = Random(self.recipe.seed).sample(stages[0][0], min(self.recipe.batch, len(stages[0][0])))
        some = {row[0].text for row in chosen}
        sample, rest = ([one for one in every if (one.text in some) == inside] for inside in (True, False))
        self._loss(chosen[:1]).mean().backward()  # type: ignore[no-untyped-call]  # warms up
        reading = _seconds(lambda: self._read(sample, lambda done, total: None)) / len(sample)
        learning = _seconds(lambda: self._loss(chosen).mean().backward()) / _decisions(chosen)  # type: ignore[no-untyped-call]
        self.policy.zero_grad()
        learnt = sum(epochs * _decisions(made) for made, _, epochs in stages)
        # A forward pass is a third of a training step.
        checked = sum((epochs + 1) * _decisions(held_out) for _, held_out, epochs in stages)
        hours = (len(rest) * reading + (learnt + checked / 3) * learning) / 3600
        say(
            f"{len(every):,} decisions to read ({1 / reading if reading else 0:.1f} a second), {learnt:,} to learn from ({1 / learning:.1f} a second): "
            f"about {hours:.2f} hours at most with {torch.get_num_threads()} threads"
        )
        self._read(rest, lambda done, total: self.watch("reading with layers that are not trained", done, total))

    def announce(self, folder: Path, decisions: Sequence[Decision]) -> None:
        """Keep what the model in the folder, and the one that it began as, announce; layers that were not trained are not run again."""
        lower = self.policy.lower
        assert lower is not None
        with self.policy.without_adapters():
            untaught = self._probabilities(self.policy, decisions)
        written = LMPolicy(str(folder), NUM_LEVELS, dtype=self.recipe.dtype)
        written.lower = lower.of(written.causal)
        np.savez_compressed(
            folder / ANNOUNCED,
            texts=[one.text for one in decisions],
            taught=self._probabilities(written, decisions),
            untaught=untaught,
            state=lower.last_hidden(*self._prompts(decisions)).float().cpu().numpy(),
        )

    def _probabilities(self, policy: LMPolicy, decisions: Sequence[Decision]) -> npt.NDArray[np.float64]:
        """(D, NUM_LEVELS) of the levels 0, 1, .."""
        found = []
        with torch.no_grad():
            for first in range(0, len(decisions), _TOGETHER):
                logits, _ = policy.heads(*self._prompts(decisions[first : first + _TOGETHER]))
                found.append(logits.double().softmax(1)[:, np.argsort(_LEVELS)].cpu().numpy())
        return np.concatenate(found)

    def _read(self, decisions: Sequence[Decision], watch: Callable[[int, int], None]) -> None:
        if self.policy.lower is not None and decisions:
            self.policy.lower.read(*self._prompts(decisions), watch)

    def _prompts(self, decisions: Sequence[Decision]) -> tuple[Ids, int]:
        """Encoded prompts, and the width of their questions."""
        left, tasks_left = [one.remaining for one in decisions], [one.tasks_left for one in decisions]
        return self.encoder.prompts([one.text for one in decisions], left, tasks_left)

    def _loss(self, together: Examples) -> torch.Tensor:
        """(D,) nats a label."""
        decisions = [one for made in together for one in made]
        logits, _ = self.policy.heads(*self._prompts(decisions))
        target = torch.tensor(np.array([one.target for one in decisions])[:, _LEVELS], device=logits.device)
        return -(target * logits.double().log_softmax(1)).sum(1)

    def _nats(self, validation: Examples) -> float:
        with torch.no_grad():
            return float(torch.cat([self._loss(part) for part in _parts(validation, self.recipe.batch)]).mean())

    def _weights(self) -> dict[str, Any]:
        return self.policy.weights()

    def _take(self, weights: dict[str, Any]) -> None:
        self.policy.set_weights(weights)

    def _keep(self, best: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        from roi_env.files import replacing

        self._kept = {
            "losses": self.losses,
            "best": best,
            "weights": self._weights(),
            "optimizer": optimizer.state_dict(),
        }
        with replacing(self.checkpoint) as path:
            torch.save(self._kept, path)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _decisions(made: Examples) -> int:
    return sum(map(len, made))


def _parts(made: Examples, size: int) -> Iterator[Examples]:
    for first in range(0, len(made), size):
        yield made[first : first + size]
