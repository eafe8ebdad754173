"""The page on scale shows what the model computes from the committed measurements."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODEL = runpy.run_path(str(ROOT / "benchmarks" / "scale_model.py"))
MEASURED = json.loads(MODEL["MEASURED"].read_text(encoding="utf-8"))


def test_the_page_shows_the_tables() -> None:
    assert MODEL["report"](MEASURED) in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_stages_add_up_to_the_time_of_an_iteration() -> None:
    for nodes in (1, 10, 1000):
        found = MODEL["training"](MEASURED, nodes, learners=nodes)
        assert found.size == max(2048, 16 * nodes * 256)
        assert found.rate == pytest.approx(found.size / sum(found.stages.values()))


def test_one_node_samples_and_learns_at_the_measured_cost() -> None:
    """With exams so dear that nothing else counts, and with one learner at the size that was measured."""
    found = MODEL["training"](MEASURED, 1, exam_seconds=1e6, exams=2048)
    assert found.stages["runners"] == pytest.approx(256e6)
    assert found.stages["learner"] == pytest.approx(2048 * MEASURED["grpo"]["learning"])


def test_rollouts_grow_with_workers_until_the_driver_is_busy() -> None:
    one, two = (MODEL["rollouts"](MEASURED, nodes, "hindsight-optimisation") for nodes in (1, 2))
    assert two.rate == pytest.approx(2 * one.rate)
    far = MODEL["rollouts"](MEASURED, 1000, "hindsight-optimisation")
    assert far.limit == "driver"
    assert far.stages["driver"] > MEASURED["rollouts"]["driver_part"]["20000"]
