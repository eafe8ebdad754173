r"""The answer that a model's text gives, whoever judges it.

Three steps. Thoughts are no part of an answer: closed blocks are left out, and of one that was never closed nothing counts.
A new turn (``Question:``, ``Q:``, a role token) ends the answer: what a model goes on to ask and answer itself is not asked.
In what is left an answer is *stated*, most plainly first: ``<answer>``, ``\boxed``, ``####``, "the answer is", bold in the last
line, the last line. Of several of one kind the last counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Reads = Callable[[str], bool]

Form = Literal["tag", "boxed", "hash", "said", "bold", "line", "none"]
"""How an answer is stated."""


class Stated(NamedTuple):
    """An answer as it stands in the text, and how it is stated. ``none``: there is no answer, ``text`` is empty."""

    text: str
    form: Form

    @property
    def alone(self) -> bool:
        """Whether the text is meant to be the answer and nothing else."""
        return self.form in ("tag", "boxed", "hash")


# Two bars may be full width (DeepSeek); a header names who speaks.
_SPEAKER = r"(?:assistant|user|system|model|human|tool)"
_MARK = re.compile(
    r"(?P<open><(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|begin_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)[^<]*<\|message\|>)"
    r"|(?P<close></(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>final[^<]*<\|message\|>)"
    rf"|(?P<turn><\|(?:im_start|start|start_header_id|start_of_role)\|>\s*{_SPEAKER}?(?:<\|end_(?:header_id|of_role)\|>)?"
    rf"|<[|｜][A-Za-z][^|｜<>\n]{{1,40}}[|｜]>|<start_of_turn>\s*{_SPEAKER}?|<end_of_turn>|</?s>|<eos>|\[/?INST\])",
    re.IGNORECASE,
)
_MAY_MARK = re.compile(r"<[/|｜A-Za-z]|\[/?[TI]")
_TURN = re.compile(
    r"\n[ \t#>*_]*(?:(?:next[ \t]+)?(?:question|problem)(?:[ \t]+\d+\.?)?|q|user|human|assistant|instruction|问题|题目)[ \t]*[*_]*[:：]"
    r"|\n[ \t]*\#{2,}[ \t]*(?:question|problem|instruction|user|human|assistant)(?:[ \t]+\d+)?[ \t]*(?=\n|$)",
    re.IGNORECASE,
)
_TAG_MARKS = re.compile(r"</?answer>", re.IGNORECASE)
_BRACES = re.compile(r"(?P<box>\\f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)
_BOX = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>\\[A-Za-z]+(?:\{[^{}]*\})*|[-+]?\d[\d.,/]*|[A-Za-z](?![A-Za-z])))"
)
_JOINS = re.compile(r"[ \t$.]*(?:,|;|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\})[ \t$,;]*(?:and\b|or\b)?[ \t$]*")
_HEADING = re.compile(
    r"(?:step|part|case|solution|conclusion|explanation|summary|verification|check|note|(?:final )?answer)\b|.*:\W*$",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"\b(?:answer|(?:correct|right|best|final)\s+(?:option|choice|result|solution))(?:\s+(?:choice|option|letter))?"
    r"(?:\s+(?:to|for|of)\s[^.\n:=]{1,80}?)?[*_]*\s*"
    r"(?:\b(?:is|are|would\s+be|should\s+be|must\s+be|will\s+be)\b|[:=：—–]|[*_]+\s*\n)[*_]*\s*(?:[:=][*_]*)?[ \t]*",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"(?:not|n't|reasonable|consistent|correct|incorrect|valid|unique|therefore|as follows)\b", re.IGNORECASE
)
_HEAD = re.compile(
    r"答案(?:是|为|：|:)\s*|^[ \t]*#+[ \t]*\**(?:the\s+)?(?:final\s+)?answer\**[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_BOLD = re.compile(r"\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*|(?<!\w)__(?=\S)([^_\n]+?)(?<=\S)__(?!\w)")
_SLANTED = re.compile(r"([*_`])(?![*_`\s])([^*`\n]*[^*_`\s])\1\W?")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|```\w*\n(.+?)```", re.DOTALL)
_EMPTY = re.compile(r"[\s$*_`#>\-=.\\\[\]()]*")
_LABEL = re.compile(r"^[*_]{2}[^*_\n]{1,60}:[*_]{2}\s*|^[*_]{2}[^*_\n]{1,60}[*_]{2}:\s*")
_BULLET = re.compile(r"^[-*+•]\s+")
_BARE = 200
"""Characters of a line that may be a whole answer."""
_WORDS = 5
"""Words of a line that, cut, may still be a whole answer."""
_TRIES = 20
"""Statements of one kind that are looked at, the last first."""
LONG = 2000
"""Characters of an answer that are read, so that the time of reading is bounded."""

WIDE = {code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)}
"""Full-width forms of ASCII, for :meth:`str.translate`."""


def turns(text: str) -> list[str]:
    """What is said turn by turn, thoughts left out; turns without a word are none."""
    text = "\n" + text  # every line begins with a line break
    marks = list(_TURN.finditer(text))
    if _MAY_MARK.search(text):
        marks = sorted([*marks, *_MARK.finditer(text)], key=re.Match.start)
    # The prompt may have opened the first thought.
    inside = next((mark.lastgroup == "close" for mark in marks if mark.lastgroup in ("open", "close")), False)
    found, place = [""], 0
    for mark in marks:
        if inside:
            inside = mark.lastgroup != "close"
            place = mark.end()
            continue
        found[-1] += text[place : mark.start()]
        place = mark.end()
        if mark.lastgroup == "open":
            inside = True
        elif mark.lastgroup == "close":
            found[-1] = ""  # so all of it was thought
        elif found[-1].strip():
            found.append("")
    if not inside:
        found[-1] += text[place:]
    return [turn for turn in found if turn.strip()]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Complete boxes that are not empty, in the order of their ends: start, end, content; those inside others as well."""
    begin = text.find("\\boxed") if "\\fbox" not in text else 0
    if begin < 0:
        return []
    found: list[tuple[int, int, str]] = []
    open_: list[tuple[int, int] | None] = []
    for mark in _BRACES.finditer(text, begin):
        if mark["box"]:
            open_.append((mark.start(), mark.end()))
        elif mark[0] == "{":
            open_.append(None)
        elif mark[0] == "}" and open_ and (begun := open_.pop()):
            found.append((begun[0], mark.end(), text[begun[1] : mark.start()]))
    found += [(mark.start(), mark.end(), mark["bare"]) for mark in _BOX.finditer(text, begin) if mark["bare"]]
    return sorted((box for box in found if box[2].strip()), key=lambda box: box[1])


def boxes(text: str) -> list[tuple[int, str]]:
    """Complete boxes that are not empty and stand in no other, in their order: where each ends, and its content."""
    found: list[tuple[int, int, str]] = []
    for box in _boxes(text):
        found = [other for other in found if other[0] < box[0]] + [box]
    return [(end, content.strip()) for _, end, content in found]


def boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed``, braces balanced or without braces; of boxes that are a list ("a and b")
    all of it. Empty boxes speak of boxes. None without one."""
    found = _boxes(text)
    if not found:
        return None
    start, _, content = found.pop()
    contents = [content]
    while found and found[-1][1] <= start and _JOINS.fullmatch(text[found[-1][1] : start]):
        start, _, content = found.pop()
        contents.append(content)
    return ", ".join(dict.fromkeys(part.strip() for part in reversed(contents)))


def stated(text: str, reads: Reads = bool) -> Stated:
    """The answer that a text gives; see the module's text.

    :param reads: whether words can be an answer of the kind that is asked for: "the answer is the sum of both" is no number,
        and what a text states less plainly counts then. A tag or a box is final.
    """
    spoken = turns(text)
    if not spoken:
        return Stated("", "none")
    first = _in_turn(spoken[0], reads)
    if first.form in ("bold", "line") and len(spoken) > 1 and not _whole(spoken[0]):
        # A preamble: it states nothing, and the turn after it may be the question said again.
        announced = spoken[0].rstrip().endswith(":")
        later = (_in_turn(turn, reads) for turn in spoken[1:])
        return next((answer for answer in later if answer.alone or (announced and answer.form == "said")), first)
    return first


def extract(text: str) -> str:
    """The text of :func:`stated`, empty where there is no answer."""
    return stated(text).text


def states_answer(text: str) -> bool:
    """Whether a text that was cut states an answer all the same.

    The last line of a cut text is where it happened to end, so it counts only where it is all that was said and too short
    for a sentence: "(B) 4 hours", "x = 5".
    """
    answer = stated(text)
    if answer.form == "line":
        return _whole(text) and len(answer.text.split()) <= _WORDS
    return answer.form != "none"


def first_line(text: str) -> str:
    """The first line of an answer that states nothing plainly: some give an answer first and explain it then."""
    spoken = turns(text)
    return spoken[0].strip().split("\n")[0].strip() if spoken else ""


def _whole(turn: str) -> bool:
    line = turn.strip()
    return "\n" not in line and len(line) <= _BARE and not line.endswith(":")


def _in_turn(turn: str, reads: Reads) -> Stated:
    if (tagged := _tagged(turn)) is not None:
        inner = boxed(tagged)
        return Stated((tagged if inner is None else inner).strip(), "tag" if inner is None else "boxed")
    if (inside := boxed(turn)) is not None:
        return Stated((boxed(inside) or inside).strip(), "boxed")
    cut = turn.lower().rfind("<answer>") > turn.lower().rfind("</answer>")
    if cut or any(not mark["bare"] and not turn[mark.end() :].lstrip().startswith("}") for mark in _BOX.finditer(turn)):
        return Stated("", "none")  # cut before its end: what is there may be half a number
    turn = _TAG_MARKS.sub("", turn)
    for part in reversed(turn.rsplit("####", _TRIES)[1:]):
        line = part.lstrip("#").strip().split("\n")[0].strip()
        if line and not _HEADING.match(line) and reads(line):
            return Stated(line, "hash")
    if said := _said(turn, reads):
        return Stated(said, "said")
    lines = [line.strip() for line in turn.splitlines() if not _EMPTY.fullmatch(line)]
    if not lines:
        return Stated("", "none")
    last = _BULLET.sub("", lines[-1]) if len(lines) > 1 else lines[-1]
    last = _LABEL.sub("", last) or last
    if slanted := _SLANTED.fullmatch(last):
        return Stated(slanted[2], "bold")
    bold = ["".join(parts) for parts in _BOLD.findall(last)[-_TRIES:]]
    return next((Stated(part, "bold") for part in reversed(bold) if reads(part)), Stated(last, "line"))


def _tagged(turn: str) -> str | None:
    """What stands in the last ``<answer>`` that is closed and not empty."""
    low = turn.lower()
    if len(low) != len(turn):
        low = turn  # a letter whose lower case is longer
    stop = low.rfind("</answer>")
    while stop >= 0:
        start = low.rfind("<answer>", 0, stop)
        if start < 0:
            return None
        if content := turn[start + len("<answer>") : low.find("</answer>", start)].strip():
            return content
        stop = low.rfind("</answer>", 0, start)
    return None


def _said(turn: str, reads: Reads) -> str | None:
    """What follows the last "the answer is", to the end of its line; a formula of several lines is whole."""
    places = [mark.end() for pattern in (_SAID, _HEAD) for mark in pattern.finditer(turn)]
    found = []
    for place in sorted(places, reverse=True)[:_TRIES]:
        rest = turn[place : place + LONG].lstrip()
        display = _DISPLAY.match(rest)
        content = next(filter(None, display.groups())) if display else rest.split("\n")[0]
        content = content.strip().removesuffix("**").strip() if content.count("**") % 2 else content.strip()
        if content and not _EMPTY.fullmatch(content) and reads(content):
            if not _ABOUT.match(content):
                return content
            found.append(content)
    return found[0] if found else None
