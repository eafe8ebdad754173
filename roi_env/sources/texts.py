"""When two question texts are the same text."""

from __future__ import annotations

import re
import unicodedata

# \, \; \: \! \> and backslash-space, \quad and its kin, ~ : LaTeX's ways to write space.
_LATEX_SPACE = re.compile(
    r"(?<!\\)(?:\\[,;:!> ]|\\(?:q?quad|enspace|thinspace|medspace|thickspace|negthinspace|enskip)(?![A-Za-z])|~)"
)
_LOOSE_SPACE = re.compile(r"(?<!\w) | (?!\w)")
_SIGNS = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "–": "-", "—": "-", "−": "-", "⁄": "/", "∕": "/"}
)
_MARKS = {"<super>": "^", "<sub>": "_", "<fraction>": " "}
_PLACEHOLDERS = frozenset({"n/a", "na", "nan", "none", "null", "unknown"})


def normalised(text: str) -> str:
    """The text that stands for all that differ from it in spelling alone: equal results, one question.

    * Unicode: compatibility forms are one (NFKC: composed and decomposed accents, full width, ligatures, no-break
      spaces), typographic quotes and dashes are the plain ones, invisible characters (zero width, byte order mark) go.
      Raised and lowered characters keep their place: x² is x^2, not x2.
    * Case does not count.
    * White space: LaTeX's commands for space are space (``{,}`` is the comma without one); runs of it are one; it counts
      only between two letters or digits: ``x + 1`` is ``x+1``, but ``1 2`` is not ``12``.

    Everything else counts, signs and punctuation included. Texts that say nothing (no letter or digit, ``n/a``, ``none``,
    ``null``, ``nan``, ``unknown``) become "".
    """
    if not text.isascii():
        text = _one_form(text)
    text = " ".join(_LATEX_SPACE.sub(" ", text.replace("{,}", ",")).casefold().split())
    text = _LOOSE_SPACE.sub("", text)
    return "" if text in _PLACEHOLDERS or not any(map(str.isalnum, text)) else text


def _one_form(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFC", text).translate(_MARKED)).translate(_SIGNS)


class _Marked(dict[int, str]):
    """Code point -> what keeps its place under NFKC, found when first asked for."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.decomposition(character).partition(" ")[0]
        self[code] = "" if unicodedata.category(character) == "Cf" else _MARKS.get(kind, "") + character
        return self[code]


_MARKED = _Marked()
