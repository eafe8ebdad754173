"""Prompts, tags and the strict parser: the only place that knows what a completion looks like.

A completion is ``thought </think> <answer> answer </answer>``; the prompt has opened the think block already. The parser
fails closed: whatever is not exactly that has no answer.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from roi_env.answering.answers import boxes

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
END = "<|end|>"
"""Ends every turn."""
NUM_LEVELS = 4
"""Level-0, 1, 2 announce tiers, Level-3 the refusal."""
LEVEL_OPENING = "<predicted_level>Level-"
"""What every tag begins with; its digit follows."""
LEVEL_TAGS = tuple(f"{LEVEL_OPENING}{level}</predicted_level>" for level in range(NUM_LEVELS))
"""One token each in the vocabulary of a model that was taught them; text to others, which are read at the digit."""
REFUSED = NUM_LEVELS - 1
"""The level that refuses."""
REFUSAL = r"\boxed{NA}"
"""What follows the refusal."""

_MARKER = re.compile(r"</?think>|</?answer>|</?predicted_level>|<\|\w*\|>")
_COMPLETION = re.compile(rf"(.*?){END_THINK}\s*{ANSWER}([^\n]*?){END_ANSWER}\s*(?:{re.escape(END)})?\s*", re.DOTALL)


def state_line(remaining: int, tasks_left: int) -> str:
    """What a model is told after the question, before it announces a level: tokens and tasks left (this one included).

    The question comes first: its keys and values are computed once and serve every state in which it is asked.
    """
    return f"\nTokens left: {remaining}. Tasks left: {tasks_left}."


def levels_explained(levels: int) -> str:
    """What a model that was not taught the tags is told of them, between the question and the state line.

    :param levels: the last of them refuses.
    """
    solving = [f"{LEVEL_OPENING}{level}</predicted_level>" for level in range(levels - 1)]
    ladder = (
        f"{solving[0]} for little" if len(solving) == 1 else f"{solving[0]} for little up to {solving[-1]} for much"
    )
    return (
        "\n\nDo not answer yet. All problems share one budget of tokens. First announce how much reasoning this problem needs: "
        f"{ladder}, or {LEVEL_OPENING}{levels - 1}</predicted_level> to skip it, because it is too hard or not worth its tokens."
    )


AMPLE = (384, 1)
"""(tokens left, tasks left) where nothing is scarce: the level that a model announces there is what it thinks of a question.
Calibration is measured there, and kept there while exams teach what to do in scarcity."""


def ample(top: int) -> tuple[int, int]:
    """:data:`AMPLE`, or as much as the top level takes, where that is more.

    :param top: upper edge of the last level that solves, in tokens.
    """
    return max(AMPLE[0], top), AMPLE[1]


def ample_states(top: int) -> list[tuple[int, int]]:
    """States like :func:`ample` in which calibration is kept: several, so that it is plenty that counts and not one number."""
    left, tasks = ample(top)
    return [(left * share // 12, tasks) for share in range(10, 15)]


def exam_prompt(questions: Sequence[str], budget: int, strategy: str = "taught", boxed: bool = False) -> str:
    r"""A whole exam in one prompt.

    :param strategy: one of :data:`STRATEGIES`: what is said beyond the problems.
    :param boxed: whether answers are asked for in ``\boxed{}``, as of models that reason in the open.
    :raises ValueError: for another strategy.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {list(STRATEGIES)}, got {strategy!r}")
    lines = [f"Tokens left: {budget}. Tasks left: {len(questions)}."]
    lines += [f"Problem {number}: {text}" for number, text in enumerate(questions, 1)]
    said = (BOXED_STRATEGIES if boxed else STRATEGIES)[strategy]
    return "\n".join([*lines, *filter(None, [said])])


_BUDGET = (
    "Solve the problems above in their order. All tokens that you write, for all problems together, come out of one "
    "budget, the number of tokens left; what is written beyond it is lost.\n"
)
_FORM = (
    f"{_BUDGET}"
    f"For each problem first announce how much it will take: {LEVEL_TAGS[0]} for an answer at once, {LEVEL_TAGS[1]} for "
    f"a short thought, {LEVEL_TAGS[2]} for a long one. Then write {THINK}your thought{END_THINK}{ANSWER}the answer alone"
    f"{END_ANSWER} and go on with the next problem. A problem that is not worth its tokens is skipped by writing "
    f"{LEVEL_TAGS[REFUSED]}{REFUSAL}. Write nothing else."
)
_BOXES = (
    f"{_BUDGET}"
    "For each problem reason step by step and put its final answer within \\boxed{}, one box for every problem, then go on "
    f"with the next problem. A problem that is not worth its tokens is skipped by writing {REFUSAL} for it."
)

STRATEGIES: dict[str, str] = {
    "taught": "",
    "base": _FORM,
    "plan-and-solve": f"{_FORM}\nIn every thought first understand the problem and devise a plan to solve it; then carry out "
    "the plan step by step.",
    "least-to-most": f"{_FORM}\nIn every thought first break the problem down into simpler subproblems; then solve them one "
    "after the other, from the easiest to the problem itself.",
}
"""What an exam's prompt says after the problems. ``taught``: nothing, the model was taught the form by fine-tuning. The others
explain it, to models that follow instructions: alone, or as in Plan-and-Solve (Wang et al. 2023, arXiv 2305.04091) and
Least-to-Most (Zhou et al. 2023, arXiv 2205.10625)."""

BOXED_STRATEGIES = {
    name: said.replace(_FORM, _BOXES).replace("In every thought", "For every problem")
    for name, said in STRATEGIES.items()
}
"""The same to models that reason in the open."""


class Completion(NamedTuple):
    """What a completion says."""

    thought: str
    answer: str


def render(completion: Completion) -> str:
    """The text of a completion, without the end-of-turn token."""
    return f"{completion.thought}{END_THINK}{ANSWER}{completion.answer}{END_ANSWER}"


def parse(text: str) -> Completion | None:
    """Read a completion; None unless it has one closed think block and then one one-line answer, and nothing else.

    A think block opened in the text itself (servers repeat the prompt's) is allowed at its very start.
    """
    match = _COMPLETION.fullmatch(text.removeprefix(THINK))
    if match is None or any(_MARKER.search(part) for part in match.groups()):
        return None
    return Completion(match[1], match[2].strip())


def answer_of(text: str) -> str | None:
    """The answer of a completion, None where :func:`parse` finds none."""
    completion = parse(text)
    return None if completion is None else completion.answer


class Tagged(NamedTuple):
    """A completion that announces its level first; a refusal has no completion."""

    level: int
    completion: Completion | None


class Segment(NamedTuple):
    """Tokens ``start`` to ``stop`` of an exam's transcript: what one problem cost."""

    start: int
    stop: int


def render_tagged(tagged: Tagged) -> str:
    """The text of a tagged completion, without the end-of-turn token.

    :raises ValueError: for a refusal with a completion, or a solving level without one.
    """
    if (tagged.completion is None) != (tagged.level == REFUSED):
        raise ValueError(f"level {tagged.level} must {'not ' if tagged.level == REFUSED else ''}have a completion")
    tag = LEVEL_TAGS[tagged.level]
    return tag + (REFUSAL if tagged.completion is None else THINK + render(tagged.completion))


def parse_tagged(text: str) -> Tagged | None:
    """Read a tagged completion; None unless it is exactly one tag and what belongs to it, and nothing else.

    That is a whole completion with its think block opened after a solving level, ``\\boxed{NA}`` after the refusal.
    """
    level = next((level for level, tag in enumerate(LEVEL_TAGS) if text.startswith(tag)), None)
    if level is None:
        return None
    rest = text.removeprefix(LEVEL_TAGS[level])
    if level == REFUSED:
        return Tagged(level, None) if rest.strip().removesuffix(END).rstrip() == REFUSAL else None
    completion = parse(rest) if rest.startswith(THINK) else None
    return None if completion is None else Tagged(level, completion)


def parse_exam(text: str, problems: int) -> list[Tagged | None]:
    """Read an exam's transcript: its i-th tag begins what was written on problem i.

    None for a problem that was not reached, was cut or was not answered in exactly the form of :func:`parse_tagged`; for
    all of them where the text does not begin with a tag. What follows the last problem's answer belongs to that problem and spoils it, so does
    an end of turn before the end.
    """
    parts = re.split(f"(?={'|'.join(map(re.escape, LEVEL_TAGS))})", text)
    if parts[0].strip():
        return [None] * problems
    written = parts[1:problems]
    if len(parts) > problems:
        written.append("".join(parts[problems:]))
    last = len(written) - 1
    found = [None if END in part and i < last else parse_tagged(part) for i, part in enumerate(written)]
    return found + [None] * (problems - len(found))


def text_segments(pieces: Sequence[str], problems: int) -> list[Segment]:
    """Tokens of each problem in an exam's transcript.

    The i-th tag begins problem i, with the token in which it begins. Every token is charged to exactly one problem: what
    precedes the first tag to the first problem, everything after the last problem's tag to the last. Problems that were not
    reached have no tokens.

    :param pieces: text of every token.
    """
    ends = list(accumulate(map(len, pieces)))
    found = re.finditer("|".join(map(re.escape, LEVEL_TAGS)), "".join(pieces))
    return _charged(len(pieces), [bisect_right(ends, match.start()) for match in found][:problems], problems)


class Part(NamedTuple):
    """What an exam's transcript has on one problem.

    :param segment: its tokens.
    :param level: announced; None: nothing was.
    :param answer: None: refused, or not in the required form.
    :param finished: whether it is in the required form to its end.
    """

    segment: Segment
    level: int | None
    answer: str | None
    finished: bool


def tagged_parts(pieces: Sequence[str], problems: int) -> list[Part]:
    """What a transcript says by level tags; see :func:`parse_exam` and :func:`text_segments`.

    :param pieces: text of every token.
    """
    parts = []
    for read, segment in zip(parse_exam("".join(pieces), problems), text_segments(pieces, problems), strict=True):
        text = "".join(pieces[segment.start : segment.stop])
        level = next((level for level, tag in enumerate(LEVEL_TAGS) if text.startswith(tag)), None)
        answer = None if read is None or read.completion is None else read.completion.answer
        parts.append(Part(segment, level, answer, read is not None))
    return parts


def boxed_parts(pieces: Sequence[str], problems: int) -> list[Part]:
    r"""What a transcript says by its boxes: the i-th answers problem i, ``\boxed{NA}`` refuses it.

    The token in which a box ends is the last of its problem; what follows the last box that counts belongs to the next problem, or
    to the last of all, whose box is not taken back by further ones.

    :param pieces: text of every token.
    """
    ends = list(accumulate(map(len, pieces)))
    found = boxes("".join(pieces))[:problems]
    starts = [0, *(bisect_left(ends, end) + 1 for end, _ in found)]
    segments = _charged(len(pieces), [start for start in starts if start < len(pieces)][:problems], problems)
    parts = []
    for number, segment in enumerate(segments):
        content = found[number][1] if number < len(found) else None
        refused = content is not None and content.upper() == "NA"
        parts.append(Part(segment, REFUSED if refused else None, None if refused else content, content is not None))
    return parts


def _charged(length: int, starts: Sequence[int], problems: int) -> list[Segment]:
    edges = [0, *starts[1:], length] if starts else [0, length]
    edges += [length] * (problems + 1 - len(edges))
    return [Segment(start, stop) for start, stop in pairwise(edges)]
