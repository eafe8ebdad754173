"""Predictors: fitted on the train questions of a recorded table, then a text gives every tier's law; and their files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.predictors.features import READERS, SURFACE, Arrays, Columns, Given, Model, Reader, Several, Surface, Words
from agents.predictors.heads import Heads, fit_heads
from agents.predictors.records import Records, apart, near_duplicates
from agents.predictors.scores import SCORERS, SCORES, Boosted, Linear, Neighbours, Scorer, Trees, folds_of, targets
from roi_env.envs.live import KnownGroups
from roi_env.files import replacing
from roi_env.sources.outcome_tables import SPLITS
from roi_env.sources.source import Laws
from roi_env.sources.texts import normalised
from roi_env.sources.units import Unit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KINDS = {
    "text": "words and pairs of words (TF-IDF) by ridge regression, then boosted trees on the text's look; the default",
    "surface": "the text's look alone (length, digits, operators, LaTeX, choices), boosted trees",
    "neighbours": "the nearest train questions by words",
    "given": "given:COLUMN[,COLUMN]: columns that people supply, e.g. a level",
    "embedding": "embedding:MODEL: mean state of a Hugging Face encoder (folder, hub id, or minilm of the extra [encoder]), ridge regression",
    "hidden": "hidden:MODEL: the answering model's own state at the end of the question, ridge regression",
    "levels": "levels:MODEL: the levels that a model with level tags announces, ridge regression",
}
"""Ready predictors, by the first word of their names."""
VERSION = 2
"""Of the files."""
LEAST_QUESTIONS = 20
"""Train questions that a predictor needs."""
SUFFIX = ".npz"


class PredictorError(ValueError):
    """A predictor that cannot be made, read or used; the message says what to do."""


def check_sklearn() -> None:
    """See that scikit-learn is there.

    :raises PredictorError: where it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise PredictorError(f'{error}; predictors need: pip install "roi-reasoning[predict]"') from None


def is_file(name: str) -> bool:
    """Whether a predictor's name is that of a file."""
    return name.endswith(SUFFIX)


def _parts(name: str, columns: Sequence[str]) -> tuple[Reader, Scorer]:
    """Reader and scorer of a predictor's name.

    :raises PredictorError: for an unknown one, or one without what it needs.
    """
    kind, _, argument = name.partition(":")
    if kind not in KINDS:
        raise PredictorError(f"unknown predictor {name!r}; there are {', '.join(KINDS)}, and files ({SUFFIX})")
    needs = {"given": "a column, e.g. given:level", "embedding": "a model", "hidden": "a model", "levels": "a model"}
    if (kind in needs) != bool(argument):
        raise PredictorError(f"predictor {name!r}: {kind} needs {needs.get(kind, 'nothing after a colon')}")
    published = Given(columns, needed=False)
    if kind == "text":
        # The look comes last: trees read it, and ridge regression shrinks it like a word.
        return Several((Words(), 1.0), (published, 1.0), (Surface(), 0.15)), Boosted(len(SURFACE))
    if kind == "surface":
        return Several((Surface(), 1.0), (published, 1.0)), Trees()
    if kind == "neighbours":
        return Several((Words(), 1.0), (published, 0.3)), Neighbours()
    if kind == "given":
        return Several((Given(argument.split(",")), 1.0), (published, 1.0)), Linear()
    return Several((Model(kind, argument), 3.0), (published, 1.0)), Linear()


@dataclass(frozen=True)
class Groups:
    """Groups of predicted laws: what is published of a question.

    :param centres: (G, 2 K) laws by :meth:`agents.predictors.heads.Heads.vector`; groups stand in the order in which they
        first appear in the table, as the groups of its exams do: an agent trained on these knows those of live questions.
    :param laws: (G,) what train questions of the group really did.
    :param names: G, numbered from seldom to often right at the dearest tier.
    :param key: (G,) rank of difficulty.
    :param share: (G,) of train questions.
    """

    centres: Floats
    laws: Laws
    names: tuple[str, ...]
    key: npt.NDArray[np.int32]
    share: Floats


@dataclass
class Predictor:
    """Text (and columns) to the law of every tier, and to one of a few published groups.

    Train questions get what they were predicted as by those that they did not help to fit: a text that was seen in training
    is no better known than another one.

    :param name: e.g. "text".
    :param menu: whose laws.
    :param tiers: K names, cheapest first.
    :param columns: the published columns that it reads beside the text, where they are there.
    :param unit: what costs count.
    :param facts: how it was fitted and how well it did on validation questions: plain data.
    """

    name: str
    menu: str
    tiers: tuple[str, ...]
    columns: tuple[str, ...]
    reader: Reader
    scorer: Scorer
    heads: Heads
    seen: Mapping[str, Floats]
    published: Given
    groups: Groups | None = None
    unit: Unit = "tokens"
    facts: dict[str, Any] = field(default_factory=dict)

    def scores(self, texts: Sequence[str], columns: Columns | None = None) -> Floats:
        """(n, 3 + values) scores of questions, see :mod:`agents.predictors.scores`, and indicators of published values.

        :raises PredictorError: where a column that it needs is not there.
        """
        try:
            found = self.scorer.predict(self.reader.read(texts, columns or {}))
            given = self.published.read(texts, columns or {})
        except ValueError as error:
            raise PredictorError(f"predictor {self.name!r}: {error}") from error
        if self.seen:
            for row, text in zip(found, texts, strict=True):
                if (own := self.seen.get(_fingerprint(text))) is not None:
                    row[:] = own
        return np.concatenate([found, given], 1)

    @property
    def _given(self) -> list[Given]:
        parts = [part for part, _ in self.reader.parts] if isinstance(self.reader, Several) else [self.reader]
        return [self.published, *(part for part in parts if isinstance(part, Given))]

    @property
    def reads(self) -> list[str]:
        """Columns that it reads beside the text, where they are there."""
        return sorted({name for part in self._given for name in part.names})

    def unknown(self, columns: Columns) -> list[str]:
        """Values of columns that it reads and was fitted on no questions (or too few) with, as NAME=VALUE."""
        return sorted({value for part in self._given for value in part.unknown(columns)})

    def knows(self, texts: Sequence[str]) -> int:
        """How many of these texts it was fitted on."""
        return sum(_fingerprint(text) in self.seen for text in texts)

    def success(self, texts: Sequence[str], columns: Columns | None = None) -> Floats:
        """(n, K) probability of a right answer at every tier."""
        return self.heads.probability(self.scores(texts, columns))

    def group(self, texts: Sequence[str], columns: Columns | None = None) -> Ints:
        """(n,) group of every question."""
        return self.nearest(self.scores(texts, columns))

    def nearest(self, scores: Floats, allowed: npt.NDArray[np.bool_] | None = None) -> Ints:
        """(n,) group of the nearest centre, among the (G,) allowed ones.

        :raises PredictorError: where laws were not grouped.
        """
        if self.groups is None:
            raise PredictorError(f"predictor {self.name!r} has no groups: fit it on a table with a validation split")
        return nearest_centre(self.heads.vector(scores), self.groups.centres, allowed)

    def known_groups(self) -> KnownGroups:
        """The groups as beliefs of live questions.

        :raises PredictorError: where laws were not grouped.
        """
        if self.groups is None:
            raise PredictorError(f"predictor {self.name!r} has no groups: fit it on a table with a validation split")
        groups = self.groups
        return KnownGroups(self.tiers, groups.names, groups.laws, groups.key, groups.share, self.group, self.unit)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of plain arrays (``.npz``, no pickle); it appears whole or not at all.

        :raises PredictorError: for another suffix.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise PredictorError(f"{path}: predictors are written as {SUFFIX} files")
        head = {
            "version": VERSION,
            "name": self.name,
            "menu": self.menu,
            "tiers": self.tiers,
            "unit": self.unit,
            "columns": self.columns,
            "reader": self.reader.kind,
            "scorer": self.scorer.kind,
            "facts": self.facts,
            "groups": None if self.groups is None else self.groups.names,
        }
        arrays: Arrays = {
            "roi_predictor": np.array(json.dumps(head)),
            "heads.success": self.heads.success,
            "heads.cost": self.heads.cost,
            "heads.spread": self.heads.spread,
            "seen.text": np.array(list(self.seen), np.str_),
            "seen.scores": np.array(list(self.seen.values()), np.float64).reshape(-1, len(SCORES)),
        }
        arrays |= {f"published.{name}": array for name, array in self.published.arrays().items()}
        arrays |= {f"reader.{name}": array for name, array in self.reader.arrays().items()}
        arrays |= {f"scorer.{name}": array for name, array in self.scorer.arrays().items()}
        if self.groups is not None:
            laws = self.groups.laws
            arrays |= {
                "groups.centres": self.groups.centres,
                "groups.key": self.groups.key,
                "groups.share": self.groups.share,
                "groups.indptr": laws.indptr,
                "groups.cost": laws.cost,
                "groups.prob": laws.prob,
                "groups.success": laws.success,
            }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getvalue())


def nearest_centre(vectors: Floats, centres: Floats, allowed: npt.NDArray[np.bool_] | None = None) -> Ints:
    """(n,) number of the centre nearest to every vector; ties: the first."""
    distance = ((vectors[:, None, :] - centres) ** 2).sum(2)
    if allowed is not None:
        distance = np.where(allowed, distance, np.inf)
    return np.asarray(distance.argmin(1), np.int64)


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Read a file of :meth:`Predictor.save`; nothing in it is executed.

    :raises PredictorError: where it is none.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise PredictorError(f"{path}: no such file; make one with `roi predict fit TABLE --out {path}`") from None
    # What numpy and zipfile raise of damaged bytes.
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise PredictorError(
            f"{path}: not a predictor's file, or a damaged one ({error}): fit or copy it again"
        ) from error
    if "roi_predictor" not in arrays:
        raise PredictorError(f"{path}: not a predictor's file (a trained agent?); make one with `roi predict fit`")
    check_sklearn()
    try:
        head = json.loads(str(arrays["roi_predictor"]))
        if head["version"] != VERSION:
            raise PredictorError(
                f"{path}: file version {head['version']}, this release reads {VERSION}: fit the predictor again"
            )
        return _restored(head, arrays)
    except PredictorError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise PredictorError(f"{path}: damaged ({error!r}): fit or copy it again") from error


def _restored(head: Mapping[str, Any], arrays: Arrays) -> Predictor:
    reader, scorer, published = READERS[head["reader"]](), SCORERS[head["scorer"]](), Given()
    for prefix, part in (("reader.", reader), ("scorer.", scorer), ("published.", published)):
        part.restore(_under(prefix, arrays))
    heads = Heads(*(arrays[f"heads.{part}"] for part in ("success", "cost", "spread")))
    seen = dict(zip(map(str, arrays["seen.text"]), arrays["seen.scores"], strict=True))
    groups = None
    if head["groups"] is not None:
        indptr, cost, prob, success = (arrays[f"groups.{part}"] for part in ("indptr", "cost", "prob", "success"))
        laws = Laws(indptr, cost, prob, success, len(head["tiers"]))
        groups = Groups(
            arrays["groups.centres"], laws, tuple(head["groups"]), arrays["groups.key"], arrays["groups.share"]
        )
    return Predictor(
        head["name"], head["menu"], tuple(head["tiers"]), tuple(head["columns"]), reader, scorer, heads, seen, published,
        groups, head["unit"], head["facts"],
    )  # fmt: skip


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def fit_scores(name: str, found: Records, columns: Sequence[str] = ("dataset",)) -> Predictor:
    """Fit a predictor (without groups) on the train questions of :func:`agents.predictors.records.records`.

    Near duplicates of questions of later splits are left out; validation questions help to calibrate the curves.

    :param name: one of :data:`KINDS`, with its argument after a colon.
    :param columns: published columns to read beside the text.
    :raises PredictorError: for an unknown name, too few train questions, a column or a model that is not there, or
        without scikit-learn.
    """
    reader, scorer = _parts(name, columns)
    check_sklearn()
    usable = apart(found) & (found.count.sum(1) > 0)
    chosen, held_back = (usable & (found.split == SPLITS.index(split)) for split in ("train", "validation"))
    train = found.take(chosen)
    if len(train) < LEAST_QUESTIONS:
        raise PredictorError(
            f"{len(train)} train questions (of {len(found)}; near duplicates of others left out) are too few for a predictor: "
            f"record at least {LEAST_QUESTIONS}"
        )
    if not any(normalised(text) for text in train.texts):
        raise PredictorError("no train question has a text: a predictor reads texts")
    checked = found.take(held_back)
    fold = folds_of(near_duplicates(train.texts))
    try:
        reader.fit(train.texts, train.columns)
        out_of_fold = scorer.fit(reader.read(train.texts, train.columns), targets(train), fold)
        held_out = (
            scorer.predict(reader.read(checked.texts, checked.columns))
            if len(checked)
            else np.zeros((0, out_of_fold.shape[1]))
        )
    except ValueError as error:
        raise PredictorError(f"predictor {name!r}: {error}") from error
    # Out-of-fold and held-out scores together, in the order of the table.
    calibrating = chosen | held_back
    both, is_train = found.take(calibrating), chosen[calibrating]
    scores = np.empty((len(both), out_of_fold.shape[1]))
    scores[is_train], scores[~is_train] = out_of_fold, held_out
    published = Given(columns, needed=False)
    published.fit(both.texts, both.columns)
    heads = fit_heads(both, np.concatenate([scores, published.read(both.texts, both.columns)], 1))
    # What has no text is told apart by its columns alone.
    seen = {_fingerprint(text): row for text, row in zip(train.texts, out_of_fold, strict=True) if normalised(text)}
    facts = {
        "train_questions": len(train),
        "left_out": int(((found.split == SPLITS.index("train")) & ~chosen).sum()),
        "validation_questions": len(checked),
        "predicted": {
            score: float(np.corrcoef(out_of_fold[:, at], targets(train)[:, at])[0, 1])
            if out_of_fold[:, at].std() > 0
            else 0.0
            for at, score in enumerate(SCORES)
        },
    }
    return Predictor(
        name, found.menu, found.tiers, tuple(columns), reader, scorer, heads, seen, published, None, found.unit, facts
    )


def _fingerprint(text: str) -> str:
    """Short hash of a text as :func:`roi_env.sources.texts.normalised` sees it."""
    return hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).hexdigest()[:20]
