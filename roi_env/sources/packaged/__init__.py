"""Recorded outcomes that come with the package.

``tinylm.parquet``: the small language model of ``agents/llm/models/tinylm`` on tasks of reasoning-gym, written by
``roi record agents/llm/models/tinylm --out roi_env/sources/packaged/tinylm.parquet``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roi_env.sources.outcome_tables import OutcomeTable

TINYLM = Path(__file__).parent / "tinylm.parquet"


@cache
def tinylm_table() -> OutcomeTable:
    """Outcomes of the small language model; columns ``kind`` (family and visible difficulty) and ``difficulty`` besides."""
    from roi_env.sources.outcome_tables import OutcomeTable

    return OutcomeTable.read(TINYLM)
