"""`roi llm pretrain`, `roi record` and `roi llm report`, from nothing to the structure table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra [llm]")


from agents.llm.mcft.surface import SurfacePredictor, rulers, successes
from experiments.commands.llm import structure
from experiments.config import ConfigError
from roi_env.sources.outcome_tables import OutcomeTable
from tests.commands import roi

RECIPE = ["hidden=32", "layers=1", "heads=2", "feed_forward=64", "vocabulary=400", "tokens=9000", "batch_tokens=512"]
RECIPE += ["chunk_batches=8", "families=[prod]"]


def test_from_nothing_to_the_report(tmp_path: Path) -> None:
    model, table = tmp_path / "model", tmp_path / "tables" / "tiny.parquet"
    assert "tokens=9000" in roi("llm", "pretrain", *RECIPE, "--out", str(model), "--dry-run")
    assert not model.exists()
    assert "validation loss" in roi("llm", "pretrain", *RECIPE, "--out", str(model), "--threads", "1")
    record = ["record", str(model), "--out", str(table), "--questions-each", "10", "--samples", "2", "--family", "prod"]
    record += ["--tier", "now=0", "--tier", "think=12", "--threads", "1"]
    assert "questions x 2 samples x 2 tiers" in roi(*record, "--dry-run")
    assert not table.exists()
    roi(*record)
    made = OutcomeTable.read(table)
    assert made.pairing
    assert made.decision_cost == 1
    assert made.menus == ("model",)
    assert made.level_edges == {"model": {"now": 24, "think": 37}}
    before = table.read_bytes()
    roi(*record)
    assert table.read_bytes() == before, "a complete journal gives the same table again"
    with pytest.raises(ConfigError, match="other settings"):
        roi(*record, "--temperature", "1.0")
    output = roi("llm", "report", str(table))
    assert "surface" in output  # a narrow terminal breaks the heading "surface predictor"
    for split in ("train", "validation", "all"):
        assert "out of" in roi("llm", "report", str(table), "--split", split)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llm", "pretrain", "width=3"), "Key 'width' not in"),
        (("llm", "pretrain", "hidden=3.5"), "hidden=3.5.*Integer"),
        (("llm", "pretrain", "families=[chess]"), "families must be out of"),
        (("llm", "pretrain", "hidden=-3"), "must not be negative"),
        (("llm", "pretrain", "warmup=0"), "warmup must be above 0"),
        (("llm", "pretrain", "hidden=36", "heads=4"), "must be an even number, got 36 / 4"),
        (("llm", "pretrain", "muon_lr=nan"), "muon_lr must be a finite number"),
        (("llm", "pretrain", "hidden"), "must read name=value"),
        (("record", "nowhere", "--out", "x.csv"), "written as .parquet"),
        (("record", "nowhere", "--out", "x.parquet", "--tier", "high"), "must read NAME=TOKENS"),
        (("record", "nowhere", "--out", "x.parquet", "--tier", "a=5", "--tier", "b=2"), "growing caps"),
        (("record", "nowhere", "--out", "x.parquet", "--family", "chess"), "unknown kind"),
        (("record", "nowhere", "--out", "x.parquet", "--split", "some"), "--split must be"),
        (("llm", "report", "x.parquet", "--split", "some"), "--split must be"),
        (("mcft", "nowhere", "--out", "x", "samples=0"), "samples must be at least 1"),
        (("mcft", "nowhere", "--out", "x", "smaples=3"), "Key 'smaples' not in"),
        (("mcft", "nowhere", "--out", "x", "families=[chess]"), "families must be out of"),
        (("llm", "mcft-report", "nowhere", "--table", "x.parquet"), "not a model directory of `roi mcft`"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        roi(*arguments)


SINGLE_PASS = ["--mode", "single-pass"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "signal"], "'llm-grpo' reads questions, and these exams show none"),
        (["--family", "paper"], "'llm-grpo' reads questions, and 1 of these exams' have no text"),
        (["--no-preview"], "these exams show none: it needs .* preview on"),
        ([*SINGLE_PASS, "--no-preview"], "'rarl' reads questions, and these exams show none"),
        ([*SINGLE_PASS, "--reward", "refusal_bonus(0.1)"], "asks what other tiers would have given"),
        ([*SINGLE_PASS, "--param", "grader=nosuch"], "unknown grader 'nosuch'"),
    ],
)
def test_a_language_model_is_not_trained_on_exams_that_it_cannot_take(
    options: list[str], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra [rllib]")
    with pytest.raises(ConfigError, match=message):
        roi("train", "grpo", "--policy", "llm", *options, "--num-tasks", "3", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def synthetic(questions: int, hidden: bool) -> OutcomeTable:
    """Sums that are right at tier 2; at tier 1 the even ones (not to be seen) or the short ones."""
    import pyarrow as pa

    rows = []
    for number in range(questions):
        terms = 2 + number % 5
        text = " + ".join(str(10 + (number * 7 + i) % 90) for i in range(terms))
        easy = number * 7919 % 97 % 2 == 0 if hidden else terms < 4
        for order, tier in enumerate(("low", "high"), 1):
            for sample in range(4):
                rows.append(
                    {
                        "dataset": "sums", "question_id": f"q{number}", "question": text, "answer": "x", "menu": "m",
                        "tier": tier, "tier_order": order, "tokens": 5 * order + sample, "sample": sample,
                        "correct": order == 2 or easy, "difficulty": terms,
                    }
                )  # fmt: skip
    return OutcomeTable.from_arrow(pa.Table.from_pylist(rows))


def test_the_surface_predictor_sees_length_and_not_what_is_hidden() -> None:
    for hidden in (False, True):
        table = synthetic(600, hidden)
        (found,) = rulers(successes(table.split("train")), successes(table.split("test")))
        if hidden:
            assert found.gain - 3 * found.gain_error > 0.05, "own samples know what the look does not"
        else:
            assert found.surface < 0.05
            assert found.gain < 0.05
        assert abs(found.surface - found.own - found.gain) < 1e-9
    success = SurfacePredictor(successes(synthetic(600, False))).success(["sums", "sums"], ["11 + 12", "1" * 40])
    assert success.shape == (2, 2)
    assert success[0].min() > 0.9
    assert ((success >= 0) & (success <= 1)).all()


def test_from_a_model_to_what_its_tags_know(tmp_path: Path) -> None:
    model, table, tuned = tmp_path / "model", tmp_path / "tiny.parquet", tmp_path / "tuned"
    roi("llm", "pretrain", *RECIPE, "--out", str(model), "--threads", "1")
    asked = [
        "--questions-each",
        "60",
        "--samples",
        "2",
        "--family",
        "prod",
        "--threads",
        "1",
        "--tier",
        "answer=0",
        "--tier",
        "short=6",
    ]
    record = ["record", str(model), *asked, "--tier", "long=12"]
    roi(*record, "--out", str(table))
    roi(*record, "--out", str(tmp_path / "other.parquet"), "--split", "test", "--temperature", "0.1", "--name", "cold")
    cold = OutcomeTable.read(tmp_path / "other.parquet")
    fewer = cold.rows.filter(pc.not_equal(cold.rows["question_id"], cold.rows["question_id"][0]))
    dataclasses.replace(cold, rows=fewer).write(tmp_path / "other.parquet")
    fine_tune = [
        "mcft",
        str(model),
        "--out",
        str(tuned),
        "--threads",
        "1",
        "families=[prod]",
        "questions=12",
        "samples=2",
    ]
    fine_tune += [
        "validation=12",
        "tiers.short=6",
        "tiers.long=12",
        "single_epochs=1",
        "exam_epochs=1",
        "exams=4",
        "decision_exams=4",
    ]
    assert "12 training" in roi(*fine_tune, "--dry-run")
    assert not tuned.exists()
    assert "accuracy without tags at long" in roi(*fine_tune)
    assert "accuracy without tags at long" in roi(*fine_tune), "finished work is shown again"
    with pytest.raises(ConfigError, match="another model, table or recipe"):
        roi(*fine_tune, "lr=0.1")
    report = [
        "llm",
        "mcft-report",
        str(tuned),
        "--table",
        str(table),
        "--threads",
        "1",
        "--out",
        str(tmp_path / "figures"),
    ]
    controls = ["--hidden", str(tuned), "--column", "difficulty"]
    assert "surface" in roi(*report, "--other", str(tmp_path / "other.parquet"), *controls)
    found = json.loads((tmp_path / "figures" / "self-knowledge.json").read_text())
    assert found["questions"] == found["questions_of_both"] + 1
    assert {"tags", "surface", "shares", "hidden", "given", "given_interval", "own", "other"} <= found.keys()
    assert [row["task"] for row in found["against_surface"]] == ["prod", "all"]
    with pytest.raises(ConfigError, match="no column 'mood'"):
        roi(*report, "--column", "mood")
    with pytest.raises(ConfigError, match="all of its questions are in"):
        roi(*report, "--without", str(table))
    assert (tmp_path / "figures" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_structure_counts_as_by_hand() -> None:
    table = synthetic(100, False)
    rows = {row["difficulty"]: row for row in structure(successes(table))}
    assert sorted(rows) == [2, 3, 4, 5, 6]
    assert sum(row["questions"] for row in rows.values()) == 100
    assert rows[2]["right"] == [1.0, 1.0]
    assert rows[6]["right"] == [0.0, 1.0]
    np.testing.assert_allclose(rows[2]["tokens"], [6.5, 11.5])
    np.testing.assert_allclose(rows[2]["spread"], [np.std(range(4))] * 2)
    assert rows[2]["out_of_reach"] == 0
