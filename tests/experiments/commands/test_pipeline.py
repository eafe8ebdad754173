"""From nothing to the paper's table by one command, on a model too small to be right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")

from experiments.commands import pipeline
from experiments.config import ConfigError
from tests.commands import roi, undrawn

SMALL = {
    "pretrain": ["hidden=32", "layers=1", "heads=2", "feed_forward=64", "vocabulary=400", "tokens=9000"],
    "record": ["--questions-each", "10", "--samples", "2", "--family", "prod"],
    "mcft": ["questions=8", "validation=4", "families=[prod]", "samples=1", "exams=4", "decision_exams=4"],
    "train": ["--steps", "200", "--param", "exams=16", "--param", "minibatch=8"],
    "compare": ["exams=4", "replicates=2", "budgets=[0.3]", "orders=[hard_first]", "--predictor", "none"],
}
SMALL["pretrain"] += ["batch_tokens=512", "chunk_batches=8", "families=[prod]"]
SMALL["mcft"] += ["single_epochs=1", "exam_epochs=1"]


def arguments(out: Path, **more: list[str]) -> list[str]:
    extra = [text for name, given in (SMALL | more).items() for part in given for text in (f"--{name}", part)]
    return ["llm", "pipeline", "--out", str(out), "--threads", "1", *extra]


def test_commands_are_shown_and_not_run(tmp_path: Path) -> None:
    shown = roi(*arguments(tmp_path / "run"), "--dry-run")
    assert "roi llm pretrain --out" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_nothing_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    elsewhere = pipeline._run

    def here(command: Sequence[str]) -> int:
        """A stage in this process: a process of its own needs seconds to begin."""
        roi(*command[command.index("experiments") + 1 :])
        return 0

    # The last stage, a process of its own, cannot run: what was made before is kept, and the corrected command goes on.
    monkeypatch.setattr(pipeline, "_run", lambda command: (elsewhere if "exams=none" in command else here)(command))
    assert "Stopped in the stage compare" in roi(*arguments(out, compare=["exams=none"]), code=2)
    made = {
        path: path.stat().st_mtime_ns for path in (out / "base", out / "outcomes.parquet", out / "grpo" / "agent.npz")
    }
    with undrawn():
        roi(*arguments(out))
    assert {path: path.stat().st_mtime_ns for path in made} == made
    rows = pq.read_table(out / "compare" / "summary.parquet").to_pylist()
    assert {row["label"].split()[-1] for row in rows} == {"hard_first"}
    assert any("grpo/model" in row["agent"] for row in rows)
    assert [stage["stage"] for stage in json.loads((out / "pipeline.json").read_text())] == list(SMALL)
    with pytest.raises(ConfigError, match="choose another folder"):
        roi(*arguments(out, record=["--questions-each", "12"]))
