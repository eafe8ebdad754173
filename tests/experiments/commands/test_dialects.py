"""`roi record` and `roi answer` with models in this process that reason in the open, and with such that think in a block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra [llm]")
pytest.importorskip("math_verify", reason="needs the extra [live]")


from experiments.config import ConfigError
from roi_env.answering.dialect import INSTRUCT
from roi_env.sources.outcome_tables import OutcomeTable
from tests.commands import roi
from tests.servers import MODEL
from tests.tiny_models import tiny_model

FORCE = "\n12: "
OPEN = ["--tier", "now=0", "--tier", "short=20", "--tier", "long=48", "--answer-tokens", "12", "--force", FORCE]
CLOSED = ["--tier", "now=0", "--tier", "short=8", "--tier", "long=30", "--answer-tokens", "6"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"id": str(i), "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox"])
@pytest.mark.parametrize("template", ["instruct", "thinking"])
def test_a_table_of_any_model(tmp_path: Path, questions: Path, architecture: str, template: str) -> None:
    model, out = tiny_model(tmp_path / "model", architecture, template), tmp_path / "made.parquet"
    record = [
        "record",
        str(model),
        "--questions",
        str(questions),
        "--grader",
        "number",
        "--samples",
        "2",
        "--threads",
        "1",
    ]
    record += ["--out", str(out), *(OPEN if template == "instruct" else CLOSED)]
    assert "24 generations" in roi(*record)
    table = OutcomeTable.read(out)
    caps = {"now": 12, "short": 20, "long": 48} if template == "instruct" else {"now": 6, "short": 15, "long": 37}
    assert table.level_edges == {"model": caps}
    assert table.pairing
    code, names = table.codes("tier")
    assert all(
        tokens <= caps[str(names[tier])] for tier, tokens in zip(code, table.numbers("tokens").tolist(), strict=True)
    )
    settings, *lines = map(json.loads, out.with_suffix(".journal.jsonl").read_text().splitlines())
    assert ("dialect" in json.dumps(settings)) == (template == "instruct")
    assert len(lines) == 8
    if template == "instruct":
        assert all(FORCE in line["tiers"][0]["text"] for line in lines), "at once: forced from the start"
    before = out.read_bytes()
    roi(*record)
    assert out.read_bytes() == before
    more = record.copy()
    more[more.index("--samples") + 1] = "3"
    assert "36 generations" in roi(*more), "a longer recording goes on"


def test_what_generations_depend_on_may_not_change(tmp_path: Path, questions: Path) -> None:
    model, out = tiny_model(tmp_path / "model"), tmp_path / "made.parquet"
    record = ["record", str(model), "--questions", str(questions), "--samples", "1", "--threads", "1", "--limit", "1"]
    record += ["--out", str(out), *OPEN, "--dtype", "float32"]
    roi(*record)
    for change in (
        ["--force", "\nSo: "],
        ["--prompt", "{question} Think."],
        ["--system", "Be brief."],
        ["--dtype", "bfloat16"],
        ["--dialect", "thinking"],
    ):
        with pytest.raises(ConfigError, match=r"other settings|no single token '</think>'.*`instruct`"):
            roi(*record, *change)
    template = model / "chat_template.jinja"
    template.write_text("Be brief. " + template.read_text())
    with pytest.raises(ConfigError, match="other settings: reads was"):
        roi(*record)
    journal = out.with_suffix(".journal.jsonl")
    earlier, *lines = journal.read_text().splitlines(keepends=True)
    del (settings := json.loads(earlier))["reads"]
    journal.write_text("".join([json.dumps(settings) + "\n", *lines]))
    assert "goes on with other settings: reads was absent" in roi(*record)


AWAY = ["--endpoint", "http://127.0.0.1:9/v1"]
TINYLM = str(MODEL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tier", "a=13"], "tier 'a=13'.*its 13 tokens .* give at least 14"),
        (
            ["--tier", "a=0", "--tier", "b=40+35", "--tier", "c=30"],
            r"got a=0\+",
        ),
        (["--dialect", "chatty"], "unknown dialect 'chatty'; there are auto, thinking, instruct"),
        (["--dtype", "int3"], "dtype must be auto, float32 or bfloat16"),
        (["--prompt", "no place"], r"must hold \{question\}"),
        ([*AWAY, "--force", "x"], "--force at an endpoint needs --dialect instruct"),
        ([*AWAY, "--dialect", "instruct"], "at an endpoint needs --tokenizer FOLDER"),
        ([*AWAY, "--dialect", "thinking"], "--dialect thinking belongs to a model in this process"),
        ([*AWAY, "--dialect", "chatty"], "unknown dialect 'chatty'"),
        ([*AWAY, "--dtype", "float32"], "--dtype belongs to a model in this process"),
        ([*AWAY, "--tokenizer", "/nowhere", "--dialect", "instruct"], "--tokenizer /nowhere"),
        (
            [*AWAY, "--tokenizer", TINYLM, "--dialect", "instruct", "--backend", "openai"],
            "openai is not known to go on",
        ),
        (
            [*AWAY, "--tokenizer", TINYLM, "--dialect", "instruct", "--tier", "a=0+8"],
            "tier 'a' keeps 8 tokens .* at least 13",
        ),
    ],
)
def test_wrong_arguments_say_what_is_wrong(tmp_path: Path, questions: Path, arguments: list[str], message: str) -> None:
    model = tiny_model(tmp_path / "model")
    record = [
        "record",
        str(model),
        "--questions",
        str(questions),
        "--answer-tokens",
        "12",
        "--out",
        str(tmp_path / "x.parquet"),
    ]
    with pytest.raises(ConfigError, match=message):
        roi(*record, *arguments)


def test_a_forced_text_that_leaves_no_answer_is_refused(tmp_path: Path, questions: Path) -> None:
    model = tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"tier 'now' keeps 4 tokens .* has \d+, so at least \d+ are needed"):
        roi(
            "record",
            str(model),
            "--questions",
            str(questions),
            "--tier",
            "now=0+4",
            "--out",
            str(tmp_path / "x.parquet"),
        )


def test_default_tiers_are_the_papers(tmp_path: Path, questions: Path) -> None:
    model = tiny_model(tmp_path / "model")
    shown = roi("record", str(model), "--questions", str(questions), "--out", str(tmp_path / "x.parquet"), "--dry-run")
    assert "4 questions x 8 samples x 3 tiers" in shown
    assert f"{4 * 8 * (256 + 512 + 1024):,}" in shown


@pytest.mark.parametrize("template", ["instruct", "thinking"])
def test_questions_answered_under_a_budget(tmp_path: Path, questions: Path, template: str) -> None:
    model, out = tiny_model(tmp_path / "model", dialect=template), tmp_path / "answers"
    tiers = OPEN if template == "instruct" else CLOSED
    roi(
        "answer",
        str(questions),
        "--budget",
        "120",
        "--model",
        str(model),
        "--agent",
        "fixed(tier=2)",
        "--out",
        str(out),
        *tiers,
    )
    audit = json.loads((out / "audit.json").read_text())
    assert audit["charged"] <= 120
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 4


def test_the_prompt_asks_for_reasoning_and_a_box() -> None:
    assert INSTRUCT.asked("1 + 1?").startswith("1 + 1?\n")
    assert r"\boxed{}" in INSTRUCT.asked("1 + 1?")
