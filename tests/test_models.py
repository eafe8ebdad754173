"""The whole path on a real model: record, the paper's exams, fine-tuning on the table, its report, exams.

``make test-models MODEL=FOLDER``: a Hugging Face directory or id, SmolLM2-135M-Instruct for a start. Minutes; not part of CI, which runs the same on tiny
random models (``tests/experiments/commands/test_real_models.py``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real_path import whole_path


@pytest.mark.skipif("ROI_MODEL" not in os.environ, reason="names no model: make test-models MODEL=FOLDER")
def test_a_real_model_goes_the_whole_path(tmp_path: Path) -> None:
    whole_path(os.environ["ROI_MODEL"], tmp_path, tiers=(64, 128, 256), questions=12)
