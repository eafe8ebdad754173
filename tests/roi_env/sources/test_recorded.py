"""Sources of recorded outcomes: laws against hand counts, what is dropped or masked, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roi_env.envs.single import ROIReasoningEnv
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable, OutcomeTableError
from roi_env.sources.recorded import recorded_source
from roi_env.sources.source import Laws, Source, published_laws
from tests.roi_env.sources.checksums import checksum

DATA = Path(os.environ.get("ROI_DATA", "")) / "outcomes"
REAL = sorted(DATA.glob("*.parquet")) if os.environ.get("ROI_DATA") else []
TIERS = ("low", "mid", "high")

Row = dict[str, Any]


def row(question: str, tier: str, sample: int, tokens: int, correct: bool, dataset: str = "math") -> Row:
    return {
        "dataset": dataset,
        "question_id": question,
        "question": f"What is {question}?",
        "answer": "42",
        "menu": "model",
        "tier": tier,
        "tier_order": TIERS.index(tier) + 1,
        "tokens": tokens,
        "correct": correct,
        "sample": sample,
    }


def table(rows: list[Row], **changes: Any) -> OutcomeTable:
    return dataclasses.replace(OutcomeTable.from_arrow(pa.Table.from_pylist(rows), "t.parquet"), **changes)


def grid(questions: int = 40, datasets: tuple[str, ...] = ("math",), samples: int = 2) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        row(f"{d}{q}", tier, s, int(rng.integers(1, 9)) * 10**k, bool(rng.random() < (k + 1) / (4 + i)), d)
        for i, d in enumerate(datasets)
        for q in range(questions)
        for k, tier in enumerate(TIERS)
        for s in range(samples)
    ]


def counted(rows: list[Row]) -> dict[tuple[str, int], tuple[Fraction, Fraction]]:
    """(tier, tokens) -> (P(tokens), P(tokens and correct)), exactly: questions weigh the same, then their samples."""
    cells: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        cells[r["tier"], ""][f"{r['dataset']}/{r['question_id']}"].append(r)
    law: dict[tuple[str, int], list[Fraction]] = defaultdict(lambda: [Fraction(0), Fraction(0)])
    for (tier, _), questions in cells.items():
        for own in questions.values():
            for r in own:
                share = Fraction(1, len(questions) * len(own))
                entry = law[tier, max(r["tokens"], 1)]
                entry[0] += share
                entry[1] += share * r["correct"]
    return {key: (value[0], value[1]) for key, value in law.items()}


def as_dict(laws: Laws, law: int, names: tuple[str, ...]) -> dict[tuple[str, int], tuple[float, float]]:
    found = {}
    for k, name in enumerate(names):
        for cost, prob, success in zip(*laws.cell(law, k), strict=True):
            found[name, int(cost)] = (float(prob), float(success))
    return found


def check_law(laws: Laws, law: int, names: tuple[str, ...], rows: list[Row]) -> None:
    expected, found = counted(rows), as_dict(laws, law, names)
    assert found.keys() == expected.keys()
    for key, (prob, success) in expected.items():
        assert found[key] == pytest.approx((float(prob), float(success)), abs=1e-12)


def check_source(source: Source) -> None:
    """What every recorded source promises."""
    for laws in (source.published, source.beliefs):
        assert laws.num_laws == source.num_groups
        total = np.add.reduceat(np.append(laws.prob, 0.0), laws.indptr[:-1])[np.diff(laws.indptr) > 0]
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)
        for law in range(laws.num_laws):
            for k in range(laws.num_tiers):
                cost, prob, success = laws.cell(law, k)
                assert (np.diff(cost) > 0).all()
                assert (cost >= 1).all()
                assert (success >= 0).all()
                assert (success <= prob + 1e-15).all()
    np.testing.assert_array_equal(source.published.offered, source.beliefs.offered)
    again = published_laws(source.laws, source.row_item, source.row_group, source.num_groups, 1)
    np.testing.assert_array_equal(again.indptr, source.published.indptr)
    np.testing.assert_array_equal(again.cost, source.published.cost)
    np.testing.assert_allclose(again.prob, source.published.prob, rtol=1e-9)
    np.testing.assert_allclose(again.success, source.published.success, rtol=1e-9, atol=1e-15)
    assert source.outcome_count.sum() == len(source.outcomes)
    assert (np.diff(source.level_edges) > 0).all()
    assert source.group_features.shape == (source.num_groups, len(source.feature_names))
    assert source.group_features.dtype == np.float32
    assert len(set(source.group_names)) == source.num_groups
    assert sorted(source.row_given) == list(range(source.num_items))
    assert len(source.question_ids) == len(source.texts) == source.num_items
    assert not source.replacement
    assert not source.synthetic


generation = st.tuples(st.integers(0, 30), st.booleans())
question = st.fixed_dictionaries({tier: st.lists(generation, min_size=0, max_size=3) for tier in TIERS}).filter(
    lambda cells: any(cells.values())
)


@given(content=st.lists(st.tuples(st.sampled_from("ab"), question), min_size=1, max_size=12), missing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_laws_are_counted_frequencies(content: list[tuple[str, Any]], missing: bool) -> None:
    rows = [
        row(f"q{q}", tier, s, tokens, correct, dataset)
        for q, (dataset, cells) in enumerate(content)
        for tier in TIERS
        for s, (tokens, correct) in enumerate(cells[tier])
    ]
    names = tuple(tier for tier in TIERS if any(r["tier"] == tier for r in rows))
    complete = {f"q{q}" for q, (_, cells) in enumerate(content) if all(cells[tier] for tier in names)}
    if not missing and not complete:
        with pytest.raises(OutcomeTableError, match="no question that can serve"):
            recorded_source(table(rows), split="all", beliefs_split="all")
        return
    mode = "mask" if missing else "drop"
    source = recorded_source(table(rows), split="all", beliefs_split="all", missing=mode)  # type: ignore[arg-type]
    check_source(source)
    kept = [r for r in rows if missing or r["question_id"] in complete]
    assert set(source.question_ids) == {r["question_id"] for r in kept}
    for group in range(source.num_groups):
        members = {source.question_ids[item] for item in source.row_item[source.row_group == group]}
        dataset = source.group_names[group].split(" [")[0]
        check_law(source.published, group, names, [r for r in kept if r["question_id"] in members])
        own = [r for r in kept if r["dataset"] == dataset]
        offered = {names[k] for k in np.flatnonzero(source.published.offered[group])}
        check_law(source.beliefs, group, names, [r for r in own if r["tier"] in offered])
    for item, name in enumerate(source.question_ids):
        for k, tier in enumerate(names):
            cell = item * len(names) + k
            first = source.outcome_start[cell]
            packed = source.outcomes[first : first + source.outcome_count[cell]]
            own = [r for r in kept if r["question_id"] == name and r["tier"] == tier]
            assert [(int(p) >> 1, bool(p & 1)) for p in packed] == [(max(r["tokens"], 1), r["correct"]) for r in own]


def test_beliefs_come_from_the_train_split_only() -> None:
    rows = grid(60, ("math", "code"))
    full = table(rows)
    split = dict(zip(full.rows["question_id"].to_pylist(), full.split_codes(), strict=True))
    for name in SPLITS:
        source = recorded_source(full, split=name)
        check_source(source)
        assert source.name == f"t:model:{name}"
        assert {split[q] for q in source.question_ids} == {SPLITS.index(name)}
        for group, dataset in enumerate(source.group_names):
            own = [r for r in rows if r["dataset"] == dataset]
            test = [r for r in own if split[r["question_id"]] == SPLITS.index(name)]
            check_law(source.published, group, TIERS, test)
            check_law(source.beliefs, group, TIERS, [r for r in own if split[r["question_id"]] == 0])
    # Other outcomes of test questions change what is drawn, never what is believed, ranked or announced.
    changed = table([r | {"tokens": 1, "correct": True} if split[r["question_id"]] == 2 else r for r in rows])
    before, after = recorded_source(full), recorded_source(changed)
    assert checksum(before) != checksum(after)
    np.testing.assert_array_equal(before.beliefs.success, after.beliefs.success)
    np.testing.assert_array_equal(before.group_key, after.group_key)
    assert before.tiers == after.tiers


def test_rows_may_come_in_any_order() -> None:
    rows = grid(20, ("math", "code"))
    shuffled = [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]
    first, second = (recorded_source(table(r), split="all") for r in (rows, shuffled))
    position = [second.question_ids.index(q) for q in first.question_ids]
    np.testing.assert_array_equal(first.laws.success_probability, second.laws.success_probability[position])
    assert sorted(first.outcomes) == sorted(second.outcomes)


def test_groups_features_and_ranks() -> None:
    rows = grid(30, ("hard", "easy"))
    rows = [r | {"correct": r["dataset"] == "easy", "topic": "x"} for r in rows]
    source = recorded_source(table(rows))
    assert source.group_names == ("hard", "easy")
    assert source.feature_names == ("dataset=hard", "dataset=easy")
    np.testing.assert_array_equal(source.group_features, np.eye(2))
    np.testing.assert_array_equal(source.group_key, [1, 0])
    np.testing.assert_array_equal(source.group_weight, [1.0, 1.0])
    np.testing.assert_array_equal(source.row_given, np.arange(source.num_items))
    assert source.texts[0] == f"What is {source.question_ids[0]}?"
    assert recorded_source(table(rows), group_by="topic").group_names == ("x",)
    tied = recorded_source(table([r | {"correct": True} for r in rows]))
    np.testing.assert_array_equal(tied.group_key, [0, 0])


def test_strata_are_values_of_the_group_column() -> None:
    rows = grid(30, ("gsm8k", "math", "aime"))
    rows = [rows[k] for k in np.random.default_rng(2).permutation(len(rows))]
    source = recorded_source(table(rows), stratify=True)
    check_source(source)
    assert source.num_strata == 3
    for k, (a, b) in enumerate(zip(source.strata[:-1], source.strata[1:], strict=True)):
        assert set(source.row_group[a:b]) == {k}
    batch = draw_exams(exam_spec(source, num_tasks=3, budget=500, order="given"), 0, np.arange(50))
    assert (np.sort(batch.groups, axis=1) == [0, 1, 2]).all()
    loose = recorded_source(table(rows))
    order = [source.question_ids[item] for item in np.argsort(source.row_given)]
    assert order == list(loose.question_ids), "row_given is the order of the file"


def test_missing_tiers_drop_or_mask() -> None:
    rows = [r for r in grid(60, ("math", "code")) if not (r["question_id"].endswith("7") and r["tier"] == "mid")]
    dropped = recorded_source(table(rows), split="all")
    assert not any(q.endswith("7") for q in dropped.question_ids)
    assert dropped.num_groups == 2
    two = recorded_source(table(rows), split="all", tiers=["high", "low"])
    assert [tier.name for tier in two.tiers] == ["low", "high"]
    assert two.num_items == 120
    source = recorded_source(table(rows), split="all", missing="mask")
    check_source(source)
    assert source.num_items == 120
    assert source.group_names == (
        "math [low, mid, high]",
        "math [low, high]",
        "code [low, mid, high]",
        "code [low, high]",
    )
    assert source.feature_names[2:] == ("offered=low", "offered=mid", "offered=high")
    np.testing.assert_array_equal(source.group_features[1], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(source.published.offered[:2], [[1, 1, 1], [1, 0, 1]])
    assert source.group_key[0] == source.group_key[1]
    env = ROIReasoningEnv(source, num_tasks=20, budget=100_000)
    for seed in range(5):
        items = draw_exams(env.exam_spec, seed, [0]).items[0]
        _, info = env.reset(seed=seed)
        for item in items:
            offered = source.outcome_count.reshape(-1, 3)[item] > 0
            np.testing.assert_array_equal(info["action_mask"][1:].astype(bool), offered)
            _, _, terminated, _, info = env.step(int(np.flatnonzero(offered)[-1]) + 1)
        assert terminated


def test_level_edges_and_caps() -> None:
    rows = [
        row(f"q{q}", tier, 0, tokens, True)
        for q in range(10)
        for tier, tokens in zip(TIERS, (q + 1, 5, 90), strict=True)
    ]
    plain = recorded_source(table(rows), split="all", beliefs_split="all")
    # Tier 0: 9 of 10 within 9 tokens; tier 1 would end at 5, before tier 0.
    np.testing.assert_array_equal(plain.level_edges, [9, 10, 90])
    assert [tier.cap for tier in plain.tiers] == [None, None, None]
    edges = {"model": {"low": 256, "mid": 512, "high": 1024}}
    named = table(rows, level_edges=edges, tier_caps={"model": {"high": 80}})
    source = recorded_source(named, split="all", tiers=["low", "high"])
    np.testing.assert_array_equal(source.level_edges, [256, 1024])
    assert [tier.cap for tier in source.tiers] == [None, 80]
    with pytest.raises(OutcomeTableError, match="'level_edges' of menu 'model' lacks tier 'high'"):
        recorded_source(table(rows, level_edges={"model": {"low": 256, "mid": 512}}), split="all")


def test_coupling() -> None:
    rows = grid(20)
    loose = recorded_source(table(rows))
    assert (loose.coupling, loose.paired) == ("independent", False)
    with pytest.raises(ValueError, match="pairing"):
        recorded_source(table(rows), coupling="common")
    paired = table(rows, pairing=True)
    assert recorded_source(paired).coupling == "common"
    source = recorded_source(paired, coupling="independent")
    assert (source.coupling, source.paired) == ("independent", True)
    assert source.with_coupling("common").coupling == "common"
    # One sample number that differs, then one sample too few, then a masked tier that is no obstacle.
    at = next(k for k, r in enumerate(rows) if r["tier"] == "mid" and r["sample"] == 1)
    for spoilt in ([*rows[:at], rows[at] | {"sample": 9}, *rows[at + 1 :]], rows[:at] + rows[at + 1 :]):
        with pytest.raises(OutcomeTableError, match=f"same sample numbers.*'{rows[at]['question_id']}'"):
            recorded_source(table(spoilt, pairing=True), split="all")
        source = recorded_source(table(spoilt, pairing=True), split="all", coupling="independent")
        assert not source.paired
        assert recorded_source(table(spoilt, pairing=True), split="all", tiers=["low", "high"]).paired
    without = [r for r in rows if not (r["question_id"] == rows[at]["question_id"] and r["tier"] == "mid")]
    assert recorded_source(table(without, pairing=True), split="all", missing="mask").paired


def test_the_same_id_in_two_datasets_is_two_questions() -> None:
    rows = [r | {"question_id": r["question_id"][-1]} for r in grid(3, ("x", "y"))]
    source = recorded_source(table(rows), split="all", beliefs_split="all")
    assert source.num_items == 6
    assert source.question_ids == ("0", "1", "2", "0", "1", "2")


def copies(content: list[Row], number: int = 3) -> list[Row]:
    """Every question under several ids, in several spellings; the generations of an id are its own."""
    return [
        r
        | {
            "question_id": f"{r['question_id']}/{copy}",
            "question": r["question"].upper() + " " * copy,
            "tokens": r["tokens"] + copy,
        }
        for copy in range(number)
        for r in content
    ]


def test_ids_of_one_text_are_one_question_with_all_of_their_generations() -> None:
    rows = copies(grid())
    source = recorded_source(table(rows), split="all", beliefs_split="all")
    check_source(source)
    assert source.num_items == 40
    assert (source.outcome_count == 6).all()
    merged = [r | {"question_id": r["question_id"].partition("/")[0]} for r in rows]
    check_law(source.published, 0, TIERS, merged)
    batch = draw_exams(exam_spec(source, num_tasks=40, budget=0.3), 0, np.arange(50))
    texts = np.array([text.strip() for text in source.texts])[batch.items]
    assert all(len(set(exam)) == 40 for exam in texts)
    splits = {name: recorded_source(table(rows), split=name) for name in SPLITS}
    assert sum(source.num_items for source in splits.values()) == 40
    assert not set(splits["train"].texts) & set(splits["test"].texts)


def test_pairs_of_ids_of_one_text_stay_pairs() -> None:
    rows = copies(grid())
    # Samples of a tier come in another order of ids: they are paired by id and number, not by row.
    rows = [r for k in (0, 1, 2) for r in (rows if k % 2 else rows[::-1]) if r["tier"] == TIERS[k]]
    source = recorded_source(table(rows, pairing=True), split="all", beliefs_split="all")
    assert source.coupling == "common"
    # Of the first question: the ids' tokens differ by their copy's number, which every tier has in one order.
    copy = (source.outcomes[: 3 * 6].reshape(3, 6) >> 1) % 10
    assert (copy[1] == copy[2]).all()
    assert sorted(copy[1]) == [0, 0, 1, 1, 2, 2]


def test_options_that_are_shuffled_for_every_generation(caplog: pytest.LogCaptureFixture) -> None:
    """The answer belongs to the generation: exams do not need it, and no reference answer is made up."""
    plain = recorded_source(table(grid()), split="all", beliefs_split="all")
    rows = [r | {"answer": "BDA"[k % 3]} for k, r in enumerate(grid())]
    shuffled = recorded_source(dataclasses.replace(table(rows), path="shuffled"), split="all", beliefs_split="all")
    assert checksum(shuffled) == checksum(plain)
    assert (shuffled.answers, shuffled.texts) == ((), plain.texts)
    assert "shuffled: 40 questions have several values of 'answer': each belongs to its generation" in caplog.text
    # Where the text lists the options in the order of its answer, text and answer are a pair.
    rows = [r | {"question": f"{r['question']} {r['answer']}"} for r in rows]
    source = recorded_source(table(rows), split="all", beliefs_split="all")
    assert [text[-1] for text in source.texts] == list(source.answers)


def test_groups_stand_in_the_order_of_the_file_in_every_split() -> None:
    """Training and reported exams must have the same groups in the same order, however the rows are mixed."""
    for seed in range(5):
        rows = grid(60, ("x", "y", "z"))
        order = np.random.default_rng(seed).permutation(len(rows))
        mixed = table([rows[k] for k in order])
        names = {recorded_source(mixed, split=split).group_names for split in SPLITS}
        assert names == {tuple(mixed.rows["dataset"].unique().to_pylist())}


def test_a_text_in_two_groups_counts_under_the_first(caplog: pytest.LogCaptureFixture) -> None:
    rows = grid(10, ("x", "y")) + [r | {"dataset": "y"} for r in grid(3, ("x",))]
    source = recorded_source(dataclasses.replace(table(rows), path="twice"), split="all", beliefs_split="all")
    assert (source.num_items, source.group_names) == (20, ("x", "y"))
    assert np.bincount(source.row_group).tolist() == [10, 10]
    assert "twice: 3 texts stand under several ids or datasets" in caplog.text
    assert "twice: 3 questions have several values of 'dataset': they count under the first" in caplog.text


def test_what_was_inferred_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bare = OutcomeTable.from_arrow(pa.Table.from_pylist(grid()).drop_columns(["tier_order", "sample"]), "bare")
    for _ in range(2):
        recorded_source(bare)
    assert [record.getMessage()[:20] for record in caplog.records] == ["bare: no tier_order:", "bare: no sample: gen"]


def test_from_a_path_and_a_single_tier(tmp_path: Path) -> None:
    table(grid()).write(tmp_path / "t.parquet")
    source = recorded_source(tmp_path / "t.parquet", tiers="mid")
    assert [tier.name for tier in source.tiers] == ["mid"]


def test_errors_say_what_to_do() -> None:
    rows = grid(40, ("math", "code"))
    good = table(rows)
    with pytest.raises(OutcomeTableError, match="missing must be 'drop' or 'mask'"):
        recorded_source(good, missing="fill")  # type: ignore[arg-type]
    with pytest.raises(OutcomeTableError, match="split must be one of"):
        recorded_source(good, split="dev")  # type: ignore[arg-type]
    with pytest.raises(OutcomeTableError, match=r"split='validation' has no question that can serve.*split='all'"):
        recorded_source(good, split="validation", fractions=(0.5, 0, 0.5))
    with pytest.raises(OutcomeTableError, match=r"beliefs_split='train' has no question that can serve"):
        recorded_source(good, fractions=(0, 0.5, 0.5))
    with pytest.raises(OutcomeTableError, match=r"\(of 1 questions under 80 ids with equal texts, 1 have the tiers"):
        recorded_source(table([r | {"question": "Solve."} for r in rows]), split="test", fractions=(1, 0, 0))
    with pytest.raises(OutcomeTableError, match="column 'sample': must be the same in all rows of a question"):
        recorded_source(good, group_by="sample")
    with pytest.raises(OutcomeTableError, match="column 'topic': missing"):
        recorded_source(good, group_by="topic")
    with pytest.raises(
        OutcomeTableError, match=r"column 'question_id': beliefs cannot be learned.*beliefs_split='all'"
    ):
        recorded_source(good, group_by="question_id")
    train = set(good.split("train").rows["question_id"].to_pylist())
    sparse = [r for r in rows if r["tier"] != "high" or r["question_id"] in train]
    with pytest.raises(OutcomeTableError, match=r"no rows for tier 'high' in split='test'"):
        recorded_source(table(sparse), missing="mask")
    with pytest.raises(OutcomeTableError, match="2 menus"):
        recorded_source(table(rows + [r | {"menu": "other"} for r in rows]))


@pytest.mark.skipif(not REAL, reason="set ROI_DATA to the folder that holds outcomes/*.parquet")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_every_menu_of_the_real_tables_makes_exams(path: Path) -> None:
    full = OutcomeTable.read(path)
    for menu in full.menus:
        for split in (*SPLITS, "all"):
            source = recorded_source(full, menu=menu, split=split)  # type: ignore[arg-type]
            assert source.num_groups == len(source.group_names)
        for missing in ("drop", "mask"):
            source = recorded_source(full, menu=menu, missing=missing)  # type: ignore[arg-type]
            check_source(source)
        env = ROIReasoningEnv(source, num_tasks=5, budget=0.3)
        _, info = env.reset(seed=1)
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(int(np.flatnonzero(info["action_mask"])[-1]))
