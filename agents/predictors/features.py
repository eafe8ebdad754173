"""What a predictor reads of a question.

A reader turns texts (and columns) into a matrix with one row a question. Readers are fitted on train questions and written as
arrays: no pickle.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
Columns = Mapping[str, Sequence[str]]

_OPERATOR = re.compile(r"[-+*/^=<>×÷]")
_LATEX = re.compile(r"\\[A-Za-z]+")
_CHOICE = re.compile(r"(?m)(?:^|\s)\(?[A-J][).:]\s")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SURFACE = (
    "characters",
    "words",
    "sentences",
    "digits",
    "numbers",
    "longest number",
    "operators",
    "LaTeX commands",
    "choices",
    "capitals",
    "question marks",
    "lines",
    "mean word length",
)


def surface(texts: Sequence[str]) -> Floats:
    """(n, 13) counts of :data:`SURFACE`, as log(1 + x) but for the mean word length."""
    rows = np.zeros((len(texts), len(SURFACE)))
    for row, text in zip(rows, texts, strict=True):
        numbers, words = _NUMBER.findall(text), text.split()
        row[:] = (
            len(text),
            len(words),
            sum(text.count(mark) for mark in ".!?"),
            sum(map(str.isdigit, text)),
            len(numbers),
            max(map(len, numbers), default=0),
            len(_OPERATOR.findall(text)),
            len(_LATEX.findall(text)) + text.count("$"),
            len(_CHOICE.findall(text)),
            sum(map(str.isupper, text)),
            text.count("?"),
            text.count("\n"),
            sum(map(len, words)) / max(len(words), 1),
        )
    rows[:, :-1] = np.log1p(rows[:, :-1])
    return rows


class Reader(ABC):
    """Texts and columns to a matrix.

    :cvar kind: its name in files.
    """

    kind: ClassVar[str]

    @abstractmethod
    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Learn vocabulary and scales from train questions."""

    @abstractmethod
    def read(self, texts: Sequence[str], columns: Columns) -> Any:
        """(n, F) dense or sparse matrix."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """What :meth:`restore` needs."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Take in what :meth:`arrays` gave."""


class Surface(Reader):
    """:func:`surface`, in standard units of the train questions."""

    kind = "surface"

    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Learn the scales."""
        found = surface(texts)
        self._mean, self._scale = found.mean(0), np.maximum(found.std(0), 1e-6)

    def read(self, texts: Sequence[str], columns: Columns) -> Floats:
        """(n, 13), cut at five standard deviations."""
        return np.clip((surface(texts) - self._mean) / self._scale, -5, 5)

    def arrays(self) -> Arrays:
        """Means and scales."""
        return {"mean": self._mean, "scale": self._scale}

    def restore(self, arrays: Arrays) -> None:
        """Means and scales."""
        self._mean, self._scale = arrays["mean"], arrays["scale"]


_TOKEN = r"\\[A-Za-z]+|[^\W\d_]+|\d|[-+*/^=<>$%?]"
"""Words, LaTeX commands, single digits, operators."""
_SMALLEST, _MOST = 2, 20_000


class Words(Reader):
    """TF-IDF of words and pairs of words (digits and operators are words), rows of length one."""

    kind = "words"

    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Learn the vocabulary: what at least two train questions have, the 20,000 most frequent."""
        self._vectorizer = self._make(None, min(_SMALLEST, len(texts)))
        try:
            self._vectorizer.fit(texts)
        except ValueError:  # nothing is left of so few texts
            self._vectorizer = self._make({"?": 0})
            self._vectorizer.fit(["?"])

    @staticmethod
    def _make(vocabulary: dict[str, int] | None, smallest: int = 1) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(
            token_pattern=_TOKEN,
            ngram_range=(1, 2),
            min_df=smallest,
            max_features=_MOST if vocabulary is None else None,
            sublinear_tf=True,
            vocabulary=vocabulary,
        )

    def read(self, texts: Sequence[str], columns: Columns) -> Any:
        """(n, V) sparse."""
        return self._vectorizer.transform(texts)

    def arrays(self) -> Arrays:
        """Vocabulary and inverse document frequencies."""
        return {
            "vocabulary": np.asarray(self._vectorizer.get_feature_names_out(), np.str_),
            "idf": self._vectorizer.idf_,
        }

    def restore(self, arrays: Arrays) -> None:
        """Vocabulary and inverse document frequencies."""
        self._vectorizer = self._make({str(word): at for at, word in enumerate(arrays["vocabulary"])})
        self._vectorizer.idf_ = arrays["idf"]


_LEAST = 5
"""Train questions that a value must have to be told apart."""
_BINS = 10


class Given(Reader):
    """Columns that people supply: one indicator a value; of numbers with many values, of tenths.

    :param names: of the columns.
    :param needed: whether questions must have them; else a missing one says nothing.
    """

    kind = "given"

    def __init__(self, names: Sequence[str] = (), needed: bool = True) -> None:
        self.names, self.needed = tuple(names), needed

    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Learn the values.

        :raises ValueError: for a column that is needed and not there.
        """
        self._values: dict[str, list[str]] = {}
        self._edges: dict[str, list[float]] = {}
        for name in self.names:
            column = self._column(columns, name)
            if column is None:
                continue
            if len(set(column)) > _BINS and (numbers := _numbers(column)) is not None:
                self._edges[name] = sorted(set(np.quantile(numbers, np.arange(1, _BINS) / _BINS).tolist()))
                column = self._binned(name, column)
            count = Counter(column)
            self._values[name] = sorted(value for value in count if count[value] >= _LEAST)

    def _column(self, columns: Columns, name: str) -> list[str] | None:
        if name in columns:
            return [_plain(value) for value in columns[name]]
        if self.needed:
            raise ValueError(
                f"there is no column {name!r} that is the same in all rows of a question; there are {sorted(columns)}"
            )
        return None

    def _binned(self, name: str, column: list[str]) -> list[str]:
        if name not in self._edges:
            return column
        numbers = _numbers(column)
        if numbers is None:
            raise ValueError(f"column {name!r} held numbers when the predictor was fitted, now it holds texts")
        return [str(at) for at in np.searchsorted(self._edges[name], numbers, side="right")]

    def read(self, texts: Sequence[str], columns: Columns) -> Floats:
        """(n, values) indicators, none for an unknown value.

        :raises ValueError: for a column that is needed and not there.
        """
        blocks = [np.zeros((len(texts), 0))]
        for name, known in self._values.items():
            column = self._column(columns, name)
            found = [] if column is None else self._binned(name, column)
            block = np.zeros((len(texts), len(known)))
            place = {value: at for at, value in enumerate(known)}
            for row, value in zip(block, found, strict=False):
                if value in place:
                    row[place[value]] = 1.0
            blocks.append(block)
        return np.concatenate(blocks, 1)

    def unknown(self, columns: Columns) -> list[str]:
        """Values of these columns that are none of those learned, as NAME=VALUE; of numbers in tenths: none."""
        return [
            f"{name}={value}"
            for name, known in self._values.items()
            if name in columns and name not in self._edges
            for value in sorted({_plain(value) for value in columns[name]} - set(known))
        ]

    def arrays(self) -> Arrays:
        """Names, values and edges, as JSON."""
        fields = {"names": self.names, "needed": self.needed, "values": self._values, "edges": self._edges}
        return {"given": np.array(json.dumps(fields))}

    def restore(self, arrays: Arrays) -> None:
        """Names, values and edges."""
        found = json.loads(str(arrays["given"]))
        self.names, self.needed = tuple(found["names"]), found["needed"]
        self._values, self._edges = found["values"], found["edges"]


def _plain(value: str) -> str:
    """A value as it reads: a table that lacks some whole numbers holds the others as 3.0."""
    whole = value.removesuffix(".0")
    return whole if whole.removeprefix("-").isdigit() else value


def _numbers(column: Sequence[str]) -> Floats | None:
    try:
        numbers = np.array([float(value) for value in column])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


class Model(Reader):
    """What a language model holds of a question.

    ``embedding``: mean of the last layer's states (any encoder, folder or hub id); ``hidden``: the last layer's state at the
    end of the question (of the answering model itself); ``levels``: log probabilities of the level tags that it announces
    (a model with level tags).

    :param how: one of the three.
    :param model: folder, hub id or a name of :func:`agents.llm.decisions.policy.model_source`.
    """

    kind = "model"

    _KEPT: ClassVar[int] = 10_000

    def __init__(self, how: str = "embedding", model: str = "") -> None:
        self.how, self.model = how, model
        self._known: dict[str, Floats] = {}

    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Learn the scales."""
        found = self._states(texts)
        self._mean, self._scale = found.mean(0), np.maximum(found.std(0), 1e-6)

    def read(self, texts: Sequence[str], columns: Columns) -> Floats:
        """(n, width), in standard units, a row's length about one."""
        found = np.clip((self._states(texts) - self._mean) / self._scale, -5, 5)
        return np.asarray(found / np.sqrt(found.shape[1]))

    def arrays(self) -> Arrays:
        """Which model and how; means and scales."""
        return {"model": np.array([self.how, self.model]), "mean": self._mean, "scale": self._scale}

    def restore(self, arrays: Arrays) -> None:
        """Which model and how; means and scales."""
        self.how, self.model = map(str, arrays["model"])
        self._mean, self._scale = arrays["mean"], arrays["scale"]

    def _states(self, texts: Sequence[str]) -> Floats:
        from agents.predictors.language import level_states, text_states

        # A text is read once, while it is among the newest: fitting and its report ask for the same ones again and again.
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            states = level_states(self.model, new) if self.how == "levels" else text_states(self.model, new, self.how)
            self._known |= dict(zip(new, states, strict=True))
        found = np.array([self._known[text] for text in texts])
        self._known = dict(list(self._known.items())[-self._KEPT :])
        return found


class Several(Reader):
    """Readers side by side, each with a weight (a heavier one is shrunk less)."""

    kind = "several"

    def __init__(self, *parts: tuple[Reader, float]) -> None:
        self.parts = list(parts)

    def fit(self, texts: Sequence[str], columns: Columns) -> None:
        """Fit all of them."""
        for reader, _ in self.parts:
            reader.fit(texts, columns)

    def read(self, texts: Sequence[str], columns: Columns) -> Any:
        """(n, sum of widths), sparse where one of them is."""
        from scipy.sparse import csr_matrix, hstack, issparse

        found = [weight * reader.read(texts, columns) for reader, weight in self.parts]
        if any(issparse(part) for part in found):
            return csr_matrix(hstack([csr_matrix(part) for part in found]))
        return np.concatenate(found, 1)

    def arrays(self) -> Arrays:
        """Theirs, with their numbers before the names."""
        found: Arrays = {
            "kinds": np.array([reader.kind for reader, _ in self.parts]),
            "weights": np.array([weight for _, weight in self.parts]),
        }
        for number, (reader, _) in enumerate(self.parts):
            found |= {f"{number}.{name}": array for name, array in reader.arrays().items()}
        return found

    def restore(self, arrays: Arrays) -> None:
        """Make them anew."""
        self.parts = []
        for number, (kind, weight) in enumerate(zip(arrays["kinds"], arrays["weights"], strict=True)):
            reader = READERS[str(kind)]()
            prefix = f"{number}."
            reader.restore(
                {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            )
            self.parts.append((reader, float(weight)))


READERS: dict[str, type[Reader]] = {one.kind: one for one in (Surface, Words, Given, Model, Several)}
"""By the name in files."""
