"""`roi predict`, and the commands that take predictors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra [predict]")

from agents.predictors.exams import COLUMN, Case, fit_predictor, grouped_table
from agents.predictors.predictor import Predictor, fit_scores
from agents.predictors.records import records
from experiments.compare.plan import expand
from experiments.compare.store import exam_identity
from experiments.config import CompareConfig, ConfigError, FamilyConfig
from roi_env.answering.base import Question, ThinkingTier
from roi_env.envs.live import live_source
from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError
from tests.agents.predictors.tables import TIERS, told, written
from tests.commands import roi, undrawn

LIVE = tuple(ThinkingTier(name, 0, tokens) for name, tokens in zip(TIERS, (8, 24, 60), strict=True))
OFFERED = [part for tier in LIVE for part in ("--tier", f"{tier.name}=0+{tier.answer}")]


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    return told(150)


@pytest.fixture(scope="module")
def made(table: OutcomeTable) -> Predictor:
    return fit_predictor("text", Case(table, {}))


@pytest.fixture(scope="module")
def files(table: OutcomeTable, made: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table, the predictor, and questions of the table's kind."""
    folder = tmp_path_factory.mktemp("files")
    written(table, folder)
    made.save(folder / "p.npz")
    mute = table.rows.set_column(table.rows.column_names.index("question"), "question", [[""] * table.num_rows])
    dataclasses.replace(table, rows=mute).write(folder / "mute.parquet")
    dataclasses.replace(made, unit="micro-usd").save(folder / "dollars.npz")
    dataclasses.replace(made, menu="other").save(folder / "menu.npz")
    found = records(table)
    swapped = fit_scores("surface", dataclasses.replace(found, split=2 - found.split))  # train questions are test ones
    dataclasses.replace(made, seen=dict(list(swapped.seen.items())[:2])).save(folder / "leak.npz")
    words = ("simple", "impossible")
    lines = [{"question": f"A {words[n % 2]} question of moon {n}?"} for n in range(20)]
    for name in ("set0", "other"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(folder / "t.npz", header=np.zeros(1))
    return folder


def test_costs_beyond_any_exam_are_an_error_of_the_table(table: OutcomeTable, tmp_path: Path) -> None:
    tokens = table.rows.column_names.index("tokens")
    large = table.rows.set_column(tokens, "tokens", [[2_000_000_000] * table.num_rows])
    dataclasses.replace(table, rows=large).write(tmp_path / "t.parquet")
    with pytest.raises(
        ConfigError, match=r"t\.parquet: no exams of 10 tasks can be made: budget must stay below 2\*\*30"
    ):
        roi("predict", "fit", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "p.npz"))


def test_fit_and_show(files: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.npz"
    printed = roi("predict", "fit", str(files / "told.parquet"), "--out", str(file))
    assert "it helped" in printed
    assert "Information recovered" in printed
    report = json.loads(file.with_suffix(".json").read_text())
    assert {row["predictor"] for row in report["recovered"]} == {"text", "surface"}
    assert [row["predictor"] for row in report["quality"]] == ["mean by dataset", "text", "surface"]
    assert report["facts"]["helps"] is True
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shown = roi("predict", "show", str(file), "A simple question of moon?", "An impossible question of kite?")
    easy, hard = (float(line.split("│")[2]) for line in shown.splitlines() if line.startswith("│ low"))
    assert easy > hard + 0.2
    assert "USD" not in shown
    dollars = roi("predict", "show", str(files / "dollars.npz"), "A simple question of moon?")
    assert " USD to 0.00" in dollars
    assert "tokens" not in dollars
    # What it was not fitted on is said, and a title is one line whatever the text.
    shown = roi("predict", "show", str(file), "a\x1b[31m\n\0[b]", "", "x" * 100_000, "--column", "dataset=moon")
    assert "was fitted on no questions with dataset=moon" in shown
    assert all(title in shown for title in ("a [31m  [b]  (predicted", "(no text)  (predicted", "x...  (predicted"))
    assert "\x1b" not in shown


def test_files_beside_are_not_overwritten(files: Path, tmp_path: Path) -> None:
    """A table may be called like the report: of recorded outcomes nothing is lost."""
    rows = OutcomeTable.read(files / "told.parquet").rows.to_pylist()
    table = tmp_path / "told.json"
    table.write_text(json.dumps(rows))
    (tmp_path / "drawn.png").write_bytes(b"mine")
    for out in ("told.npz", "drawn.npz"):
        with pytest.raises(ConfigError, match=f"--out .*{out}: .* would be overwritten, and is of no earlier fit"):
            roi("predict", "fit", str(table), "--out", str(tmp_path / out))
    (tmp_path / "told.npz").write_bytes((files / "p.npz").read_bytes())
    with pytest.raises(ConfigError, match="would be overwritten"):
        roi("predict", "fit", str(table), "--out", str(tmp_path / "told.npz"))
    assert json.loads(table.read_text()) == rows


def test_exams_of_some_tiers_have_predictors_of_them(files: Path, tmp_path: Path) -> None:
    file, table = tmp_path / "two.npz", str(files / "told.parquet")
    two = ("--tier", "low", "--tier", "high")
    roi("predict", "fit", table, "--predictor", "given:kind", "--out", str(file), *two)
    exam = ("play", "--table", table, "--agent", "bellman", "--predictor", str(file))
    assert "score" in roi(*exam, *two)
    with pytest.raises(ConfigError, match=r"fitted on the tiers \['low', 'high'\], these exams have .*'mid'"):
        roi(*exam)
    with pytest.raises(OutcomeTableError, match="no rows for tier 'huge'"):
        roi("predict", "fit", table, "--out", str(file), "--tier", "huge")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "fit", "told.parquet", "--out", "p.pickle"), "ends in .npz"),
        (("predict", "fit", "told.parquet", "--out", "p.npz", "--predictor", "other.npz"), "name a kind to fit"),
        (("predict", "fit", "told.parquet", "--out", "p.npz", "--predictor", "oracle"), "unknown predictor 'oracle'"),
        (("predict", "show", "none.npz", "text"), "no such file"),
        (("predict", "show", "p.npz", "\udcff moon"), "has bytes that are no UTF-8 text"),
        (("predict", "show", "p.npz", "q", "--column", "dataset=a", "--column", "dataset=b"), "--column dataset: is given twice"),
        (("predict", "show", "none.npz", "text", "--column", "dataset"), "NAME=VALUE"),
        (("compare", "--predictor", "text"), "belongs to a table"),
        (("compare", "--table", "told.parquet", "--predictor", "none.npz"), "no such file"),
        (("compare", "--table", "told.parquet", "--predictor", "words"), "unknown predictor"),
        (("compare", "--table", "told.parquet", "--predictor", "dollars.npz"), "fitted on the unit micro-usd, .* have tokens"),
        (("compare", "--table", "told.parquet", "--predictor", "menu.npz"), "fitted on the menu other, .* have model"),
        (("compare", "--table", "told.parquet", "--predictor", "leak.npz"), "fitted on 2 of the .* test questions"),
        (("compare", "--table", "mute.parquet", "--predictor", "text"), "no question has a text"),
        (("compare", "--table", "told.parquet", "--predictor", "given:colour"), "no column 'colour'"),
        (("predict", "show", "p.npz", "q", "--column", "colour=red"), r"--column colour: .* reads no such column; it reads \['dataset'"),
        (("predict", "fit", "told.parquet", "--out", "no/folder/p.npz"), "--out no/folder/p.npz: there is no folder"),
        (("play", "--family", "heavy", "--predictor", "text", "--agent", "fixed-1"), "it needs recorded outcomes"),
        (("train", "sb3-ppo", "--table", "told.parquet", "--predictor", "none.npz"), "no such file"),
        (("answer", "set0.jsonl", "--predictor", "none.npz"), "no such file"),
        (("answer", "set0.jsonl", "--predictor", "text"), "a kind is fitted on recorded outcomes: give --table"),
        (("answer", "set0.jsonl", "--predictor", "p.npz", "--table", "told.parquet"), "leave --table out"),
        (("answer", "set0.jsonl", "--predictor", "dollars.npz"), "costs are US dollars .*, those of the tiers tokens"),
        (("answer", "set0.jsonl", "--predictor", "t.npz"), "not a predictor's file"),
        (("answer", "other.jsonl", "--table", "told.parquet"), "the table has no group dataset='other'"),
        (("answer", "set0.jsonl", "--predictor", "p.npz", "--tier", "low=0+9", "--tier", "huge=0+90"), "predictor's tiers are"),
        (("answer", "set0.jsonl", "--predictor", "words", "--table", "told.parquet"), "unknown predictor 'words'"),
        (("answer", "set0.jsonl", "--predictor", "text", "--table", "mute.parquet"), "no question has a text"),
        (("answer", "set0.jsonl", "--predictor", "text", "--table", "told.parquet", "--agent", "bwk-ucb"), "learns from the table's own"),
        (("serve", "--upstream", "http://h/v1", "--budget", "9", "--predictor", "none.npz"), "no such file"),
        (("serve", "--upstream", "http://h/v1", "--budget", "9", "--predictor", "text"), r"text: name a predictor's file \(.npz\)"),
        (("serve", "--upstream", "http://h/v1", "--budget", "9", "--model", "m", "--predictor", "dollars.npz"), "costs are US dollars"),
        (("serve", "--upstream", "http://h/v1", "--model", "m", "--budget", "9", "--predictor", "p.npz"), "tiers are low, mid, high, the live ones m: direct"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(arguments: tuple[str, ...], words: str, files: Path, tmp_path: Path) -> None:
    given = [str(files / one) if (files / one).is_file() else one for one in arguments]
    if arguments[0] in ("compare", "train"):
        given += ["--out", str(tmp_path / "run"), *(["--dry-run"] if arguments[0] == "compare" else [])]
    if arguments[0] == "answer":
        given += ["--budget", "900", "--dry-run", *(() if "--tier" in arguments else OFFERED)]
    if arguments[0] == "serve":
        given += ["--state", str(tmp_path / "state"), *(() if "p.npz" in arguments else OFFERED)]
    with pytest.raises(ConfigError, match=words):
        roi(*given)


SMALL = ("--budget", "0.3", "--workers", "1", "exams=20", "replicates=2")


def test_a_comparison_says_what_texts_recover_without_being_asked(files: Path, tmp_path: Path) -> None:
    table = files / "told.parquet"
    printed = roi("compare", "--table", str(table), "--out", str(tmp_path / "run"), "--agent", "fixed-1", *SMALL)
    recovery = printed[printed.index("Information recovered") :].splitlines()
    assert any("told: model t=0.3" in line for line in recovery)
    line = next(line for line in recovery if "│   text" in line)
    assert float(line.split("│")[2].split("%")[0]) > 50
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (one,) = summary["settings"][0]["predictions"]
    assert one["predictor"] == "text"
    assert one["information"]["value"] < one["raw"]["value"]
    assert "information recovered" in (tmp_path / "run" / "report.html").read_text()
    assert len(summary["results"]) == 2  # fixed-1 and the optimum: predictors are no agents
    # Nothing else of a comparison depends on them.
    plain = ("--out", str(tmp_path / "plain"), "--agent", "fixed-1", *SMALL, "--predictor", "none")
    with undrawn():
        assert "Information recovered" not in roi("compare", "--table", str(table), *plain)
    without = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert without["settings"][0].pop("predictions") == []
    summary["settings"][0].pop("predictions")
    assert (without["results"], without["settings"]) == (summary["results"], summary["settings"])


@pytest.mark.usefixtures("undrawn")
def test_a_predictor_publishes_its_groups_to_all_agents(files: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    named = ("--predictor", str(files / "p.npz"), "--predictor", "given:kind", "--agent", "bellman")
    roi("compare", "--table", str(files / "told.parquet"), *named, "--out", str(run), *SMALL)
    summary = json.loads((run / "summary.json").read_text())
    scores = {row["family"]: row["score"] for row in summary["results"] if row["agent"] == "bellman"}
    assert scores["told: model (p.npz)"] > 1.1 * scores["told: model"]
    told_of = {Path(one["predictor"]).name: one for one in summary["settings"][0]["predictions"]}
    assert [*told_of] == ["p.npz", "given:kind"]
    for name, one in told_of.items():
        gain = scores[f"told: model ({name})"] / scores["told: model"] - 1
        assert gain == pytest.approx(one["gain"]["value"], abs=0.02)  # their budgets are rounded apart


@pytest.mark.usefixtures("undrawn")
def test_a_table_too_small_for_a_predictor_is_compared_all_the_same(tmp_path: Path) -> None:
    table = written(told(30, 2), tmp_path)
    printed = roi("compare", "--table", str(table), "--out", str(tmp_path / "run"), "--agent", "fixed-1", *SMALL)
    assert "told: model t=0.3, text: 1" in printed
    assert "are too few for a predictor: record at least 20" in printed
    assert "fixed-1" in printed


def test_agents_learn_on_a_predictors_groups(files: Path, made: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra [sb3]")
    from agents.base import load_agent, public_problem
    from experiments.commands.train import read_config
    from experiments.compare.plan import setting_spec

    run = tmp_path / "run"
    named = ("--predictor", str(files / "p.npz"), "--budget", "0.3", "--num-tasks", "4", "--steps", "256")
    small = ("--param", "n_steps=16", "--param", "num_envs=16", "--param", "batch_size=64")
    roi("train", "sb3-ppo", "--table", str(files / "told.parquet"), *named, "--out", str(run), *small)
    spec = setting_spec(read_config(run).setting)
    assert spec.source.num_groups == len(made.known_groups().names)
    load_agent(run / "agent.npz", public_problem(spec))
    # ... and decides live questions with the same groups.
    asked = ("answer", str(files / "set0.jsonl"), "--limit", "4", "--budget", str(spec.budget), *OFFERED, "--dry-run")
    assert "4 questions" in roi(*asked, "--agent", str(run / "agent.npz"), "--predictor", str(files / "p.npz"))


def test_exams_without_a_predictor_keep_their_names() -> None:
    """Trained agents are found by a hash of what their exams depend on."""
    families = [FamilyConfig(family="tinylm"), FamilyConfig(family="tinylm", predictor="text")]
    plain, predicted = expand(CompareConfig(families=families, budgets=[0.3]))
    assert "predictor" not in exam_identity(plain)
    assert exam_identity(predicted)["predictor"] == "text"


def test_without_scikit_learn_the_package_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    table = str(files / "told.parquet")
    asked = ("answer", str(files / "set0.jsonl"), "--budget", "900", *OFFERED, "--dry-run")
    with pytest.raises(ConfigError, match=r"predictors need: pip install \"roi-reasoning\[predict\]\""):
        roi(*asked, "--predictor", str(files / "p.npz"))
    with pytest.raises(ConfigError, match="predictors need"):
        roi(*asked, "--table", table, "--predictor", "text")
    printed = roi(*asked, "--table", table)  # nobody asked for a predictor: said, and gone on
    assert "Beliefs by dataset; no predictor" in printed
    assert "predictors need" in printed


def test_questions_of_a_recorded_kind_are_believed_by_their_texts_where_that_helps(files: Path, tmp_path: Path) -> None:
    asked = ("answer", str(files / "set0.jsonl"), "--budget", "900", *OFFERED, "--dry-run", "--table")
    table = str(files / "told.parquet")
    printed = roi(*asked, table)
    assert "Beliefs by the predictor text of the table: on validation questions it helped (+" in printed
    assert "--predictor none leaves it out" in printed
    assert "Beliefs by" not in roi(*asked, table, "--predictor", "none")
    assert "Beliefs by" not in roi(*asked, table, "--agent", "bwk-ucb")  # learns from the table's groups
    silent = str(written(told(150, 2, says=False), tmp_path))
    printed = roi(*asked, silent)
    assert "Beliefs by dataset, not by a text predictor: on validation questions it was not seen to help" in printed
    assert "Beliefs by the predictor surface of the table: " in roi(*asked, silent, "--predictor", "surface")


def test_tokens_go_where_the_texts_say_that_they_help(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    from tests.upstream import Upstream, serving

    with serving(Upstream(answer=lambda prompt: "about 5 words of it").app()) as url:
        endpoint = ["--endpoint", f"{url}/v1", "--model", "stub", "--backend", "vllm", *OFFERED]
        printed = roi(
            "answer", str(files / "set0.jsonl"), "--budget", "40", "--out", str(tmp_path / "a"), *endpoint, "--predictor",
            str(files / "p.npz"),
        )  # fmt: skip
    assert "was fitted on no questions" not in printed
    assert "Beliefs by p.npz, the predictor text of model: on validation questions it helped" in printed
    rows = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    asked = [row["status"] in ("answered", "cut") for row in rows]
    assert sum(asked[::2]) > 5  # simple
    assert not any(asked[1::2])  # impossible


def test_values_that_the_predictor_never_saw_are_said(files: Path) -> None:
    asked = ("answer", str(files / "other.jsonl"), "--budget", "900", *OFFERED, "--dry-run", "--predictor")
    for named in ([str(files / "p.npz")], ["text", "--table", str(files / "told.parquet")]):
        assert "was fitted on no questions with dataset=other: of these the texts alone are read" in roi(*asked, *named)


def test_live_questions_get_the_predictors_beliefs(table: OutcomeTable, made: Predictor) -> None:
    questions = [Question("set0", "1", "A simple question of moon?", ""), Question("x", "2", "An impossible one?", "")]
    known = made.known_groups()
    source = live_source(questions, LIVE, known=known)
    easy, hard = source.beliefs.success_probability[source.row_group]
    assert (easy > hard).all()
    assert not source.guessed  # measured: planners take the groups' costs as they are
    # An agent that was trained on the table's exams of these groups meets the same ones in the same places.
    trained = Case(grouped_table(Case(table, {}), made), {}).source("train", COLUMN)
    np.testing.assert_array_equal(trained.beliefs.success_probability, source.beliefs.success_probability)
    np.testing.assert_array_equal(trained.group_features, source.group_features)
    with pytest.raises(ValueError, match=r"predictor's costs are US dollars .*, those of the tiers tokens: fit one on"):
        live_source(questions, LIVE, known=dataclasses.replace(made, unit="micro-usd").known_groups())


def test_the_proxy_plans_for_the_groups_that_came(made: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    from experiments.serving.budget import make_budget
    from roi_env.answering.http import HTTPSolver

    known, solver = made.known_groups(), HTTPSolver("http://h", "m")
    budget = make_budget("a", 500, solver, LIVE, "online-lp", 10, 1, tmp_path, known=known)
    problem = budget.session.problem
    budget.close()
    np.testing.assert_allclose(problem.group_probability.mean(0), known.share, atol=0.06)
    np.testing.assert_array_equal(problem.beliefs.success_probability, known.laws.success_probability)


def test_the_proxy_reads_requests(made: Predictor, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    import httpx

    from experiments.serving.app import application
    from experiments.serving.budget import make_budget
    from roi_env.answering.http import HTTPSolver
    from tests.upstream import Upstream, serving

    asked: dict[str, str] = {}
    with serving(Upstream(answer=lambda prompt: "five words").app()) as url:
        solver = HTTPSolver(f"{url}/v1", "stub", "vllm")
        budget = make_budget("a", 80, solver, LIVE, "online-lp", 20, 1, tmp_path, known=made.known_groups())
        with serving(application([budget], None)) as proxy:
            for word in ("simple", "impossible"):
                message = {"role": "user", "content": f"A {word} question of moon?"}
                sent = httpx.post(f"{proxy}/a/v1/chat/completions", json={"model": "stub", "messages": [message]})
                asked[word] = sent.headers["x-roi-tier"]
    assert asked == {"simple": "low", "impossible": "skip"}
