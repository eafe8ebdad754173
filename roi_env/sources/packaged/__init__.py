"""Recorded outcomes that come with the package, by family.

``tinylm.parquet``: the small language model of ``agents/llm/models/tinylm`` on tasks of reasoning-gym, written by
``roi record agents/llm/models/tinylm --out roi_env/sources/packaged/tinylm.parquet``.

``math.parquet`` and ``paper.parquet``: Qwen2.5-Coder-0.5B-Instruct and -1.5B-Instruct (of the size of the paper's model), from weights of
about 4.5 bits, on problems of GSM8K, MATH-500 and AIME 2024 (these by id alone); ``docs/results/real-model.md`` says how they were recorded
and joined.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roi_env.sources.outcome_tables import OutcomeTable

PACKAGED = {name: Path(__file__).parent / f"{name}.parquet" for name in ("tinylm", "math", "paper")}
"""Families made of packaged tables; "paper" may have another."""
TINYLM = PACKAGED["tinylm"]
PAPER_TIERS = ("256", "512", "1024")
"""Tiers of the last two tables that are the paper's levels."""


@cache
def packaged_table(family: str) -> OutcomeTable:
    """The table of a family of :data:`PACKAGED`."""
    from roi_env.sources.outcome_tables import OutcomeTable

    return OutcomeTable.read(PACKAGED[family])


def tinylm_table() -> OutcomeTable:
    """Outcomes of the small language model; columns ``kind`` (family and visible difficulty) and ``difficulty`` besides."""
    return packaged_table("tinylm")


def math_table() -> OutcomeTable:
    """Outcomes of Qwen2.5-Coder-0.5B-Instruct; columns ``level`` and ``subject`` (of MATH-500 alone) besides."""
    return packaged_table("math")
