"""Predictors: what they say of new questions, what they may not know, their groups and their files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("sklearn", reason="needs the extra [predict]")

from agents.predictors.exams import COLUMN, Case, fit_predictor, grouped_table
from agents.predictors.predictor import Predictor, PredictorError, fit_scores, load_predictor
from agents.predictors.quality import column_means, quality
from agents.predictors.records import Records, apart, near_duplicates, records
from agents.predictors.scores import Trees, folds_of, targets
from experiments.predicting import recovery_of
from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.measures.recovery import informed_apart, recovered
from roi_env.measures.references import informed_values, reachable_values
from roi_env.sources.outcome_tables import SPLITS, OutcomeTable
from tests.agents.predictors.tables import TIERS, check_file, told

KINDS = ("text", "surface", "neighbours", "given:kind")


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """Growing trees takes most of the time, and what is checked here holds for few of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trees, "_MOST", 20)
        yield


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return told(240)


@pytest.fixture(scope="module")
def clear(table: OutcomeTable) -> Records:
    return records(table)


@pytest.fixture(scope="module")
def made(table: OutcomeTable) -> Predictor:
    return fit_predictor("text", Case(table, {}))


@pytest.fixture(scope="module")
def silent() -> Case:
    """A table whose texts say nothing."""
    return Case(told(200, says=False), {})


@pytest.fixture(scope="module")
def deaf(silent: Case) -> Predictor:
    """Fitted on it."""
    return fit_predictor("text", silent)


def split(found: Records, name: str) -> Records:
    return found.take(found.split == [*SPLITS].index(name))  # type: ignore[arg-type]


def loss(found: Records, success: np.ndarray) -> float:
    return float(quality(found, success, np.ones_like(success)).log_loss.mean())


def test_counts_are_the_tables(table: OutcomeTable, clear: Records) -> None:
    assert clear.tiers == TIERS
    assert clear.count.sum() == table.num_rows == len(clear.tokens)
    assert clear.right.sum() == table.numbers("correct").sum()
    assert (clear.count == 4).all()
    two = clear.take(np.arange(len(clear)) % 2 == 0, samples=3)
    assert (two.count == 3).all()
    assert two.texts == clear.texts[::2]
    assert len(two.tokens) == two.count.sum()
    assert two.right.sum() == sum(two.correct)
    assert {"dataset", "kind"} == set(clear.columns)  # of the question alone, not of its generations


@pytest.mark.parametrize("name", ["text", "neighbours", "given:kind"])
def test_what_a_word_says_is_learned_and_calibrated(clear: Records, made: Predictor, name: str) -> None:
    made = made if name == "text" else fit_scores(name, clear)
    test = split(clear, "test")
    success = made.success(test.texts, test.columns)
    mean, _ = column_means(split(clear, "train"), test, "dataset")
    share = 1.0 if name == "neighbours" else 0.7  # filler words hide what counts from neighbours
    assert loss(test, success) < share * loss(test, mean)
    assert (np.abs(success.mean(0) - (test.right / test.count).mean(0)) < 0.12).all()
    tokens = made.heads.expected_cost(made.scores(test.texts, test.columns))
    by_tier = [test.tokens[test.tier == k].mean() for k in range(3)]
    assert tokens.mean(0) == pytest.approx(by_tier, rel=0.15)


def test_texts_that_say_nothing_give_the_mean(silent: Case, deaf: Predictor) -> None:
    found = silent.records()
    test = split(found, "test")
    mean, _ = column_means(split(found, "train"), test, "dataset")
    for one in (deaf, fit_scores("neighbours", found)):
        assert loss(test, one.success(test.texts, test.columns)) < loss(test, mean) + 0.03


def test_test_outcomes_are_never_read(table: OutcomeTable, made: Predictor) -> None:
    """Predictor, groups and beliefs are the same whatever became of test questions; validation ones only calibrate."""
    in_test = table.in_split("test")
    worse = table.rows.set_column(
        table.rows.column_names.index("correct"), "correct", [np.where(in_test, False, table.numbers("correct"))]
    )
    other = fit_predictor("text", Case(dataclasses.replace(table, rows=worse), {}))
    assert made.groups is not None
    assert other.groups is not None
    np.testing.assert_array_equal(made.groups.centres, other.groups.centres)
    np.testing.assert_array_equal(made.groups.laws.success, other.groups.laws.success)


def test_train_questions_are_scored_out_of_fold(clear: Records, made: Predictor) -> None:
    """A train question looks no better known than a new one: fitted to itself it would."""
    train = split(clear, "train")
    own, fitted = (
        loss(train, one.success(train.texts, train.columns)) for one in (made, dataclasses.replace(made, seen={}))
    )
    assert own > fitted + 0.005
    test = split(clear, "test")
    assert own > loss(test, made.success(test.texts, test.columns)) - 0.06


@pytest.mark.parametrize("name", KINDS)
def test_files_hold_the_same_predictor_without_pickle(name: str, tmp_path: Path) -> None:
    check_file(name, tmp_path / "p.npz")


def test_files_hold_the_groups(made: Predictor, tmp_path: Path) -> None:
    made.save(tmp_path / "p.npz")
    again = load_predictor(tmp_path / "p.npz")
    assert made.groups is not None
    assert again.groups is not None
    texts = ["A simple question of moon and hill?", "impossible", ""]
    np.testing.assert_array_equal(made.group(texts), again.group(texts))
    np.testing.assert_array_equal(made.groups.laws.prob, again.groups.laws.prob)
    assert made.groups.share.sum() == pytest.approx(1)
    known = again.known_groups()
    np.testing.assert_array_equal(known.group(texts, {}), made.group(texts))


def test_trees_in_arrays_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, 4))
    target = np.stack([np.sin(2 * features[:, 0]) + (features[:, 1] > 0), rng.normal(size=150), features[:, 2] ** 2], 1)
    target -= target.mean(0)
    monkeypatch.setattr(Trees, "_MOST", 60)
    trees = Trees()
    out_of_fold = trees.fit(features, target, np.arange(150) % 5)
    new = rng.normal(size=(200, 4))
    found = trees.predict(new)
    assert (found[:, 1] == 0).all()  # noise: the mean
    assert np.corrcoef(out_of_fold[:, 0], target[:, 0])[0, 1] > 0.8
    count = len(trees.arrays()["starts"][: trees.arrays()["trees"][0]])
    peer = GradientBoostingRegressor(
        n_estimators=60, learning_rate=0.06, max_depth=3, min_samples_leaf=10, subsample=0.7, random_state=0
    ).fit(features, target[:, 0])
    staged = list(peer.staged_predict(new))
    np.testing.assert_allclose(found[:, 0], staged[count - 1], atol=1e-9)


def test_targets_and_folds(clear: Records) -> None:
    found = targets(clear)
    kind = np.array(clear.columns["kind"])
    assert found[kind == "0", 0].mean() > found[kind == "1", 0].mean() > found[kind == "2", 0].mean()
    assert found[kind == "2", 2].mean() > found[kind == "0", 2].mean()
    cluster = np.repeat(np.arange(40), 5)
    fold = folds_of(cluster)
    assert all(len(set(fold[cluster == one].tolist())) == 1 for one in range(40))
    assert np.bincount(fold).tolist() == [40] * 5


def test_near_duplicates() -> None:
    long = "The quick brown fox jumps over the lazy dog while a grey cat sits on the old wall and looks at birds"
    others = [f"{word} entirely different sentences about {word} matters that share nothing with others of the list {at}"
              for at, word in enumerate(("naval", "royal", "lunar", "vocal"))]  # fmt: skip
    cluster = near_duplicates([long, long + " today", long.upper(), "Another text", *others])
    assert cluster[0] == cluster[1] == cluster[2]
    assert len(set(cluster[3:].tolist())) == 5
    sums = [f"What is {a} + {b}?" for a in range(9) for b in range(9)]
    assert len(set(near_duplicates(sums).tolist())) == 81
    assert near_duplicates(["What is 1 + 2?", "what is 1+2?", "What is 2 + 1?"]).tolist() == [0, 0, 2]


def test_near_duplicates_are_those_that_all_pairs_tell() -> None:
    """Against the definition, pair by pair: texts with a common frame, words left out, and chains of them."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bdfgklmn" for b in ("al", "on", "ir", "et")]
    texts = []
    for _ in range(60):
        text = ["think", "about", "this", "one", "question", "with", "care", *rng.choice(words, 25)]
        for _ in range(3):
            texts.append(" ".join(text))
            text = [word for at, word in enumerate(text) if at != rng.integers(7, len(text))]
    shingles = [{tuple(text.split()[at : at + 5]) for at in range(len(text.split()) - 4)} for text in texts]
    cluster = np.arange(len(texts))
    for one in range(len(texts)):
        for other in range(one):
            if len(shingles[one] & shingles[other]) >= 0.8 * len(shingles[one] | shingles[other]):
                cluster[cluster == cluster[one]] = cluster[other]
    found = near_duplicates(texts)
    assert 60 <= len(set(found.tolist())) < 180
    np.testing.assert_array_equal(found[:, None] == found, cluster[:, None] == cluster)


def test_near_duplicates_of_later_splits_are_left_out() -> None:
    found = records(told(120))
    # Every other train question gets the text of a validation question, every other validation question that of a test
    # question, with one word more.
    odd = np.arange(len(found)) % 2 == 1
    texts = list(found.texts)
    for place in (0, 1):
        later = [found.texts[at] for at in np.flatnonzero(~odd & (found.split == place + 1))]
        for at in np.flatnonzero(odd & (found.split == place)):
            texts[at] = f"{later[at % len(later)]} again"
    kept = apart(dataclasses.replace(found, texts=tuple(texts)))
    assert kept[found.split == 2].all()
    np.testing.assert_array_equal(kept[found.split < 2], ~odd[found.split < 2])


def test_questions_without_a_text_are_told_by_their_columns() -> None:
    """As AIME's in a table that may not pass its texts on: no duplicates of one another, and no text that was seen."""
    table = told(120)
    mute = np.array([value == "set1" for value in table.rows["dataset"].to_pylist()])
    texts = np.where(mute, "", table.rows["question"].to_pylist())
    hopeless = np.where(mute, False, table.numbers("correct"))
    rows = table.rows
    for name, values in (("question", texts.tolist()), ("correct", hopeless)):
        rows = rows.set_column(rows.column_names.index(name), name, [values])
    made = fit_scores("text", records(dataclasses.replace(table, rows=rows)))
    assert made.facts["left_out"] == 0
    assert made.knows([""]) == 0
    easy, never = made.success(["A simple question of moon and hill?", ""], {"dataset": ["set0", "set1"]})
    assert (never < 0.15).all()
    assert (easy > 0.5).all()


def test_groups_recover_what_the_column_cannot_tell(table: OutcomeTable, made: Predictor) -> None:
    case = Case(table, {})
    assert made.facts["helps"]
    plain = case.source("test")
    grouped = case._replace(table=grouped_table(case, made)).source("test", COLUMN)
    batch = draw_exams(exam_spec(plain, budget=0.3), 0, np.arange(80))
    other = draw_exams(exam_spec(grouped, budget=batch.spec.budget), 0, np.arange(80))
    np.testing.assert_array_equal(batch.items, other.items)  # the same exams
    np.testing.assert_array_equal(batch.outcomes()[0], other.outcomes()[0])
    informed = informed_apart(batch)
    assert informed.method == "halves"
    found = recovered(
        reachable_values(other), reachable_values(batch), informed.value, informed_values(batch), batch.items
    )
    assert found.share.low > 0.5
    assert found.information.value < found.raw.value  # what is scored on its own samples flatters


def test_nothing_is_recovered_where_texts_say_nothing(deaf: Predictor) -> None:
    assert not deaf.facts["helps"]


def test_a_model_that_is_never_right() -> None:
    table = told(80, 2)
    place = table.rows.column_names.index("correct")
    never = dataclasses.replace(table, rows=table.rows.set_column(place, "correct", [np.zeros(table.num_rows, bool)]))
    made = fit_predictor("text", Case(never, {}))
    assert not made.facts["helps"]
    assert (made.success(["A simple question?"]) < 0.1).all()


def test_groups_that_a_split_lacks_are_not_published(made: Predictor) -> None:
    labels = {split: set() for split in SPLITS}
    found = grouped_table(Case(told(60, seed=5), {}), made)
    code, values = found.codes(COLUMN)
    for at, name in enumerate(found.split_codes()):
        labels[SPLITS[name]].add(values[code[at]])
    assert labels["train"] == labels["validation"] == labels["test"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words", "unknown predictor"),
        ("given", "given needs a column"),
        ("text:x", "nothing after a colon"),
        ("given:colour", "no column 'colour'"),
        ("missing.npz", "no such file"),
        ("embedding:/no/such/model", "no model"),
    ],
)
def test_what_cannot_be_is_named(name: str, words: str) -> None:
    from agents.predictors.exams import predictor_of

    with pytest.raises(PredictorError, match=words):
        predictor_of(name, Case(told(80), {}))


def test_files_that_are_none(made: Predictor, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "b.npz", weights=np.zeros(3))
    made.save(tmp_path / "c.npz")
    whole = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    # One byte of a compressed array, of a method of compression, of a header: each raises another error.
    for at in range(len(whole) // 40, len(whole), len(whole) // 40):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        (tmp_path / "e.npz").write_bytes(changed)
        with contextlib.suppress(PredictorError):
            load_predictor(tmp_path / "e.npz")
    with np.load(tmp_path / "c.npz") as file:
        arrays = {name: file[name] for name in file.files}
    head = json.loads(str(arrays["roi_predictor"]))
    for other, words in (
        (head | {"version": 99}, "file version 99, this release reads"),
        (head | {"reader": "ears"}, "damaged .*'ears'"),
        ({"version": head["version"]}, "damaged .*'reader'"),
        ([], "damaged"),
    ):
        np.savez(tmp_path / "f.npz", **arrays | {"roi_predictor": np.array(json.dumps(other))})
        with pytest.raises(PredictorError, match=f"f.npz: {words}"):
            load_predictor(tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", np.zeros(3))
    (tmp_path / "g.npy").rename(tmp_path / "g.npz")
    for name in ("a", "b", "d", "g"):
        with pytest.raises(PredictorError, match=f"{name}.npz: not a predictor's file"):
            load_predictor(tmp_path / f"{name}.npz")
    with pytest.raises(PredictorError, match="predictors are written as"):
        made.save(tmp_path / "c.pickle")


def test_few_questions_are_refused_by_name() -> None:
    with pytest.raises(PredictorError, match="are too few for a predictor"):
        fit_predictor("text", Case(told(24), {}))


def test_a_column_that_is_needed_is_asked_for() -> None:
    made = fit_scores("given:kind", records(told(80)))
    with pytest.raises(PredictorError, match="no column 'kind'"):
        made.scores(["a text"], {})


def test_a_column_that_only_some_questions_have_can_be_given() -> None:
    """As MATH's level in a table that has other data sets too."""
    table = told(120)
    rows = table.rows.select(["kind", "dataset"]).to_pylist()
    of_one = [row["kind"] if row["dataset"] == "set0" else None for row in rows]
    table = dataclasses.replace(table, rows=table.rows.append_column("level", pa.array(of_one)))
    made = fit_scores("given:level", records(table))
    columns = {"dataset": ["set0", "set0", "set1"], "level": ["0", "2", ""]}
    easy, hopeless, unknown = made.success(["a", "b", "c"], columns)[:, 1]
    assert easy > unknown > hopeless
    assert made.unknown({"level": ["0", "7"], "dataset": ["set0"], "colour": ["red"]}) == ["level=7"]
    # A table holds whole numbers as 3.0 where others lack them, and a question as 3.
    numbers = pa.array([None if one is None else float(one) for one in of_one])
    made = fit_scores(
        "given:level",
        records(dataclasses.replace(table, rows=table.rows.drop_columns(["level"]).append_column("level", numbers))),
    )
    np.testing.assert_array_equal(made.success(["a", "b", "c"], columns)[:, 1], [easy, hopeless, unknown])


def test_one_sample_a_cell_is_held_against_item_response() -> None:
    case = Case(told(samples=1), {})
    batch = draw_exams(exam_spec(case.source("test"), budget=0.3), 0, np.arange(60))
    found = informed_apart(batch)
    assert found.method == "item response"
    assert reachable_values(batch).mean() < found.value.mean() < informed_values(batch).mean()
    # What there is to know is no matter of which exams happen to have easy questions.
    worth = found.value - reachable_values(batch)
    assert worth.std() < 0.15 * worth.mean()


@pytest.mark.skipif(not os.environ.get("ROI_DATA"), reason="needs the recorded tables (ROI_DATA)")
def test_a_thousand_questions_of_a_real_table() -> None:
    table = OutcomeTable.read(Path(os.environ["ROI_DATA"]) / "outcomes" / "jhu_concise_cot.parquet")
    found = records(table, "gpt-4")
    assert not np.isin(found.texts, "").any()
    made = fit_scores("text", found)
    assert made.facts["left_out"] > 0  # near duplicates across splits
    test = split(found, "test")
    mean, tokens = column_means(split(found, "train"), test, "dataset")
    scores = made.scores(test.texts, test.columns)
    mine = quality(test, made.heads.probability(scores), made.heads.expected_cost(scores))
    assert mine.log_loss.mean() < quality(test, mean, tokens).log_loss.mean() + 0.005
    assert (mine.calibration < 0.1).all()


def test_unit_of_cost_changes_nothing() -> None:
    """The same numbers as dollars: the same groups, chosen by the same gains, and the same information recovered."""
    table = told()
    dollars = OutcomeTable.from_arrow(table.rows.replace_schema_metadata({"unit": "micro-usd"}))
    found = []
    for one in (table, dollars):
        case = Case(one, {})
        predictor = fit_predictor("given:kind", case)
        facts = {name: value for name, value in predictor.facts.items() if name != "unit"}
        found.append((facts, recovery_of(case, [predictor], (0.3,), exams=40)[0][0].found.share))
    assert found[0] == found[1]
