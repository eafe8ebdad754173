"""``roi import``, and what follows from a table's unit: comparisons under dollars."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.base import load_agent, make_agent, public_problem, save_agent
from experiments.config import ConfigError
from roi_env.exams.config import exam_spec, parse_budget
from roi_env.sources.outcome_tables import OutcomeTable
from roi_env.sources.recorded import recorded_source
from roi_env.sources.units import cost_text, read_cost
from tests.commands import roi


def router(path: Path, prompts: int = 80) -> Path:
    rows = [
        {
            "prompt": f"Prompt {n}",
            "arms": {
                "small": {"reward": n % 3 > 0, "cost": 1e-5 * (1 + n % 4)},
                "big": {"reward": n % 7 > 0, "cost": 1e-3},
            },
        }
        for n in range(prompts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dollars")
    printed = roi("import", str(router(folder / "r.jsonl")), "--out", str(folder / "r.parquet"))
    assert printed.startswith("Format: router rewards and costs (1 file)")
    assert "0.0010000 USD" in printed
    assert "Not to be compared" not in printed
    return folder / "r.parquet"


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_two_commands_later_under_dollars(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = roi(
        "compare", "--table", str(table), "exams=3", "--num-tasks", "4", "--agent", "fixed-1", "--agent", "lp-lookahead",
        *("--budget", "0.002usd", "--budget", "0.3", "--workers", "1", "--out", str(run)),
    )  # fmt: skip
    assert "B=0.002usd" in printed
    text = (run / "report.html").read_text()
    assert "0.0020000 USD" in text
    assert "tokens" not in text.partition("</h1>")[2].partition("<h2")[0]


def test_a_comparison_takes_the_menus_of_which_exams_can_be_made(tmp_path: Path) -> None:
    from experiments.cli import _table_menus

    rows = [
        {"dataset": name, "question": f"{name} {n}", "tier": f"t{k}", "tokens": 10**k, "correct": n % (k + 2) > 0}
        for name, tiers, questions in (("few", 3, 2), ("many", 2, 60), ("some", 2, 25))
        for n in range(questions)
        for k in range(tiers)
    ]
    for row in rows:
        row["menu"] = row["dataset"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    roi("import", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "a.parquet"))
    chosen = {tasks: [one.menu for one in _table_menus(tmp_path / "a.parquet", None, tasks)] for tasks in (3, 10, 1000)}
    assert chosen == {3: ["many", "some"], 10: ["many"], 1000: ["few"]}


def test_a_menu_without_a_right_generation_is_compared_only_where_asked_for_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.cli import _table_menus

    rows = [
        {"question": f"{n} + 1?", "question_id": n, "answer": "", "dataset": "d", "menu": menu, "tier": tier}
        | {"tokens": tokens, "correct": menu == "some"}
        for n in range(200)
        for menu in ("none", "some")
        for tier, tokens in (("low", 1), ("high", 9))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [one.menu for one in _table_menus(tmp_path / "a.parquet", None, None)] == ["some"]
    assert "no generation is right" not in capsys.readouterr().out
    assert [one.menu for one in _table_menus(tmp_path / "a.parquet", ["none"], None)] == ["none"]
    assert "menu 'none': no generation is right" in capsys.readouterr().out


def test_budgets_are_checked_where_they_meet_a_table(table: Path, tmp_path: Path) -> None:
    money, tokens = recorded_source(table, split="all"), exam_spec("signal").source
    assert exam_spec(money, budget="$0.002").budget == exam_spec(money, budget="2000 micro-usd").budget == 2000
    assert exam_spec(money, budget=0.5).budget == round(0.5 * 10 * money.mean_top_cost)
    for budget in (512, "512", "512 tokens"):
        with pytest.raises(ValueError, match="US dollars"):
            exam_spec(money, budget=budget)
    with pytest.raises(ValueError, match="is money, but the costs of 'signal"):
        exam_spec(tokens, budget="2.50usd")
    assert exam_spec(tokens, budget="512 tokens").budget == 512
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "1+1?"}')
    options = ("--endpoint", "http://127.0.0.1:9", "--model", "m", "--out", str(tmp_path / "o"), "--budget", "1usd")
    with pytest.raises(ConfigError, match="the tiers have no prices"):
        roi("answer", str(questions), *options)


def test_agents_are_of_one_unit(table: Path, tmp_path: Path) -> None:
    spec = exam_spec("recorded", table=table, num_tasks=4)
    problem = public_problem(spec)
    agent = make_agent("fixed-1", problem)
    save_agent(agent, tmp_path / "a.npz")
    load_agent(tmp_path / "a.npz", problem)
    with pytest.raises(ValueError, match="this agent counts micro-usd"):
        load_agent(tmp_path / "a.npz", public_problem(exam_spec("signal")))


def test_amounts() -> None:
    assert read_cost("2.50usd") == read_cost(" $2.5 ") == read_cost("2500000 micro-usd") == (2_500_000, "micro-usd")
    assert read_cost("512 tokens") == (512, "tokens")
    assert (
        read_cost("50k")
        == read_cost("50K tokens")
        == read_cost("0.05m")
        == (parse_budget("50k"), "tokens")
        == (50_000, "tokens")
    )
    assert read_cost("0.3") is None
    assert parse_budget("2.50usd") == "2.50usd"
    for text in ("0.0000001usd", "1.2.3usd", "-1usd", "1eur", "usd"):
        with pytest.raises(ValueError):
            parse_budget(text)
    assert cost_text(2_500_000, "micro-usd") == "2.5000 USD"
    assert cost_text(1_234, "tokens") == "1,234"


def test_another_log_is_left_out_loudly_and_nothing_is_written_where_none_is_left(tmp_path: Path) -> None:
    router(tmp_path / "r.jsonl", 3)
    (tmp_path / "counts.jsonl").write_text('{"prompt": "P", "output_tokens": 3}\n')
    printed = roi("import", str(tmp_path), "--out", str(tmp_path / "t.parquet"))
    assert "WARNING: left out:" in printed
    assert "counts.jsonl: no column says whether an answer was right" in printed
    assert "fewer than the 10 tasks" in printed or "no question" in printed
    assert OutcomeTable.read(tmp_path / "t.parquet").num_rows == 6
    with pytest.raises(ConfigError, match="no column says"):
        roi("import", str(tmp_path / "counts.jsonl"), "--out", str(tmp_path / "u.parquet"))
    assert not (tmp_path / "u.parquet").exists()


BAD_OPTIONS: dict[str, tuple[list[str], str]] = {
    "unknown column": (["--column", "tokns=a"], "there is no column 'tokns'"),
    "no path": (["--column", "tokens"], "must read ours=theirs"),
    "empty path": (["--column", "tokens="], "must read ours=theirs"),
    "twice": (["--column", "tokens=a", "--column", "tokens=b"], "--column tokens: given twice"),
    "unit": (["--unit", "euros"], "--unit 'euros': choose one of"),
    "no number": (["--correct-at", "nan"], "--correct-at nan: give a number"),
    "no tokenizer": (["--tokenizer", "nowhere"], "--tokenizer nowhere: there is no nowhere there"),
    "grader": (["--grader", "math"], "--grader belongs to the journal"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_are_checked_before_anything_is_written(tmp_path: Path, name: str) -> None:
    options, message = BAD_OPTIONS[name]
    log = router(tmp_path / "r.jsonl", 3)
    with pytest.raises(ConfigError, match=message):
        roi("import", str(log), "--out", str(tmp_path / "t.parquet"), *options)
    with pytest.raises(ConfigError, match=r"t\.csv: outcome tables are written as \.parquet"):
        roi("import", str(log), "--out", str(tmp_path / "t.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_tokenizer_counts_the_texts_of_logs_without_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra [llm]")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "tokenizer.json"
    model.save(str(file))
    log = tmp_path / "texts.jsonl"
    rows = [
        {"question": f"P{n}", "tier": "m", "correct": n % 2 == 0, "said": " ".join(["word"] * (n + 1))}
        for n in range(4)
    ]
    log.write_text("\n".join(map(json.dumps, rows)))
    for number, path in enumerate((file, file.parent)):
        out = tmp_path / f"{number}.parquet"
        printed = roi("import", str(log), "--out", str(out), "--text", "said", "--tokenizer", str(path))
        assert sorted(OutcomeTable.read(out).rows["tokens"].to_pylist()) == [1, 2, 3, 4]
        assert "Not to be compared yet" in printed
        assert "one tier alone" in printed
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be read"):
        roi("import", str(log), "--out", str(tmp_path / "u.parquet"), "--text", "said", "--tokenizer", str(file))


def test_the_journal_of_an_endpoints_recording_needs_a_judge_and_takes_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra [live]")
    from tests.upstream import Upstream, serving

    questions, out = tmp_path / "q.jsonl", tmp_path / "t.parquet"
    lines = ({"id": f"q{n}", "question": f"{n}: six times seven?", "answer": str(42 + n % 2)} for n in range(4))
    questions.write_text("\n".join(map(json.dumps, lines)))
    with serving(Upstream().app()) as url:
        roi(
            "record", "stub", "--endpoint", f"{url}/v1", "--backend", "vllm", "--questions", str(questions), "--samples", "1",
            *("--out", str(out), "--grader", "number", "--tier", "now=0+10", "--tier", "long=30+10"),
        )  # fmt: skip
    journal, imported = out.with_suffix(".journal.jsonl"), tmp_path / "i.parquet"
    with pytest.raises(ConfigError, match="its answers are not judged"):
        roi("import", str(journal), "--out", str(imported))
    with pytest.raises(ConfigError, match="only --grader can be chosen"):
        roi("import", str(journal), "--out", str(imported), "--grader", "number", "--unit", "tokens")
    assert not imported.exists()
    roi("import", str(journal), "--out", str(imported), "--grader", "number")
    assert OutcomeTable.read(imported).rows.equals(OutcomeTable.read(out).rows)
