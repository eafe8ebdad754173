"""Whether recorded tokens can hold what was generated: a thought that nobody counted makes dear tiers look cheap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from roi_env.sources.table_files import is_text, own_name

_THOUGHT = ("reasoning", "reasoning_content", "thinking", "thought", "thoughts", "chain_of_thought", "cot")
_VISIBLE = (
    "text", "response", "output", "completion", "generation", "generated_text", "model_output", "model_response",
    "content", "prediction", "full_text", "raw_output", "answer_text",
)  # fmt: skip
COUNTED_THOUGHTS = (
    "reasoning_tokens", "thinking_tokens", "thought_tokens", "output_tokens_reasoning", "thoughts_tokens", "thoughts_token_count",
    "reasoning_token_count", "tokens_reasoning", "reasoningtokens", "thoughtstokencount",
)  # fmt: skip
"""Names of counts of the thought's tokens."""
_THINKS = re.compile(r"(?<![a-z0-9])(reason\w*|think\w*|thought\w*|effort|r1|o[134]|qwq|magistral)(?![a-z0-9])")
_DOES_NOT = re.compile(r"(?<![a-z])(non?|none|off|without|disabled|instant)(?![a-z])|no_?think|non_?think")
_SHORT = 32
"""Tokens that a thought exceeds, where there is no text to compare with."""
_CHARACTERS = 1.5
"""Characters a token: text of fewer a token does not occur, so that more tokens than this hold more than the text."""


def hidden_thoughts(rows: pa.Table, tier: npt.NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """Messages about tokens of a table of one menu that cannot hold what was generated.

    * Tokens below those that a column counts for the thought alone.
    * Tokens below the words of the recorded text and thought: a token holds a word at most.
    * A tier or model that is said to think, without a thought in its texts, whose tokens are those of its text alone; or,
      without texts, fewer than any thought has.

    :param tier: (rows,) number of every row's tier.
    :param names: of the tiers.
    """
    tokens = rows["tokens"].to_numpy()
    columns = {own_name(name): name for name in rows.column_names}
    found = []
    for name in COUNTED_THOUGHTS:
        counted = _numbers(rows[columns[name]]) if name in columns else None
        if counted is not None and (few := int((counted > tokens).sum())):
            found.append(f"{few} generations have fewer tokens than {columns[name]!r}: tokens must include the thought")
    visible, thought = _text(rows, columns, _VISIBLE), _text(rows, columns, _THOUGHT)
    if visible is not None or thought is not None:
        words = [_count(column, r"\S+") for column in (visible, thought) if column is not None]
        few_rows = np.flatnonzero(tokens < np.sum(words, axis=0))
        if len(words) == 2:
            # The text may begin with the thought.
            few_rows = np.array(
                [
                    row
                    for row in few_rows
                    if tokens[row] < max(count[row] for count in words)
                    or (thought[row].as_py() or "") not in (visible[row].as_py() or "")  # type: ignore[index]
                ],
                np.int64,
            )
        if len(few_rows):
            row = few_rows[0]
            found.append(
                f"{len(few_rows)} generations have fewer tokens than their recorded text has words (row {row} of the menu: "
                f"{tokens[row]} tokens, {sum(int(count[row]) for count in words)} words): tokens must count all that was "
                "generated, the thought included"
            )
    menu = str(rows["menu"][0].as_py())
    for k, name in enumerate(names):
        mine = tier == k
        if not thinks(menu, name):
            continue
        median = float(np.median(tokens[mine]))
        if visible is None and thought is None:
            if median < _SHORT:
                found.append(
                    f"{name}: a model that thinks, with {median:.0f} tokens (median): too few for a thought; tokens must "
                    "include it"
                )
        elif thought is None or not pc.any(pc.greater(pc.utf8_length(pc.fill_null(thought, "")), 0)).as_py():
            assert visible is not None
            shown = visible.filter(pa.array(mine))
            length = float(np.median(pc.utf8_length(pc.fill_null(shown, "")).to_numpy()))
            if not pc.any(pc.match_substring(pc.fill_null(shown, ""), "think>")).as_py() and median <= max(
                length / _CHARACTERS, _SHORT
            ):
                found.append(
                    f"{name}: a model that thinks, without a thought in its texts, with the tokens of the texts alone "
                    f"({median:.0f} tokens, {length:.0f} characters, medians): the thought is hidden and not counted"
                )
    return found


def thinks(menu: str, tier: str) -> bool:
    """Whether a tier is said to think, by its name and its menu's, unless the menu is called after all its tiers."""
    plain = own_name(tier)
    menu = "" if "+" in menu else menu
    return not _DOES_NOT.search(plain) and bool(
        _THINKS.search(own_name(menu).replace("_", " ") + " " + plain.replace("_", " "))
    )


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64] | None:
    """Values, NaN where there is none; None where they are no numbers (as text, CSV's way, they are)."""
    try:
        if pa.types.is_string(column.type):
            column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
        return column.cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _text(rows: pa.Table, columns: dict[str, str], names: Sequence[str]) -> pa.ChunkedArray | None:
    """The first of these columns that holds text."""
    for name in names:
        if name in columns:
            column = rows[columns[name]]
            if is_text(column.type):
                return column.cast(pa.string())
    return None


def _count(column: pa.ChunkedArray, pattern: str) -> npt.NDArray[np.int64]:
    return pc.count_substring_regex(pc.fill_null(column, ""), pattern).to_numpy().astype(np.int64)
