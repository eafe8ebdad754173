"""Logs of other tools become outcome tables: what their own formats say, row by row."""

from __future__ import annotations

import copy
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roi_env.answering.base import ThinkingTier
from roi_env.sources.importing.files import LogError
from roi_env.sources.importing.generations import Options, Report
from roi_env.sources.importing.tables import import_logs
from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError

LOGS = Path(os.environ.get("ROI_DATA", "")) / "logs"
needs_logs = pytest.mark.skipif(not os.environ.get("ROI_DATA"), reason="set ROI_DATA to the folder that holds logs/")


def load(*paths: Path, **options: Any) -> tuple[OutcomeTable, Report]:
    table, _, report = import_logs(paths, Options(**options), "table")
    return table, report


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def column(table: OutcomeTable, name: str) -> list[Any]:
    return table.rows[name].to_pylist()  # type: ignore[no-any-return]


JUNK: list[Any] = [
    None, True, -1, 3.7, float("nan"), 1e300, "", "\ud800", "[1", [], {}, [1, "a"], {"a": 1}, 10**30, "\x1b[31m",
]  # fmt: skip
"""What stands in damaged and hostile logs."""


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """All objects and lists inside a value, and their keys."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found.append((value, key))
        places(child, found)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Inspect


def sample(number: int, value: Any = "C", tokens: int = 7, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + tokens}
    return {
        "id": number,
        "epoch": 1,
        "input": f"What is {number} plus 1?",
        "target": str(number + 1),
        "scores": {"match": {"value": value}},
        "output": {"model": "m", "choices": [{"message": {"content": "It is."}}], "usage": usage},
        "model_usage": {"m": {"output_tokens": tokens + 300}},
        **more,
    }


def log(samples: list[Any], model: str = "maker/m", **more: Any) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": {"task": "org/sums", "model": model}, "samples": samples} | more


def test_tokens_of_a_sample_are_those_of_its_output_not_of_its_graders(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(log([sample(1, tokens=17), sample(2, "I", 4)])))
    table, _ = load(path)
    assert column(table, "tokens") == [17, 4]
    assert column(table, "correct") == [True, False]
    assert column(table, "counted") == ["log", "log"]
    assert column(table, "dataset") == ["sums", "sums"]


@pytest.mark.parametrize(("total", "paid"), [(5 + 70 + 30, 100), (5 + 70, 70), (None, 70)])
def test_a_thought_counted_apart_is_paid(tmp_path: Path, total: int | None, paid: int) -> None:
    one = sample(1)
    one["output"]["usage"] = {"input_tokens": 5, "output_tokens": 70, "total_tokens": total, "reasoning_tokens": 30}
    (tmp_path / "a.json").write_text(json.dumps(log([one])))
    assert column(load(tmp_path)[0], "tokens") == [paid]


def test_what_was_cached_does_not_hide_that_a_thought_is_counted_apart(tmp_path: Path) -> None:
    usage = {"input_tokens": 10, "output_tokens": 7, "reasoning_tokens": 5, "input_tokens_cache_read": 90}
    for total, paid in ((112, 12), (107, 7)):
        one = sample(1)
        one["output"]["usage"] = usage | {"total_tokens": total}
        (tmp_path / "a.json").write_text(json.dumps(log([one])))
        assert column(load(tmp_path)[0], "tokens") == [paid]


def test_encrypted_thoughts_are_no_texts_to_count(tmp_path: Path) -> None:
    thought = {"type": "reasoning", "reasoning": "gAAA" * 500, "redacted": True}
    parts = [thought, {"type": "text", "text": "It is 2."}]
    one = sample(1, output={"choices": [{"message": {"content": parts}}]}, model_usage={})
    (tmp_path / "a.json").write_text(json.dumps(log([one])))
    table, report = load(tmp_path)
    assert column(table, "tokens") == [2]
    assert any(text.startswith("HIDDEN THOUGHTS: a.json has thoughts that are encrypted") for text in report.warnings)


def test_samples_that_were_declared_invalid_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, invalidation={"reason": "leaked"}), sample(2)])))
    table, report = load(tmp_path)
    assert column(table, "question_id") == ["2"]
    assert report.dropped == {"declared invalid in the log": 1}


def test_samples_in_pieces_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("header.json", json.dumps(log([])))
        archive.writestr("samples/1_epoch_1/events/stats.json", "{}")
        archive.writestr("samples/1_epoch_1/sample.json", json.dumps(sample(1)))
    with pytest.raises(LogError, match="`inspect log convert` writes each as one"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"task_args": {"shots": 0}}, "task shots 5; task shots 0"),
        ({"solver": "brief"}, "solver long; solver brief"),
        ({"config": {"token_limit": 9}}, "nothing of it; token_limit 9"),
    ],
)
def test_runs_under_other_settings_are_no_samples_of_one(tmp_path: Path, spec: dict[str, Any], told: str) -> None:
    for name, more in (("a", {}), ("b", spec)):
        run = {"task": "sums", "model": "maker/m", "task_id": name, "task_args": {"shots": 5}, "solver": "long"} | more
        (tmp_path / f"{name}.json").write_text(json.dumps(log([sample(1, tokens=len(more))], eval=run)))
    assert any(f"differ in more than the sample (e.g. {told})" in text for text in load(tmp_path)[1].warnings)
    assert not any("differ" in text for text in load(tmp_path, columns={"tier": "{model} {file}"})[1].warnings)


def test_a_count_of_nothing_for_a_text_is_no_count(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, tokens=0), sample(2, tokens=6)])))
    table, report = load(tmp_path / "a.json")
    assert column(table, "tokens") == [2, 6]
    assert column(table, "counted") == ["estimate", "log"]
    assert "1 generations are counted as 0 tokens and have a text" in report.warnings[0]
    silent = {"output": {"choices": [], "usage": {"output_tokens": 0}}}
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1) | silent])))
    table, report = load(tmp_path / "a.json")
    assert column(table, "tokens") == [0]
    assert report.warnings == ["all generations of maker/m are counted as 0 tokens: is this the right column?"]


def test_turns_before_scoring_are_paid_and_graders_are_not(tmp_path: Path) -> None:
    def call(tokens: int) -> dict[str, Any]:
        return {"event": "model", "output": {"usage": {"output_tokens": tokens}}}

    events = [call(7), call(5), {"event": "span_begin", "type": "scorers"}, call(900)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(log([sample(1, tokens=5, events=events)])))
    assert column(load(path)[0], "tokens") == [12]


def test_one_model_at_several_efforts_is_a_menu_of_tiers(tmp_path: Path) -> None:
    for effort in ("low", "high"):
        text = json.dumps(log([sample(1, tokens=len(effort))], plan={"config": {"reasoning_effort": effort}}))
        (tmp_path / f"{effort}.json").write_text(text)
    table, _ = load(tmp_path)
    assert table.menus == ("maker/m",)
    assert table.tier_names("maker/m") == ("low", "high")


def test_samples_without_a_score_are_counted_and_copies_of_a_retried_run_are_one(tmp_path: Path) -> None:
    first = [sample(1, uuid="u1"), sample(2, uuid="u2", scores=None, error={"message": "timeout"})]
    (tmp_path / "a.json").write_text(json.dumps(log(first)))
    (tmp_path / "b.json").write_text(json.dumps(log([sample(1, uuid="u1"), sample(2, uuid="u3")])))
    table, report = load(tmp_path)
    assert sorted(column(table, "question_id")) == ["1", "2"]
    assert report.dropped["ended in an error"] == 1
    assert sum(report.dropped.values()) == 2


def test_one_run_in_both_forms_is_one_where_its_version_gave_no_uuids(tmp_path: Path) -> None:
    spec = {"task": "sums", "model": "maker/m", "task_id": "t1"}
    samples = [sample(1), sample(1, "I", epoch=2)]
    (tmp_path / "a.json").write_text(json.dumps(log(samples, eval=spec)))
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("header.json", json.dumps(log([], eval=spec)))
        for number, one in enumerate(samples):
            archive.writestr(f"samples/1_epoch_{number}.json", json.dumps(one))
    table, report = load(tmp_path)
    assert sorted(column(table, "correct")) == [False, True]
    assert sum(report.dropped.values()) == 2
    (tmp_path / "b.json").write_text(json.dumps(log(samples, eval=spec | {"task_id": "t2"})))
    assert load(tmp_path)[0].num_rows == 4  # another run


def test_calls_that_leave_no_message_are_paid_in_old_transcripts_too(tmp_path: Path) -> None:
    def call(text: str) -> dict[str, Any]:
        return {"event": "model", "output": {"choices": [{"message": {"content": text}}]}}

    events = [call("a" * 400), call("b" * 80), {"event": "step", "action": "begin", "type": "scorer"}, call("c" * 4000)]
    output = {"choices": [{"message": {"content": "b" * 80}}]}
    kept = {"transcript": {"events": events, "content": {"f" * 32: "Long?"}}, "input": f"attachment://{'f' * 32}"}
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, output=output, model_usage={}, **kept)])))
    table, _ = load(tmp_path / "a.json")
    assert column(table, "tokens") == [121]  # characters of both, and the line end between them, by 4
    assert column(table, "question") == ["Long?"]


def test_a_log_that_was_not_scored_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, scores=None), sample(2, scores=None)])))
    with pytest.raises(LogError, match=r"a\.json: no generation is left \(2 no score \(see `inspect score`\)\)"):
        load(tmp_path / "a.json")


def zip_with_zstd(path: Path, name: str, data: bytes) -> None:
    """Method 93, as Inspect writes it and Python's zipfile does not: a stored zip whose headers are patched."""
    import struct
    import zlib

    import pyarrow as pa

    packed = pa.compress(data, codec="zstd", asbytes=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, packed)
    raw = bytearray(path.read_bytes())
    old = struct.pack("<III", zlib.crc32(packed), len(packed), len(packed))
    new = struct.pack("<III", zlib.crc32(data), len(packed), len(data))
    for mark, method, sizes in ((b"PK\x03\x04", 8, 14), (b"PK\x01\x02", 10, 16)):
        at = raw.rindex(mark)
        assert raw[at + sizes : at + sizes + 12] == old
        raw[at + method : at + method + 2] = struct.pack("<H", 93)
        raw[at + sizes : at + sizes + 12] = new
    path.write_bytes(raw)


def test_zip_logs_are_read_whatever_packs_them(tmp_path: Path) -> None:
    header = {key: value for key, value in log([]).items() if key != "samples"}
    path = tmp_path / "a.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("summaries.json", "[]")
        archive.writestr("samples/1_epoch_1.json", json.dumps(sample(1)))
    zip_with_zstd(path, "samples/2_epoch_1.json", json.dumps(sample(2, "I")).encode())
    table, _ = load(path)
    assert column(table, "question_id") == ["1", "2"]
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"samples/2") + 40] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(LogError, match="truncated or damaged"):
        load(path)


def test_a_log_whose_scorer_judges_nothing_is_left_out_where_others_are_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, "left"), sample(2, "right"), sample(3, "both")])))
    with pytest.raises(LogError, match=r"a\.json: sample 1: expected a score .* got 'left'"):
        load(tmp_path)
    (tmp_path / "b.json").write_text(json.dumps(log([sample(1), sample(2, "I")])))
    table, report = load(tmp_path)
    assert table.num_rows == 2
    assert any("a.json" in text and "'left'" in text for text in report.warnings)
    (tmp_path / "b.json").write_text(json.dumps(log([sample(1), sample(2, "left")])))
    with pytest.raises(LogError, match=r"b\.json: sample 2"):  # one wrong value among judgements
        load(tmp_path)


def test_one_scorer_of_several(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    scores = {"strict": {"value": "I"}, "loose": {"value": {"x": 1, "y": 0}}}
    path.write_text(json.dumps(log([sample(1, scores=scores)])))
    assert column(load(path)[0], "correct") == [False]
    assert "loose, strict" in load(path)[1].warnings[0]
    assert column(load(path, filter="loose.x")[0], "correct") == [True]
    with pytest.raises(LogError, match=r"no scorer 'no' \(strict, loose\)"):
        load(path, filter="no")


def test_one_scorer_judges_all_samples_whatever_their_order(tmp_path: Path) -> None:
    def judged(number: int, **grades: str) -> dict[str, Any]:
        return sample(number, scores={name: {"value": grade} for name, grade in grades.items()})

    (tmp_path / "a.json").write_text(
        json.dumps(log([judged(1, a="C", b="I"), judged(2, b="I", a="C"), judged(3, b="C")]))
    )
    (tmp_path / "b.json").write_text(json.dumps(log([judged(4, b="I", a="C")])))
    table, report = load(tmp_path)
    assert column(table, "question_id") == ["1", "2", "4"]
    assert column(table, "correct") == [True] * 3
    assert report.dropped == {"no scorer 'a' (b)": 1}


def test_counts_of_turns_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    events = [{"event": "model", "output": {"usage": {"output_tokens": tokens}}} for tokens in ("12", 3)]
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1, events=events)])))
    with pytest.raises(LogError, match=r"sample 1, tokens: expected .*, got .*12"):
        load(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1) | {"output": None}])))
    with pytest.raises(LogError, match=r"no generation has tokens, or a text to count"):
        load(tmp_path)


def test_a_scored_sample_that_ended_in_an_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(log([sample(1), sample(2, "I", error={"message": "it broke"})])))
    _, report = load(tmp_path)
    assert any("1 generations have an error beside them (e.g. 'it broke')" in text for text in report.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# lm-evaluation-harness


def doc(number: int, name: str, right: float) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"question": f"Q {number}", "options": ["yes", "no"]},
        "target": f"because\n#### {number}",
        "resps": [["x" * 40]],
        "filtered_resps": ["x"],
        "filter": name,
        "metrics": ["exact_match"],
        "exact_match": right,
    }


def test_one_filter_of_several_and_the_model_from_the_results_file(tmp_path: Path) -> None:
    time = "2025-01-01T00-00-00.123456"
    rows = [doc(n, name, float(name == "loose")) for name in ("strict", "loose") for n in range(3)]
    lines(tmp_path / f"samples_gsm8k_{time}.jsonl", rows)
    results = {"results": {}, "configs": {}, "model_name": "maker/m", "config": {"gen_kwargs": "max_gen_toks=64"}}
    (tmp_path / f"results_{time}.json").write_text(json.dumps(results))
    table, report = load(tmp_path)
    assert column(table, "correct") == [False] * 3
    assert column(table, "tier") == ["maker/m"] * 3
    assert column(table, "tokens") == [10] * 3
    assert column(table, "question")[1] == "Q 1\nA. yes\nB. no"
    assert column(table, "answer") == ["0", "1", "2"]
    assert report.dropped == {"other filter of the same generation (loose)": 3}
    assert column(load(tmp_path, filter="loose")[0], "correct") == [True] * 3
    with pytest.raises(LogError, match=r"no filter or metric 'x'; filters are \['strict', 'loose'\]"):
        load(tmp_path / f"samples_gsm8k_{time}.jsonl", filter="x")


def test_runs_of_the_harness_under_other_settings_are_told_apart_or_told(tmp_path: Path) -> None:
    def run(day: int, arguments: str, shots: int, folder: str) -> None:
        time = f"2025-01-0{day}T00-00-00.123456"
        (tmp_path / folder).mkdir(exist_ok=True)
        lines(tmp_path / folder / f"samples_gsm8k_{time}.jsonl", [doc(n, "none", float(n == day)) for n in range(3)])
        results = {"results": {}, "configs": {"gsm8k": {"num_fewshot": shots}}, "config": {"model_args": arguments}}
        (tmp_path / folder / f"results_{time}.json").write_text(json.dumps(results))

    run(1, "pretrained=maker/m,enable_thinking=True", 5, "thinking")
    run(2, "pretrained=maker/m,enable_thinking=False", 5, "thinking")
    table, report = load(tmp_path / "thinking")
    assert set(column(table, "tier")) == {"enable_thinking=True", "enable_thinking=False"}
    assert not any("differ in more" in text for text in report.warnings)
    run(1, "pretrained=maker/m", 5, "shots")
    run(2, "pretrained=maker/m", 0, "shots")
    assert any("(e.g. num_fewshot 5; num_fewshot 0)" in text for text in load(tmp_path / "shots")[1].warnings)


@pytest.mark.parametrize(("right", "wrong"), [("True", "False"), ("1.0", "0.0")])
def test_judgements_that_the_harness_wrote_as_texts(tmp_path: Path, right: str, wrong: str) -> None:
    rows = [doc(n, "none", 0.0) | {"exact_match": right if n else wrong} for n in range(3)]
    assert column(load(lines(tmp_path / "a.jsonl", rows))[0], "correct") == [False, True, True]


def unnamed(number: int, **more: Any) -> dict[str, Any]:
    """A sample as versions before 0.4.6 wrote it: without the name of the filter."""
    return {
        "doc_id": number,
        "doc": {"question": f"What is {number} plus 1?"},
        "target": str(number + 1),
        "arguments": [[f"Q: {number}", {"until": ["Q:"]}]],
        "resps": [[f"It is {number}."]],
        "filtered_resps": [str(number)],
        **more,
    }


@pytest.mark.parametrize("with_results", [True, False])
def test_filters_that_old_versions_did_not_name_are_not_more_generations(tmp_path: Path, with_results: bool) -> None:
    strict = [unnamed(number, exact_match=0.0) for number in range(3)]
    flexible = [unnamed(number, exact_match=1.0) for number in range(3)]
    (tmp_path / "pretrained__org__m-1,dtype__float16_my_sums.jsonl").write_text(json.dumps(strict + flexible, indent=2))
    if with_results:
        filters = [{"name": "strict-match"}, {"name": "flexible-extract"}]
        results = {
            "results": {"my_sums": {}},
            "configs": {"my_sums": {"filter_list": filters}},
            "config": {"model": "hf", "model_args": "pretrained=org/m-1,dtype=float16"},
        }
        (tmp_path / "results.json").write_text(json.dumps(results))
    table, report = load(tmp_path)
    assert column(table, "correct") == [False] * 3
    assert sum(report.dropped.values()) == 3
    second = "flexible-extract" if with_results else "filter 2"
    assert column(load(tmp_path, filter=second)[0], "correct") == [True] * 3
    if with_results:
        assert set(column(table, "tier")) == {"org/m-1"}
        assert set(column(table, "dataset")) == {"my_sums"}


def test_samples_that_differ_are_generations_although_no_filter_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [unnamed(1, acc=1.0), unnamed(1, acc=0.0, resps=[["It is not."]])])
    assert column(load(path)[0], "correct") == [True, False]


@pytest.mark.parametrize(
    ("filtered", "scores", "made"),
    [
        (["a"], {"pass@1": [1.0]}, [(True, 5)]),  # the first of two is judged
        ([["a", "b"]], {"pass@1": [1.0, 0.0]}, [(True, 5), (False, 10)]),
        ([["a", "b"]], {"exact_match": 1.0, "exact_matches": [0, 1]}, [(False, 5), (True, 10)]),
        ([["a", "b"]], {"pass@1": 0.0, "pass@2": 0.0}, [(False, 5), (False, 10)]),
        ([["a", "b"]], {"pass@2": 1.0}, [(True, 15)]),  # of both as one answer
    ],
)
def test_several_generations_are_judged_each_or_as_one(
    tmp_path: Path, filtered: list[Any], scores: dict[str, Any], made: list[tuple[bool, int]]
) -> None:
    row = doc(0, "none", 0.0) | {"resps": [["x" * 20, "y" * 40]], "filtered_resps": filtered, "metrics": list(scores)}
    del row["exact_match"]
    table, _ = load(lines(tmp_path / "samples_t_2025-01-01T00-00-00.jsonl", [row | scores] * 2))
    assert list(zip(column(table, "correct"), column(table, "tokens"), strict=True)) == made * 2


def test_a_share_of_several_generations_is_refused(tmp_path: Path) -> None:
    row = doc(0, "none", 0.0) | {
        "resps": [["x", "y"]],
        "filtered_resps": [["x", "y"]],
        "metrics": ["pass@1"],
        "pass@1": 0.5,
    }
    with pytest.raises(
        LogError,
        match=r"line 1: pass@1 0.5 is the share of 2 generations that were right, and which of them is not told",
    ):
        load(lines(tmp_path / "samples_t_2025-01-01T00-00-00.jsonl", [row]))
    row |= {"metrics": ["em"], "em": [1, 0]}
    with pytest.raises(LogError, match=r"line 2: 'em' is a list of 3 scores, and there are 2 generations"):
        load(lines(tmp_path / "samples_t_2025-01-01T00-00-00.jsonl", [row, row | {"em": [1, 0, 1]}]))


def test_choices_by_likelihood_generate_nothing(tmp_path: Path) -> None:
    row = doc(0, "none", 1.0) | {"resps": [[["-1.5", "False"]], [["-0.5", "True"]]]}
    with pytest.raises(LogError, match="chosen by likelihood"):
        load(lines(tmp_path / "a.jsonl", [row]))


def test_aggregates_alone_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {"gsm8k": {"exact_match": 0.5}}, "configs": {}}))
    with pytest.raises(LogError, match="averages, and no answers"):
        load(path)


# ---------------------------------------------------------------------------------------------------------------------
# Others


def test_numbers_of_reasoning_gym_are_no_ids(tmp_path: Path) -> None:
    """Another seed asks another question under the same number."""
    for model, first in (("a", 0), ("b", 2)):
        results = [
            {"question": f"What is {number}?", "completions": [{"score": 1.0, "full_model_response": "x"}]}
            for number in range(first, first + 4)
        ]
        (tmp_path / f"{model}.json").write_text(json.dumps({"name": "sums", "model": model, "results": results}))
    table, report = load(tmp_path)
    assert len(set(column(table, "question_id"))) == 6
    assert not [text for text in report.warnings if "other texts" in text]


def test_a_run_of_reasoning_gym_holds_its_results_twice(tmp_path: Path) -> None:
    """All data sets in one file, and each by itself; of a run of one category the folder is named after that too."""
    run = tmp_path / "maker_m_arithmetic_20250101_000000"
    (run / "arithmetic").mkdir(parents=True)
    made = [
        {
            "name": name,
            "category": "arithmetic",
            "system_prompt": "Think.",
            "results": [
                {"question": f"{name} {n}", "completions": [{"score": 1.0, "full_model_response": "x"}] * 2}
                for n in range(3)
            ],
        }
        for name in ("sums", "products")
    ]
    for one in made:
        (run / "arithmetic" / f"{one['name']}.json").write_text(json.dumps(one))
    table, _ = load(tmp_path)
    assert (table.num_rows, set(column(table, "tier"))) == (12, {"maker/m"})
    whole = {
        "metadata": {"model": "maker/m", "max_tokens": 9},
        "categories": [{"name": "arithmetic", "datasets": made}],
    }
    (run / "results.json").write_text(json.dumps(whole))
    table, report = load(tmp_path)
    assert (table.num_rows, sum(report.dropped.values())) == (12, 12)
    run.rename(tmp_path / "first")
    other = whole | {"metadata": {"model": "maker/m", "max_tokens": 99}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    table, report = load(tmp_path / "first" / "results.json", tmp_path / "results.json")
    assert table.num_rows == 24  # another run
    for day in (1, 2):  # files of two runs beside each other
        (tmp_path / f"maker_m_2025010{day}_000000__sums.json").write_text(json.dumps(made[0] | {"day": day}))
    assert load(*tmp_path.glob("maker*.json"))[0].num_rows == 12
    assert any("(e.g. max_tokens 9; max_tokens 99)" in text for text in report.warnings)


def test_prompts_of_the_mathematics_harness_are_no_samples_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "gsm8k"
    folder.mkdir(parents=True)
    for name in ("cot_-1_seed0_t0.0_s0_e-1", "cot_-1_seed1_t0.0_s0_e-1"):
        lines(folder / f"test_{name}.jsonl", [{"question": "Q", "code": [name], "score": [True]}])
    assert not any("differ in more" in text for text in load(tmp_path)[1].warnings)
    lines(folder / "test_pal_-1_seed0_t0.0_s0_e-1.jsonl", [{"question": "Q", "code": ["y"], "score": [True]}])
    assert any("(e.g. test_cot_-1_t0.0; test_pal_-1_t0.0)" in text for text in load(tmp_path)[1].warnings)


def test_every_completion_of_reasoning_gym_is_a_generation(tmp_path: Path) -> None:
    completions = [{"full_model_response": "a" * 9, "score": 1.0}, {"full_model_response": "b", "score": 0.01}]
    results = [{"question": f"Q {n}", "expected_answer": "1", "completions": completions} for n in range(2)]
    path = tmp_path / "maker_o3-mini_20250101_000000__sums.json"
    path.write_text(json.dumps({"categories": [{"datasets": [{"name": "sums", "results": results}]}]}))
    table, report = load(path)
    assert column(table, "sample") == [0, 1, 0, 1]
    assert column(table, "correct") == [True, False, True, False]
    assert column(table, "tokens") == [3, 1, 3, 1]
    assert column(table, "tier") == ["maker/o3-mini"] * 4
    assert any(warning.startswith("HIDDEN THOUGHTS") for warning in report.warnings)
    assert column(load(path, correct_at=0.005)[0], "correct") == [True] * 4


def test_lists_of_texts_and_scores_are_samples(tmp_path: Path) -> None:
    rows = [
        {"idx": n, "question": f"Q {n}", "gt": "1", "code": ["aaaa", "bbbbb"], "score": [True, False]} for n in range(2)
    ]
    table, _ = load(lines(tmp_path / "m__set.jsonl", rows))
    assert column(table, "correct") == [True, False, True, False]
    assert column(table, "tokens") == [1, 2, 1, 2]
    assert set(column(table, "dataset")) == {"set"}
    rows[1]["score"] = [True]
    with pytest.raises(LogError, match="line 2: 2 texts in 'code' but 1 values in 'score'"):
        load(lines(tmp_path / "m__set.jsonl", rows))


def test_a_router_s_dollars_are_micro_dollars(tmp_path: Path) -> None:
    arms = {"small": {"reward": 0.5, "cost": 1.93e-05}, "big": {"reward": 0.95, "cost": 0.01}}
    table, _ = load(lines(tmp_path / "r.jsonl", [{"prompt": f"P {n}", "arms": arms} for n in range(3)]), correct_at=0.9)
    assert table.unit == "micro-usd"
    assert column(table, "tokens")[:2] == [19, 10_000]
    assert column(table, "correct")[:2] == [False, True]
    path = tmp_path / "t.parquet"
    table.write(path)
    assert OutcomeTable.read(path).unit == "micro-usd"


def test_events_of_openai_s_evals_are_joined_by_sample(tmp_path: Path) -> None:
    def event(kind: str, number: int, **data: Any) -> dict[str, Any]:
        return {"run_id": "r", "event_id": 0, "sample_id": f"s.{number}", "type": kind, "data": data, "created_by": ""}

    def sampling(number: int, **more: Any) -> dict[str, Any]:
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {number} + 1?"}]
        return event("sampling", number, prompt=prompt, sampled=["It is 2."], **more)

    spec = {"spec": {"completion_fns": ["gpt-4"], "eval_name": "sums.dev.v0", "run_id": "r"}}
    match = [event("match", n, correct=n > 0, expected=str(n + 1), picked=None, sampled="It is 2.") for n in range(3)]
    usage = {"usage": {"prompt_tokens": 9, "completion_tokens": 4}}
    rows = [
        spec,
        sampling(0),
        sampling(1, **usage),
        match[1],
        sampling(2, **usage),
        match[0],
        sampling(2, **usage),
        match[2],
    ]
    report = {"final_report": {"accuracy": 0.5}}
    table, said = load(lines(tmp_path / "a.jsonl", [*rows, sampling(7), report]))
    assert column(table, "question_id") == ["s.1", "s.0", "s.2"]
    assert column(table, "correct") == [True, False, True]
    assert column(table, "tokens") == [4, 2, 8]
    assert column(table, "counted") == ["log", "estimate", "log"]
    assert column(table, "question")[1] == "What is 0 + 1?"
    assert (set(column(table, "tier")), set(column(table, "dataset"))) == ({"gpt-4"}, {"sums.dev.v0"})
    assert said.dropped == {"no match: an answer that was not judged": 1}
    with pytest.raises(LogError, match="no events 'match'"):
        load(lines(tmp_path / "b.jsonl", [spec, sampling(0), event("metrics", 0, choice="C"), report]))


def test_journals_of_a_local_recording_keep_tiers_and_their_order(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "m", "temperature": 0.7, "seed": 0, "tiers": [["none", 0, 8], ["long", 64, 8]]}
    outcomes = [
        {"text": "a", "tokens": 3, "cut": False, "correct": False},
        {"text": "b", "tokens": 2, "cut": False, "correct": True},
    ]
    rows = [settings, *({"dataset": "d", "question_id": f"q{n}", "sample": 0, "tiers": outcomes} for n in range(2))]
    path = lines(tmp_path / "m.journal.jsonl", rows)
    path.write_text(path.read_text() + '\n{"dataset": "d", "ques')
    table, report = load(path)
    assert table.tier_names("m") == ("none", "long")
    assert column(table, "tokens") == [3, 2, 3, 2]
    caps = {name: ThinkingTier(name, *limits).most_tokens for name, *limits in settings["tiers"]}
    assert table.tier_caps == table.level_edges == {"m": caps}
    assert report.dropped == {"a line of a journal that cannot be read": 1}
    with pytest.raises(LogError, match="alone, with --grader"):
        load(lines(path, [settings | {"menu": "m"}]))


def test_data_sets_of_other_menus_are_families_of_their_own(tmp_path: Path) -> None:
    def write(model: str, dataset: str) -> None:
        lines(
            tmp_path / f"{model}__{dataset}.jsonl",
            [{"idx": 0, "question": f"Q {dataset}", "code": [model], "score": [True]}],
        )

    for model, dataset in (("a", "one"), ("b", "one"), ("a", "two"), ("c", "two")):
        write(model, dataset)
    table, _ = load(tmp_path)
    assert set(table.menus) == {"a + b", "a + c"}
    assert set(load(tmp_path, columns={"menu": "mine"})[0].menus) == {"mine"}


@needs_logs
@pytest.mark.parametrize(
    ("folder", "rows", "unit"),
    [
        ("inspect", 8, "tokens"),
        ("lm_eval", 24, "tokens"),
        ("reasoning_gym", 300, "tokens"),
        ("qwen_math_eval", 204, "tokens"),
        ("paretobandit", 7172, "micro-usd"),
    ],
)
def test_real_logs_import_whole(folder: str, rows: int, unit: str) -> None:
    table, report = load(LOGS / folder)
    assert table.num_rows == rows
    assert table.unit == unit
    assert not report.dropped


@needs_logs
def test_real_logs_with_wrong_values_are_tables_or_errors_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)

    logs = []
    for path in sorted(LOGS.rglob("*.json*")):
        first = path.read_text().splitlines()[:5] if path.suffix == ".jsonl" else [path.read_text()]
        if path.stat().st_size < 120_000 or path.suffix == ".jsonl":
            logs.append((path, [json.loads(line) for line in first]))
    made = refused = 0
    for _ in range(150):
        path, rows = copy.deepcopy(rng.choice(logs))
        holder, key = rng.choice(places(rows, [])[:300])
        holder[key] = rng.choice(JUNK)
        try:
            load(lines(tmp_path / path.name, rows))[0].write(tmp_path / "t.parquet")
            made += 1
        except (LogError, OutcomeTableError):
            refused += 1
        (tmp_path / path.name).unlink()
    assert made > 20
    assert refused > 20


# ---------------------------------------------------------------------------------------------------------------------
# HELM


def helm(folder: Path, model: str, method: str = "generation", displayed: bool = False) -> Path:
    """A run's folder: three instances, each asked once more with typing errors."""
    run = folder / f"gsm:split=test,model={model.replace('/', '_')}"
    run.mkdir(parents=True)
    adapter = {"method": method, "model": model, "temperature": 0.0}

    def stats(**values: float) -> list[dict[str, Any]]:
        return [
            {"name": {"name": name, "split": "test"}, "count": 1, "sum": value, "mean": value}
            for name, value in values.items()
        ]

    per_instance: list[Any] = []
    states, shown = [], []
    for n in range(3):
        for more in ({}, {"perturbation": {"name": "typos"}}):
            key = {"instance_id": f"id{n}", "train_trial_index": 0, **more}
            counts = stats(num_prompt_tokens=900, num_output_tokens=len(model) + n)
            per_instance += [
                key | {"stats": counts},
                key | {"stats": stats(exact_match=0, final_number_exact_match=n > 0)},
            ]
            shown.append(key | {"predicted_text": "x" * 40, "stats": {"final_number_exact_match": float(n > 0)}})
            references = [{"output": {"text": f"{n}"}, "tags": ["correct"]}]
            instance = {
                "id": f"id{n}",
                "split": "test",
                "input": {"text": f"What is {n}?"},
                "references": references,
                **more,
            }
            result = {"success": True, "cached": False, "completions": [{"text": "x" * 40}]}
            states.append({"instance": instance, "train_trial_index": 0, "request": {}, "result": result})
    for name, document in (
        ("run_spec", {"name": run.name, "adapter_spec": adapter, "scenario_spec": {}}),
        ("scenario_state", {"adapter_spec": adapter, "request_states": states}),
        ("per_instance_stats", per_instance),
        ("stats", [{"name": {"name": "exact_match"}, "count": 3, "sum": 2, "sum_squared": 2, "mean": 0.66}]),
        ("display_predictions", shown if displayed else None),
    ):
        if document is not None:
            (run / f"{name}.json").write_text(json.dumps(document, indent=2))
    return run


def test_runs_of_helm_are_read_with_the_files_beside_the_judgements(tmp_path: Path) -> None:
    helm(tmp_path, "maker/m", displayed=True)
    helm(tmp_path, "maker/larger")
    table, report = load(tmp_path)
    assert column(table, "tier") == ["maker/larger"] * 3 + ["maker/m"] * 3
    assert column(table, "tokens") == [12, 13, 14, 7, 8, 9]
    assert column(table, "correct") == [False, True, True] * 2
    assert set(column(table, "dataset")) == {"gsm:split=test"}
    assert column(table, "question")[1] == "What is 1?"
    assert column(table, "answer")[1] == "1"
    assert report.dropped == {"asked in a perturbed form (robustness, fairness): another question": 6}
    assert any("final_number_exact_match is taken" in text for text in report.warnings)
    assert column(load(tmp_path, filter="exact_match")[0], "correct") == [False] * 6


def test_what_helm_displays_is_read_alone_and_its_other_files_are_not(tmp_path: Path) -> None:
    run = helm(tmp_path, "maker/m", displayed=True)
    table, _ = load(run / "display_predictions.json")
    assert column(table, "correct") == [False, True, True]
    assert column(table, "tokens") == [10] * 3
    for name in ("scenario_state", "run_spec", "stats"):
        with pytest.raises(LogError, match=r"a HELM run that judges no answer: import the run's folder"):
            load(run / f"{name}.json")


def test_rows_of_instances_that_were_answered_are_no_file_of_helm(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "split": "test",
        "input": {"text": "Q"},
        "references": ["r"],
        "score": 1,
        "tokens": 3,
        "model": "m",
    }
    columns = {"question": "input.text", "correct": "score", "tier": "model"}
    assert column(load(lines(tmp_path / "a.jsonl", [row] * 2), columns=columns)[0], "tokens") == [3, 3]


def test_likelihoods_of_helm_generate_nothing(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"3 chosen by likelihood: nothing was generated"):
        load(helm(tmp_path, "m", method="multiple_choice_separate_original"))


# ---------------------------------------------------------------------------------------------------------------------
# lighteval


def details(folder: Path, rows: list[dict[str, Any]]) -> Path:
    time = "2025-01-01T00-00-00.123456"
    (folder / time).mkdir(parents=True)
    path = folder / time / f"details_lighteval|sums|0_{time}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def detail(n: int, texts: list[str], metric: dict[str, float], ids: list[int]) -> dict[str, Any]:
    return {
        "doc": {
            "query": f"Q{n}",
            "id": str(n),
            "choices": ["no", "yes"],
            "gold_index": [1],
            "task_name": "lighteval|sums|0",
        },
        "model_response": {"text": texts, "output_tokens": [[5] * count for count in ids], "input_tokens": [1] * 99},
        "metric": metric,
    }


def test_tokens_of_lighteval_are_counted_by_their_ids(tmp_path: Path) -> None:
    for model, more in (("m", 0), ("n", 20)):
        rows = [detail(n, ["It is so."], {"extractive_match": float(n > 1)}, [n + more]) for n in (1, 2)]
        details(tmp_path / "details" / "maker" / model, rows)
    table, _ = load(tmp_path)
    assert column(table, "tier") == ["maker/m"] * 2 + ["maker/n"] * 2
    assert column(table, "tokens") == [1, 2, 21, 22]
    assert column(table, "correct") == [False, True] * 2
    assert (set(column(table, "dataset")), set(column(table, "answer"))) == ({"sums"}, {"yes"})
    assert set(column(table, "counted")) == {"log"}


def test_averages_of_lighteval_name_their_remedy(tmp_path: Path) -> None:
    path = tmp_path / "results_1.json"
    path.write_text(json.dumps({"config_general": {}, "results": {"all": {"em": 0.5}}, "versions": {}}))
    with pytest.raises(LogError, match=r"Run lighteval with --save-details and import details_\*.parquet"):
        load(path)


def test_what_leaderboards_called_the_columns_of_lighteval(tmp_path: Path) -> None:
    row = {
        "full_prompt": "many\nQ",
        "example": "Q",
        "predictions": ["It is."],
        "cont_tokens": [[1, 2, 3]],
        "metrics": {"em": 1.0},
    }
    table, _ = load(details(tmp_path / "details_maker__m", [row, row | {"predictions": ["a"], "metrics": {"em": 0.0}}]))
    assert column(table, "tier") == ["maker/m"] * 2
    assert (column(table, "tokens"), column(table, "correct")) == ([3, 3], [True, False])
    assert column(table, "question") == ["Q", "Q"]
    likelihoods = [row | {"predictions": [-1.5]}, row | {"predictions": [-2.5]}]
    with pytest.raises(LogError, match=r"2 chosen by likelihood"):
        load(details(tmp_path / "details_maker__n", likelihoods))


def test_several_generations_of_lighteval(tmp_path: Path) -> None:
    def of(metric: dict[str, float]) -> Path:
        return details(
            tmp_path / str(len(list(tmp_path.iterdir()))) / "details_m__m", [detail(0, ["a", "b"], metric, [3, 4])] * 2
        )

    assert column(load(of({"pass@k:k=1&n=2": 1.0}))[0], "tokens") == [3, 4] * 2
    assert column(load(of({"maj@n:n=2": 1.0}))[0], "tokens") == [7] * 2
    with pytest.raises(LogError, match=r"0.5 is the share of 2 generations"):
        load(of({"pass@k:k=1&n=2": 0.5}))


def test_wrong_values_of_helm_and_lighteval_are_tables_or_errors_and_nothing_else(tmp_path: Path) -> None:
    rng, made, refused = random.Random(0), 0, 0
    for number in range(200):
        folder = tmp_path / str(number)
        if number % 2:
            changed = rng.choice(sorted(helm(folder, "m", displayed=True).glob("*.json")))
        else:
            folder.mkdir()
            rows = [detail(n, ["a", "b"], {"pass@k:k=1&n=2": 1.0, "em": 0.0}, [3, 4]) for n in range(3)]
            changed = folder / "a.json"
            changed.write_text(json.dumps(rows))
        document = json.loads(changed.read_text())
        for _ in range(rng.choice([1, 3])):
            holder, key = rng.choice(places(document, []))
            holder[key] = rng.choice(JUNK)
        changed.write_text(json.dumps(document))
        try:
            load(folder)[0].write(tmp_path / "t.parquet")
            made += 1
        except (LogError, OutcomeTableError):
            refused += 1
    assert made > 10
    assert refused > 10


def test_openai_evals_that_match_an_answer_twice_have_one_generation(tmp_path: Path) -> None:
    asked = {"prompt": "What is 1 + 1?", "sampled": "2", "usage": {"completion_tokens": 5}}
    events: list[tuple[str, dict[str, Any]]] = [
        ("sampling", asked), ("match", {"correct": True}), ("match", {"correct": False}),
        ("sampling", asked), ("match", {"correct": False}),
    ]  # fmt: skip
    found = [{"sample_id": "m.0", "type": kind, "data": data} for kind, data in events]
    table, report = load(lines(tmp_path / "a.jsonl", [{"spec": {"eval_name": "m", "completion_fns": ["g"]}}, *found]))
    assert column(table, "correct") == [True, False]
    assert column(table, "tokens") == [5, 5]
    assert report.dropped == {"another match of the same answer: the first is taken": 1}
