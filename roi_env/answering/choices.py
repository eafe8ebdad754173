"""The letters of the options that an answer chooses."""

from __future__ import annotations

import re

from roi_env.answering.answers import LONG, WIDE

_CONNECTIVE = r"(?:because|since|as|is|are|and|or|for|with|due|which|that|would|must|seems|best)\b"
_WORD = r"[^\W\u3040-\u30ff\u3400-\u9fff]"
"""A character of a word; Chinese and Japanese have no spaces between words."""
_MARK = re.compile(
    rf"(?<!{_WORD}['’])(?<!{_WORD})(?<![.\-\\])[(\[{{]*(?P<letter>[A-Za-z])(?!{_WORD}|['’]{_WORD})[)\]}}]*"
)
_NAMES = re.compile(r"\W*(?:(?:the\s+)?(?:option|choice|answer|letter)s?\b[\s:*]*(?:is\b|are\b)?\W*)?", re.IGNORECASE)
_NAMED = re.compile(
    r"(?i:\b(?:(?P<answer>answers?)|options?|choices?|letters?|pick|picks|picked|choose|chose|select|selected|go with)\b)[\s:*]*"
    r"(?i:is\b)?[\s:*]*[(\[]?(?P<letter>[A-Z](?![\w'’])|[a-z](?=\W*$))"
    r"|[(\[]?(?<![\w'’])(?P<best>[A-Z])[)\]]?\s+(?:is|must be|would be|seems)\s+(?:the\s+)?"
    r"(?:correct|right|best|most|answer|true)"
)
_REFUSED = re.compile(
    r"[)\]}]*\s+(?:(?:is|are|was|can|could|would|should|must|does|do)\s*(?:not|n't)|(?:is|are)\s+(?:also\s+|clearly\s+)?"
    r"(?:wrong|incorrect|false|out|ruled|eliminated|unlikely)|isn['’]t|can['’]t|cannot|doesn['’]t)\b"
)
_REFUSING = re.compile(
    r"(?:\b(?:not|cannot|neither|nor|eliminate|exclude|excludes|unlike|than|rule\s+out)|n['’]t)\s+(?:be\s+)?"
    r"(?:option\s+|choice\s+)?[(\[]?$|(?:不是|不选|排除)\s*[(\[]?$",
    re.IGNORECASE,
)
_RUN = re.compile(r"[A-J]{2,}")
"""Several options, one after the other."""
_JOIN = re.compile(r"[\s*.:]*(?:,?\s*\band\b|,?\s*\bor\b|和|或|、|,|;|&|/|\+)[\s*]*(?:option\s+|choice\s+)?")


def letters(text: str, *, said: bool = True) -> frozenset[str]:
    """The options that an answer chooses, in upper case; none where it chooses none.

    Letters are options where they stand alone: "A tie" and "I think" name none, "A is wrong" refuses one.

    :param said: whether the text is an answer, and not just the sentence that a text ends with: then a lower-case letter
        at its beginning is an option.
    """
    text = (text[:LONG] if said else text[-LONG:]).translate(WIDE)
    if _RUN.fullmatch(text) and list(text) == sorted(set(text)):
        return frozenset(text)
    begin = _NAMES.match(text)
    start = begin.end() if begin else 0
    # Brackets before the letter belong to its mark.
    first = _MARK.match(text, max(0, len(text[:start].rstrip("([{"))))
    if first and _leads(text, first, said) and (listed := _listed(text, first)):
        return listed
    for name in reversed(list(_NAMED.finditer(text))):
        mark = _MARK.match(text, max(name.start("letter"), name.start("best")))
        phrase = name["answer"] and mark and mark["letter"] in "AI" and not _stands(text, mark)
        if mark and not phrase and not _refused(text, mark) and (listed := _listed(text, mark)):
            return listed
    marks = [mark for mark in _MARK.finditer(text) if _stands(text, mark) and not _refused(text, mark)]
    if not marks:
        return frozenset()
    place = len(marks) - 1
    while place and _JOIN.fullmatch(text, marks[place - 1].end(), marks[place].start()):
        place -= 1
    return frozenset(mark["letter"].upper() for mark in marks[place:])


def _leads(text: str, mark: re.Match[str], said: bool) -> bool:
    if _refused(text, mark):
        return False
    if _stands(text, mark):
        return True
    rest = text[mark.end() :]
    if re.fullmatch(r"\W*", rest) or re.match(r"[).:\]](?:\s|$)", rest) or mark[0][-1] in ")]}":
        return True
    return said and re.match(rf"[,;](?:\s|$)|\s*[-–—]\s|\s+{_CONNECTIVE}", rest) is not None


def _stands(text: str, mark: re.Match[str]) -> bool:
    """Whether a letter in the middle of a sentence is an option."""
    letter, rest = mark["letter"], text[mark.end() :]
    if mark[0][0] in "([{" and mark[0][-1] in ")]}":
        return True
    if letter.islower():
        return False
    # An article or a pronoun, where a word follows.
    word = re.match(rf"\s+(?!{_CONNECTIVE})\w", rest)
    return letter not in "AI" or (word is None and not (letter == "I" and re.match(r"\s+(?:would|must)\b", rest)))


def _refused(text: str, mark: re.Match[str]) -> bool:
    return bool(_REFUSED.match(text, mark.end()) or _REFUSING.search(text[: mark.start()]))


def _listed(text: str, first: re.Match[str]) -> frozenset[str]:
    """A letter with those that a list adds to it; none where the list is asked about, or refused as a whole."""
    found, mark = [first["letter"]], first
    while joined := _JOIN.match(text, mark.end()):
        following = _MARK.match(text, joined.end())
        if following is None or not (_stands(text, following) or mark["letter"].islower()):
            break
        if _refused(text, following):
            if re.match(r"\W*are\b", text[following.end() :]):
                return frozenset()
            break
        mark = following
        found.append(mark["letter"])
    if len(found) > 1 and re.match(r"\s*\?\s*\w", text[mark.end() :]):
        return frozenset()
    return frozenset(letter.upper() for letter in found)
