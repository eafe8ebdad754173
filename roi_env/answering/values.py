r"""The rational number that a few words or a formula say, exact (:class:`fractions.Fraction`) and in bounded time.

``\frac{2}{7}``, ``2 3/4``, ``10^5``, ``1.5 \times 10^{-3}``, ``70{,}000``, ``$5 million``, ``45 minutes (3/4 of an hour)``, ``x = 5``,
``3 + 4 = 7 apples``: what is read is the value of an expression, with its units left out, never digits alone. What is not
a single rational number (``\sqrt{3}``, ``5x``, ``3, 4``, ``7:30``, ``\frac{13}{``) has no value.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial
from typing import Literal, NamedTuple

from roi_env.answering.answers import LONG, WIDE

_DIGITS = 4000
"""Digits of a number; Python converts no more than 4,300."""
_BITS = 1 << 14
"""Most bits of a power."""
_DEEP = 40
"""Most parentheses inside each other."""


class Value(NamedTuple):
    """A number, and how it is written.

    :param number: its value; that of ``5%`` is 5.
    :param percent: whether a percent sign follows.
    :param decimal: whether it is written with decimal places.
    """

    number: Fraction
    percent: bool = False
    decimal: bool = False


_Read = Fraction | None
"""None: no rational number, or none that is known."""


class _Broken(Exception):
    """An expression that ends before its end."""


# Spellings -------------------------------------------------------------------------------------------------------------

_FRACTIONS = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6",
    "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_CHARACTERS = WIDE | str.maketrans(
    {
        "！": " ",  # no factorial
        **dict.fromkeys("−‒﹣⁻", "-"),
        **dict.fromkeys("×✕✖⨯·⋅∙•∗", "*"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("≈≃≅∼～~", "≈"),
        **dict.fromkeys("≤≥≠＜＞>", "<"),
        **dict.fromkeys("\u00a0\u2007\u2009\u200a\u202f\u2002\u2003\u2005\u2006", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", ""),
        **dict.fromkeys("°º˚", " degrees "),
        **dict.fromkeys("£€¥₹₩₽₺₫฿¢₪₦", "¤"),
        "π": r"\pi ",
        "√": r"\sqrt ",
        "∞": r"\infty ",
        "’": "'",
    }
)
_COMMANDS = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r"\\\\", " ; "),
        (r"(?<=\d),\\[!,;: ]\s*(?=\d{3})", ","),
        (r"\\!", ""),
        (r"\\(?:[,;:> ]|(?:q?quad|thinspace|medspace|enspace)(?![A-Za-z]))", " "),
        (r"\\(?:textcolor|color)\s*\{[^{}]*\}", ""),
        (r"\\[dt]?frac\s*(?:\{\s*\\(?:text|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?\s*\}\s*){2}", " units "),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|mathstrut)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:approx|simeq|cong|sim)(?![A-Za-z])", "≈"),
        (r"\\(?:leq?|geq?|neq?|lt|gt|leqslant|geqslant)(?![A-Za-z])", "<"),
        (r"\\(?:pm|mp)(?![A-Za-z])", "±"),
        (r"\\(?:pounds|euro|textdollar|textsterling|texteuro)(?![A-Za-z])", "¤"),
        (r"\^\s*(?:\{\s*)?\\(?:circ|degree)(?![A-Za-z])(?:\s*\})?|\\degree(?![A-Za-z])", " degrees "),
        (r"\\%", "%"),
        (r"\\[$()\[\]]", " "),
        (r"\\(?:text|mathrm|textbf|textit|mathbf|mbox|textrm|mathit|operatorname|emph|textnormal|underline|bm|rm|bf)(?![A-Za-z])"
         r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r" \1 "),
        (r"\\[{}]", " "),
    )
]  # fmt: skip
"""Spellings in LaTeX."""
_PART = "(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)"
_LARGER = "years?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|dollars?|euros?|kilometers?|km|meters?|m"
_SMALLER = (
    "months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|s|inch(?:es)?|in|ounces?|oz|cents?|meters?|m|cm"
)
"""Of a measure in two units: 2 hours and 30 minutes."""
_REWRITES = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r"\{\s*,\s*\}", ","),
        (r"[$`]", " "),
        (rf"(\d)\s*(?:{_LARGER})\b[\s,]*(?:and\s+)?(\d+)\s*(?:{_SMALLER})\b", r"\1:\2"),
        (r"\|\s*-?([\d./]+)\s*\|", r"\1"),
        (rf"(?i)\b(?:half|{_PART}s?|twice|double|triple)\s+(?:of\s+)?(?=\d)|(?<=\d)\s+{_PART}s\b|‰", " < "),
        (r"(?i)(?<=\d)\s+(?:out\s+of|(?:less|more|fewer)\s+than|in(?=\s+\d+\W*$))\s+(?=\d)", ":"),
        (r"(?<=\d)['′]\s?(?=\d+\s*[\"″])", ":"),
        (r"(?<=\d)\s*%\s+of\s+(?=\d)", "/100*"),
        (r"(?i)\bsquare\s+root\s+of\s+([\d.,]*\d)", r"\\sqrt{\1}"),
        (r"(?i)(?<=[\d)])\s+(?:raised\s+)?to\s+the\s+power\s+(?:of\s+)?(?=[-\d(])", "^"),
        (r"(?<=[\d)])\s+squared\b", "^2"),
        (r"(?<=[\d)])\s+cubed\b", "^3"),
        (r"(?<=\d)\s+factorial\b", "!"),
        (r"(?<=\d)\s+plus\s+(?=\d)", "+"),
        (r"(?<=\d)\s+times\s+(?=\d)", "*"),
        (r"(?<=\d)\s+divided by\s+(?=\d)", "/"),
        (r"(?<=[\d)])\*\*(?=[-\d(])", "^"),
        (r"(?<!\b0)(?<=\d)x(?=\d)", "*"),
        (r"\^\s*\{?\s*(?:st|nd|rd|th)\b\s*\}?", " th "),
        (r"\*\*|__", " "),
        (r"(?<=\d)\s*[–—]\s*(?=\d)(?![^=]*=)", " to "),
        (r"[–—]", "-"),
        (r"(?i)\b(?:minus|negative)\s+(?=[\d.])", "-"),
        (r"(?<![\d.])(\d+)\s+and\s+(\d+\s*/\s*\d+)(?![\d/])", r"\1 \2"),
    )
]
_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""What GSM8K's worked answers, and models trained on them, write before a result: 48/2 = <<48/2=24>>24."""
_TIE = re.compile(r"(?<=\S)~")
"""A space in LaTeX; ~5 is about 5."""
_DOTS = re.compile(r"\\dot\s*\{?(\d)\}?(\d*)\s*\\dot\s*\{?(\d)\}?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\s*\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,100})\s*\}|(\d))")
_UP = re.compile("([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")


def _spelled(text: str) -> str:
    text = _TIE.sub(" ", _CALCULATOR.sub("", text))
    if not text.isascii():
        text = _ROOT.sub(_rooted, _EDGE.sub(" ", text))
        text = _UP.sub(lambda found: "^{" + found[1].translate(_RAISED) + "}", text)
        for sign, digits in _FRACTIONS.items():
            text = text.replace(sign, f" {digits}")
        text = text.translate(_CHARACTERS)
    else:
        text = text.replace("~", "≈").replace(">", "<")
    if "." in text and "\\" in text:
        text = _REPEATING.sub(_repeating, _DOTS.sub(r"\\overline{\1\2\3}", text))
    for pattern, into in [*_COMMANDS, *_REWRITES] if "\\" in text else _REWRITES:
        text = pattern.sub(into, text)
    return text


_LATEX = WIDE | str.maketrans(
    {
        **dict.fromkeys("−‒–﹣", "-"),
        **dict.fromkeys("·⋅∙", r"\cdot "),
        **{"×": r"\times ", "÷": "/", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "},
        **{"π": r"\pi ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "±": r"\pm "},
    }
)
_EDGE = re.compile(r"(?<=[\u3040-\u30ff\u3400-\u9fff])(?=[-−－]?\d)|(?<=\d)(?=[\u3040-\u30ff\u3400-\u9fff])")
"""Between a number and a word of Chinese or Japanese."""
_ROOT = re.compile(r"([√∛∜])\s*(?:\{([^{}]*)\}|\(([^()]*)\)|([\d.,]*\d|[A-Za-z]))")


def _rooted(root: re.Match[str]) -> str:
    return rf"\sqrt[{'√∛∜'.index(root[1]) + 2}]{{{root[2] or root[3] or root[4]}}}"


def in_latex(text: str) -> str:
    """Text with its characters of mathematics as LaTeX."""
    if text.isascii():
        return text
    text = _ROOT.sub(_rooted, text)
    return _UP.sub(lambda found: "^{" + found[1].translate(_RAISED) + "}", text).translate(_LATEX)


def _repeating(decimal: re.Match[str]) -> str:
    """A decimal with a repeating part as a fraction."""
    whole, start, again = decimal[1], decimal[2], decimal[3] or decimal[4]
    over = int(whole + start + again) - int(whole + start or 0)
    return f"({over}/{'9' * len(again)}{'0' * len(start)})"


# Tokens ----------------------------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str
    text: str
    glued: bool
    """No space before it."""
    end: int | None = None
    """Of an opening parenthesis: the place of the one that closes it."""


_TOKEN = re.compile(
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|(?!\d{1,3} [1-9]\d\d\s*/\s*\d{3})\d{1,3}(?:[ ']\d{3})+(?!\d)|\d{1,2}(?:,\d{2})*,\d{3}(?!\d)|\d+)(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?(?![\d])|\.\d+(?:[eE][-+]?\d+)?)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<word>[^\W\d_][\w'.]*[^\W_]|[^\W\d_])|(?P<sign>[-+*/^!%])|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<equal>=|≈)|(?P<poison>[<±:|_&])|(?P<comma>[,;])|(?P<money>¤)|(?P<other>\S)"
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_FUNCTIONS = frozenset(
    ("log", "ln", "exp", "sin", "cos", "tan", "cot", "arcsin", "arccos", "arctan", "pi", "infty", "theta", "sqrt")
)
_VARIABLES = frozenset("xyzn")
_UNITS = frozenset("mgshlLJNWVACKFdtTMBc")
"""Letters that are units where they follow a number; others are variables."""
_JOINING = frozenset({"or", "and", "to", "through"})
_CLAUSE = frozenset((
    "because", "since", "as", "which", "where", "that", "so", "with", "given", "if", "when", "for", "after", "before", "from",
))  # fmt: skip
_LEADING = frozenset((
    "about", "approximately", "approx", "roughly", "around", "nearly", "exactly", "only", "just", "simply", "equal", "equals",
    "total", "is", "are", "be", "a", "an", "the", "of", "number", "value", "usd", "eur", "gbp", "inr", "us", "rs", "dollars",
))  # fmt: skip
"""Words that may stand before a number that is the answer."""


def _tokens(text: str) -> list[_Token]:
    found, end = [], 0
    for match in _TOKEN.finditer(text):
        kind, word = str(match.lastgroup), match[0]
        if kind == "word" and re.search(r"\d", word):
            # Rs500, USD5 and US$5 are amounts, H2O and x5 are names.
            money = re.fullmatch(r"(?:Rs\.?|USD|EUR|GBP|INR|US)(\d+(?:\.\d+)?)", word)
            kind, word = ("number", money[1]) if money else ("name", word)
        found.append(_Token(kind, word, match.start() == end and end > 0))
        end = match.end()
    opened: list[int] = []
    for place, token in enumerate(found):
        if token.kind == "open":
            opened.append(place)
        elif token.kind == "close" and opened:
            at = opened.pop()
            found[at] = found[at]._replace(end=place)
    return found


def _number(text: str) -> Fraction:
    if len(text) > _DIGITS:
        raise _Broken
    head, _, power = text.lower().replace(",", "").replace(" ", "").replace("'", "").partition("e")
    if power and abs(int(power)) > _DIGITS:
        raise _Broken
    return Fraction(head) * Fraction(10) ** int(power or 0)


# Expressions -----------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one expression from a place on."""

    def __init__(self, tokens: list[_Token], place: int) -> None:
        self.tokens, self.at, self.deep = tokens, place, 0
        self.decimal = False

    def see(self, kind: str, text: str = "", ahead: int = 0) -> bool:
        at = self.at + ahead
        return at < len(self.tokens) and self.tokens[at].kind == kind and (not text or self.tokens[at].text in text)

    def glued(self, ahead: int = 0) -> bool:
        return self.at + ahead < len(self.tokens) and self.tokens[self.at + ahead].glued

    def begins(self, ahead: int = 0) -> bool:
        """Whether an operand begins here."""
        at = self.at + ahead
        if at >= len(self.tokens):
            return False
        token = self.tokens[at]
        if token.kind == "word":
            article = token.text in "aAI" and not token.glued
            return token.text in _FUNCTIONS or (len(token.text) == 1 and token.text.isascii() and not article)
        return token.kind in ("number", "open", "command")

    def computed(self) -> bool:
        """Whether the word here is computed with, as a variable is and a unit is not."""
        return self.see("sign", "+-*/", 1) and (self.see("number", ahead=2) or self.see("open", ahead=2))

    def sum(self) -> _Read:
        total = self.product()
        while self.see("sign", "+-"):
            if not self.begins(1) and not (self.see("sign", "+-", 1) and self.begins(2)):
                following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
                if self.tokens[self.at].text == "-" and following is not None and following.kind in ("word", "other"):
                    return total  # a dash
                raise _Broken
            sign = self.tokens[self.at].text
            self.at += 1
            part = self.product()
            total = _apply(total, part, lambda a, b, minus=sign == "-": a - b if minus else a + b)
        return total

    def product(self) -> _Read:
        total = self.signed()
        while True:
            if self.see("sign", "*/") or (self.see("word", "x") and self.tokens[self.at].text == "x" and self._times()):
                sign = self.tokens[self.at].text
                if not self.begins(1) and not (self.see("sign", "+-", 1) and self.begins(2)):
                    following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
                    if sign == "/" and following is not None and following.kind in ("word", "money"):
                        return total  # miles/hour
                    raise _Broken
                if sign == "/" and self.see("word", ahead=1) and self.tokens[self.at + 1].text not in _VARIABLES:
                    return total  # $5/h
                self.at += 1
                part = self.signed()
                if sign == "/" and part == 0:
                    part = None
                total = _apply(total, part, lambda a, b, over=sign == "/": a / b if over else a * b)
            elif self._follows():
                total = self._joined(total)
            else:
                return total

    def _times(self) -> bool:
        """Whether an x between two numbers is a cross."""
        return self.see("number", ahead=1) or self.see("open", "(", 1)

    def _follows(self) -> bool:
        """Whether a factor follows without a sign."""
        if self.at >= len(self.tokens):
            return False
        token = self.tokens[self.at]
        if token.kind == "open":
            return token.glued and not _is_prose(self.tokens, self.at)
        if token.kind == "word" and len(token.text) == 1:
            if "α" <= token.text <= "ω" or token.text in _VARIABLES:
                return True
            return token.text.isascii() and token.glued and (token.text not in _UNITS or self.computed())
        return token.text in _FUNCTIONS or token.kind == "command" or self._mixed()

    def _mixed(self) -> bool:
        """Whether a fraction follows an integer."""
        if self.see("command", r"\frac"):
            return True
        return bool(
            self.at
            and self.tokens[self.at - 1].kind == "number"
            and self.tokens[self.at - 1].text.isdigit()
            and all(self.see("number", ahead=ahead) and self.tokens[self.at + ahead].text.isdigit() for ahead in (0, 2))
            and self.see("sign", "/", 1)
        )

    def _joined(self, total: _Read) -> _Read:
        """The value with the factor that follows; of a proper fraction after an integer the sum."""
        whole = self.tokens[self.at - 1]
        mixed = whole.kind == "number" and whole.text.isdigit() and self._mixed()
        if not mixed:
            return _apply(total, self.power(), lambda a, b: a * b)
        if self.see("command"):
            part = self.power()
        else:
            over, under = self._atom(), Fraction(int(self.tokens[self.at + 1].text))
            self.at += 2
            part = _apply(over, under, lambda a, b: a / b) if under else None
        if part is not None and total is not None and 0 <= part < 1:
            return total + part if total >= 0 else total - part
        return _apply(total, part, lambda a, b: a * b)

    def signed(self) -> _Read:
        if self.see("sign", "+-"):
            minus = self.tokens[self.at].text == "-"
            self.at += 1
            self._deeper()
            value = self.signed()
            self.deep -= 1
            return _apply(value, Fraction(-1 if minus else 1), lambda a, b: a * b)
        return self.power()

    def power(self) -> _Read:
        base = self._atom()
        while self.see("sign", "!") and self.glued():
            self.at += 1
            whole = base is not None and base.denominator == 1 and 0 <= base <= 1000
            base = Fraction(factorial(int(base))) if base is not None and whole else None
        if self.see("sign", "^"):
            self.at += 1
            self._deeper()
            exponent = self.signed()
            self.deep -= 1
            base = _apply(base, exponent, _power)
        return base

    def _deeper(self) -> None:
        self.deep += 1
        if self.deep > _DEEP:
            raise _Broken

    def _atom(self) -> _Read:
        if self.at >= len(self.tokens):
            raise _Broken
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "number":
            self.decimal |= "." in token.text or "e-" in token.text.lower()
            return _number(token.text)
        if token.kind == "open":
            return self._group(token.text)
        if token.kind == "command" or token.text in _FUNCTIONS:
            return self._command(token.text.lstrip("\\"))
        if token.kind == "word" and len(token.text) == 1:
            return None
        raise _Broken

    def _group(self, opened: str) -> _Read:
        self._deeper()
        value = self.sum()
        self.deep -= 1
        if not self.see("close", ")]}"["([{".index(opened)]):
            raise _Broken
        self.at += 1
        return value

    def _argument(self) -> _Read:
        """A group, or as in TeX the next digit."""
        if self.see("number") and len(self.tokens[self.at].text) > 1 and self.tokens[self.at].text.isdigit():
            digits = self.tokens[self.at].text
            self.tokens[self.at] = _Token("number", digits[1:], True)
            return Fraction(int(digits[0]))
        return self._atom()

    def _command(self, name: str) -> _Read:
        self._deeper()
        value = self._applied(name)
        self.deep -= 1
        return value

    def _applied(self, name: str) -> _Read:
        if name in ("frac", "binom"):
            over, under = self._argument(), self._argument()
            if name == "frac":
                return None if under == 0 else _apply(over, under, lambda a, b: a / b)
            return _apply(over, under, _binomial)
        if name == "sqrt":
            degree: _Read = Fraction(2)
            if self.see("open", "["):
                degree = self._atom()
            return _apply(self._argument() if not self.see("sign") else self.signed(), degree, _root)
        return None


def _apply(a: _Read, b: _Read, work: object) -> _Read:
    if a is None or b is None:
        return None
    if (
        max(a.numerator.bit_length(), b.numerator.bit_length(), a.denominator.bit_length(), b.denominator.bit_length())
        > _BITS
    ):
        return None
    found: _Read = work(a, b)  # type: ignore[operator]
    return found


def _power(base: Fraction, exponent: Fraction) -> _Read:
    if exponent.denominator > 1:
        root = _root(base, Fraction(exponent.denominator))
        return _apply(root, Fraction(exponent.numerator), _power)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if (bits * abs(exponent.numerator) > _BITS and abs(base) != 1 and base) or (base == 0 and exponent <= 0):
        return None
    if abs(base) == 1:
        return Fraction(1) if base == 1 or exponent.numerator % 2 == 0 else Fraction(-1)
    return base**exponent.numerator


def _root(value: Fraction, degree: Fraction) -> _Read:
    if value < 0 or degree.denominator > 1 or not 1 <= degree <= 64 or max(value.numerator, value.denominator) >> 2048:
        return None
    parts = [_whole_root(part, int(degree)) for part in (value.numerator, value.denominator)]
    return None if parts[0] is None or parts[1] is None else Fraction(parts[0], parts[1])


def _whole_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < value else (low, middle)
    return low if low**degree == value else None


def _binomial(n: Fraction, k: Fraction) -> _Read:
    if n.denominator > 1 or k.denominator > 1 or not 0 <= k <= n <= 2000:
        return None
    return Fraction(comb(int(n), int(k)))


# Values in words -------------------------------------------------------------------------------------------------------


class _Item(NamedTuple):
    """A piece of a text: a value (None: of a kind that is no rational number), or what stands between values."""

    kind: Literal["value", "equal", "comma", "joining", "clause", "leading", "unit", "limit", "not", "stop"]
    value: Value | None = None


def _is_prose(tokens: list[_Token], place: int) -> bool:
    """Whether words stand in the parentheses that open at a place."""
    end = tokens[place].end
    if end is None:
        return False
    if end == place + 2 and tokens[place + 1].kind == "word":
        return True
    return any(
        t.kind == "equal" or (t.kind == "word" and len(t.text) > 1) for t in tokens[place + 1 : min(end, place + 50)]
    )


def _items(tokens: list[_Token]) -> list[_Item]:
    found: list[_Item] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        before = found[-1].kind if found else None
        if token.kind == "sign" and token.text == "^" and before == "unit":
            at += 1  # square metres
            at = (tokens[at].end or at) + 1 if at < len(tokens) else at
        elif token.kind == "open" and before in ("value", "unit") and _is_prose(tokens, at):
            at = (token.end or at) + 1  # said in other words
        elif before in ("value", "unit") and token.text in _UNITS and not _Reader(tokens, at).computed():
            found.append(_Item("unit"))
            at += 1
        elif _begins(tokens, at):
            at = _expression(tokens, at, found)
        else:
            at = _between(tokens, at, found)
    return found


def _begins(tokens: list[_Token], at: int) -> bool:
    token, reader = tokens[at], _Reader(tokens, at)
    if token.kind == "word" and len(token.text) == 1:
        # A variable, if it is computed with.
        operator = reader.see("sign", "+-*/^", 1) and reader.begins(2)
        return (operator and (token.text in _VARIABLES or reader.glued(1))) or (
            reader.see("open", "([", 1) and reader.glued(1)
        )
    if token.kind == "sign":
        return token.text in "+-" and (reader.begins(1) or (reader.see("sign", "+-", 1) and reader.begins(2)))
    return reader.begins()


def _expression(tokens: list[_Token], at: int, found: list[_Item]) -> int:
    """Add the value of the expression that begins at a place; where to go on."""
    reader = _Reader(tokens, at)
    try:
        number = reader.sum()
    except (_Broken, ValueError, OverflowError):
        if tokens[at].kind != "open":
            found.append(_Item("value"))
            stop = max(reader.at, at + 1)
            for place in range(at, len(tokens)):  # nor is a part of it one: \\frac{3 m}{4 s}
                if place >= stop and not (tokens[place].kind == "open" and tokens[place].glued):
                    break
                stop = max(stop, (tokens[place].end or place) + 1)
            return stop
        end = tokens[at].end
        inside = tokens[at + 1 : end]
        if end is None or (any(token.kind == "comma" for token in inside) and not _is_prose(tokens, at)):
            found.append(_Item("value"))  # cut, or several numbers
            return len(tokens) if end is None else end + 1
        return at + 1
    value = None if number is None else Value(number, decimal=reader.decimal)
    at = reader.at
    if at < len(tokens) and value is not None:
        word = tokens[at].text.lower()
        if word == "%" or word in ("percent", "pct", "percentage"):
            value, at = value._replace(percent=True), at + 1
        elif tokens[at].kind == "word" and word.rstrip("s") in _SCALES:
            value, at = value._replace(number=value.number * _SCALES[word.rstrip("s")]), at + 1
        elif tokens[at].kind == "name" and tokens[at].glued and tokens[at].text[0].lower() in _VARIABLES:
            value = None
    while at + 1 < len(tokens) and tokens[at].text in ("_", ":", "^") and tokens[at + 1].kind in ("number", "open"):
        value = None  # a base, a ratio, a time
        at = (tokens[at + 1].end or at + 1) + 1
    found.append(_Item("value", value))
    return at


def _between(tokens: list[_Token], at: int, found: list[_Item]) -> int:
    token = tokens[at]
    word = token.text.lower()
    if token.kind == "sign" and found and found[-1].kind == "unit" and token.text in "+*/" and at + 1 < len(tokens):
        if tokens[at + 1].kind in ("number", "open"):
            found.append(_Item("limit"))
        return at + 1
    if token.kind == "equal":
        found.append(_Item("equal"))
    elif word in ("not", "cannot") or word.endswith(("n't", "不是")):
        found.append(_Item("not"))
    elif token.kind == "comma":
        found.append(_Item("comma"))
    elif word in _JOINING or word == "&":
        found.append(_Item("joining"))
    elif word in _CLAUSE:
        found.append(_Item("clause"))
    elif token.text in "<±":
        found.append(_Item("limit"))
    elif token.text in ".!?:" and token.kind in ("other", "sign", "poison"):
        found.append(_Item("stop"))
    elif token.kind != "close":
        leading = token.kind == "money" or word in _LEADING or not any(map(str.isalnum, word))
        variable = (at + 1 < len(tokens) and tokens[at + 1].kind == "equal") or token.kind == "command"
        found.append(_Item("leading" if leading or variable else "unit"))
    return at + 1


class _Found(NamedTuple):
    """A value in words.

    :param value: None: no rational number.
    :param gap: kinds of what stands between it and the value before.
    :param result: whether it is what an equation comes to.
    """

    value: Value | None
    gap: tuple[str, ...]
    result: bool = False


def _values(items: list[_Item]) -> tuple[list[_Found], bool]:
    """All values, of a chain of equal ones the last; and whether something is missing at the end."""
    found: list[_Found] = []
    gap: list[str] = []
    for item in items:
        if item.kind != "value":
            if item.kind == "limit" and not gap and found:
                found[-1] = found[-1]._replace(value=None)
            gap.append(item.kind)
            continue
        if "not" in gap and set(gap[gap.index("not") + 1 :]) <= {"leading"}:
            gap = []
            continue
        limited = "limit" in gap and "unit" not in gap[len(gap) - gap[::-1].index("limit") :]
        value = None if limited else item.value
        if found and not gap:
            if value is None or found[-1].value is None or value.number != found[-1].value.number:
                found[-1] = found[-1]._replace(value=None)  # one after the other, and neither a product nor a sum
            continue
        chained = found and "equal" in gap and not {"comma", "clause", "stop", "joining"} & set(gap)
        if chained:
            found[-1] = _Found(value, found[-1].gap, True)
        else:
            found.append(_Found(value, tuple(gap)))
        gap = []
    return found, bool(gap) and gap[-1] == "equal"


@lru_cache(4096)
def value_of(text: str, *, stated: bool) -> Value | None:
    """The number that a text says.

    :param stated: whether the text is an answer, which begins with its number or is one sentence with it; else it is the
        sentence that a text ends with, whose last number counts.
    :returns: None where it says none, or several.
    """
    if len(text) > LONG:
        text = text[:LONG].rpartition(" ")[0] if stated else text[-LONG:].partition(" ")[2]
    text = _unlisted(_spelled(text))
    if found := _DECIMAL_COMMA.fullmatch(text):
        text = f"{found[1]}{found[2].translate(_GROUPS)}.{found[3]}{found[4]}"
    items = _items(_tokens(text))
    values, cut = _values(items)
    if not values or cut:
        return None
    first, last = values[0], values[-1]
    if len(values) == 1 or (len(values) == 2 and _again(first.value, last.value)):
        return first.value
    following = set(values[1].gap)
    alone = stated or not {"unit", "clause", "stop"} & {item.kind for item in items}
    if alone and "unit" not in first.gap:
        if {"clause", "stop"} & following or (
            "comma" in following and "unit" in values[1].gap[values[1].gap.index("comma") :]
        ):
            return first.value  # and then why
        if stated and values[1].gap in (("unit",), ("unit", "unit")):
            return None  # 3 hours 30 minutes
        if (
            {"joining", "comma"} & following
            and (stated or "equal" not in following)
            and ("equal" in following or values[1].gap[-1] in ("joining", "comma"))
        ):
            return None
    if not stated:
        # "4 + 4 = 8 years old 4 years from now"
        while len(values) > 1 and not values[-1].result and not {"comma", "stop"} & set(values[-1].gap):
            if not any(value.result for value in values):
                break
            values = values[:-1]
        last = values[-1]
    listed = {kind for kind in last.gap if kind != "leading"}
    if listed and listed <= {"joining", "comma"} and (stated or "joining" in listed):
        return None
    return last.value


def _again(one: Value | None, other: Value | None) -> bool:
    """Whether a number is said a second time, as 7/2 and 3.5."""
    return one is not None and other is not None and one.number == other.number and one.decimal != other.decimal


def _unlisted(text: str) -> str:
    return text[item.end() :] if (item := _ITEM.match(text)) else text


_ITEM = re.compile(r"\s*\(?(?:[A-Za-z]|\d{1,2})\)\s+(?=.*\d)")
"""A number or letter of a list, before one of its items."""
_GROUPS = str.maketrans("", "", ". ")
_DECIMAL_COMMA = re.compile(r"([^\d(\[{]*?)(\d{1,3}(?:[. ]\d{3})+|\d+),(\d{1,2})((?![\d,.])[^\d]*)")


@lru_cache(4096)
def formula(text: str) -> Value | None:
    """The number that a text is, perhaps with a unit; None where it is more than one expression, or no rational number."""
    if len(text) > LONG:
        return None
    tokens = _tokens(_unlisted(_spelled(text)))
    items = _items(tokens)
    values = [item for item in items if item.kind == "value"]
    others = [item.kind for item in items if item.kind != "value"]
    if len(values) != 1 or items[0].kind not in ("value", "leading") or not set(others) <= {"leading", "unit", "stop"}:
        return None
    if any(token.kind in ("equal", "poison", "name") for token in tokens) or others.count("unit") > 3:
        return None
    return values[0].value


def close(mine: Value, theirs: Value) -> bool:
    """Whether two numbers are the same: exactly, or a rounded decimal is the other; a percentage also as a share."""
    pairs = [(mine.number, theirs.number)]
    if mine.percent != theirs.percent:
        pairs.append((mine.number / 100, theirs.number) if mine.percent else (mine.number, theirs.number / 100))
    return any(_near(a, b, mine.decimal or theirs.decimal) for a, b in pairs)


def _near(a: Fraction, b: Fraction, decimal: bool) -> bool:
    if a == b or not decimal:
        return a == b
    # Decimal places of a third are cut somewhere; those of other numbers only by binary arithmetic.
    return abs(a - b) <= abs(b) * Fraction(1, 10**12 if _terminates(a) and _terminates(b) else 10**9)


def _terminates(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1
