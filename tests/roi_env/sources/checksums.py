"""Whether sources draw equal exams."""

from __future__ import annotations

import hashlib

import numpy as np

from roi_env.sources.source import Source


def checksum(source: Source) -> str:
    """Hex SHA-256 of the integer tables: equal checksums draw equal exams."""
    digest = hashlib.sha256()
    for array in source.tables:
        digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    digest.update(f"{source.num_latent} {source.coupling} {source.replacement} {source.num_tiers}".encode())
    return digest.hexdigest()
