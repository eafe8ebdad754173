"""When two question texts are one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roi_env.sources.texts import normalised

SAME = [
    ("What is 2 + 3?", "  what is\n2+3 ?\t"),
    ("a\r\nb", "a b"),
    ("x\u00a0=\u30001", "x = 1"),
    ("café", "cafe\u0301"),
    ("ＡＢＣ １２", "abc 12"),
    ("ﬁnd x", "find x"),
    ("STRASSE", "straße"),
    ("\ufeffWhat\u200b is x?", "What is x?"),
    ("“x” – it’s 5 − 3", '"x" - it\'s 5-3'),
    (r"$a\, b\;c\quad d\ e~f$", "$a b c d e f$"),
    (r"f(x)\!=\:x", "f(x) = x"),
    ("70{,}000", "70,000"),
    ("x² + H₂O", "x^2 + H_2O"),
    ("2½ of ¾", "2 1/2 of 3∕4"),
    ("", " n/a "),
    ("???", "NaN"),
]
DIFFERENT = [
    ("1 2", "12"),
    ("9 - 7", "9 + 7"),
    ("x²", "x2"),
    ("2⁵", "25"),
    ("3½", "31/2"),
    (r"a\\, b", "a b"),
    (r"\quadratic x", "x"),
    (r"10\,000", "10000"),
    ("Is it 1.5?", "Is it 15?"),
    ("What is 5?", "What is -5?"),
    ("a:b", "a b"),
    ("Which of these?", ""),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spelling_does_not_count(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_said_counts(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text())
def test_every_unicode_form_is_one_text(text: str) -> None:
    plain = normalised(text)
    for form in ("NFC", "NFD"):
        assert normalised(unicodedata.normalize(form, text)) == plain
    assert normalised(f" \n{text}\t") == plain
