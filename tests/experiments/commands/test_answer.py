"""`roi answer` and its neighbours: every line has its row, one process spends, and whatever stops a run says how to go on."""

from __future__ import annotations

import codecs
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

pytest.importorskip("uvicorn", reason="needs the extra [live]")

from experiments.config import ConfigError
from roi_env.answering.ledger import Ledger
from roi_env.answering.questions import QuestionError, read_questions
from roi_env.sources.packaged import PACKAGED
from tests.commands import roi
from tests.processes import child
from tests.upstream import Upstream, serving

TIERS = ("--tier", "now=0+10", "--tier", "long=40+10")
COMMAND = [sys.executable, "-m", "experiments"]


def lines(texts: list[str]) -> str:
    return "".join(json.dumps({"question": text}) + "\n" for text in texts)


def command(url: str, source: Path | str, out: Path, *more: str, budget: str = "2000") -> list[str]:
    options = ["--endpoint", f"{url}/v1", "--model", "stub", "--backend", "vllm", "--agent", "fixed-2", *TIERS]
    return ["answer", str(source), "--budget", budget, "--out", str(out), *options, *more]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def audit(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return found


TEXTS = ["one?", "two?", "one?", "three?", "two?", "one?"]


@pytest.mark.parametrize(
    ("name", "data", "numbers"),
    [
        ("q.jsonl", lines(TEXTS).encode(), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", lines(TEXTS).rstrip().encode(), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", codecs.BOM_UTF8 + lines(TEXTS).encode(), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", lines(TEXTS[:3]).encode() + codecs.BOM_UTF8 + lines(TEXTS[3:]).encode(), [1, 2, 3, 4, 5, 6]),
        ("q.JSONL", lines(TEXTS).encode("utf-16"), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", lines(TEXTS).replace("\n", "\r\n").encode(), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", lines(TEXTS).replace("\n", "\r").encode(), [1, 2, 3, 4, 5, 6]),
        ("q.jsonl", b"\n \n" + lines(TEXTS).replace("\n", "\n\n").encode(), [3, 5, 7, 9, 11, 13]),
        ("q.csv", codecs.BOM_UTF8 + ("question\r\n" + "\r\n".join(TEXTS)).encode(), [2, 3, 4, 5, 6, 7]),
        ("q.json", codecs.BOM_UTF8 + json.dumps([{"question": text} for text in TEXTS]).encode(), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_every_line_has_its_row_with_its_number(tmp_path: Path, name: str, data: bytes, numbers: list[int]) -> None:
    source = tmp_path / name
    source.write_bytes(data)
    upstream = Upstream(answer=lambda prompt: f"about {prompt}")
    with serving(upstream.app()) as url:
        output = roi(*command(url, source, tmp_path / "a"))
    found = rows(tmp_path / "a")
    assert [row["line"] for row in found] == numbers
    assert [row["answer"] for row in found] == [f"about {text}" for text in TEXTS]
    assert [row["position"] for row in found] == list(range(6))
    assert "3 rows have the id of an earlier one" in output
    assert "every row is answered by itself" in output
    assert len(upstream.seen) == 6
    assert audit(tmp_path / "a")["charged"] == upstream.generated


def test_equal_ids_of_different_questions_are_answered_and_recorded_ones_refused(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    texts = [("1", "one?"), ("1", "two?"), ("2", "one?"), ("1", "one?")]
    source.write_text("".join(json.dumps({"id": n, "question": text, "answer": "x"}) + "\n" for n, text in texts))
    with serving(Upstream(answer=lambda prompt: f"about {prompt}").app()) as url:
        roi(*command(url, source, tmp_path / "a", "--window", "3"))
    found = rows(tmp_path / "a")
    assert [(row["question_id"], row["answer"][6:]) for row in found] == texts
    with pytest.raises(QuestionError, match="row 2: id '1' names two questions"):
        read_questions(str(source))
    source.write_text(lines(TEXTS))
    said: list[str] = []
    assert len(read_questions(str(source), answers=False, say=said.append)) == 3
    assert said == [f"{source}: 3 rows have the id of an earlier one (rows 3, 5, 6): they are one question each"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("q.jsonl", b'{"question": "a"}\n{"question": \n', "line 2 is not JSON"),
        ("q.jsonl", b'{"question": "a"}\n"b"\n', "row 2 must be an object"),
        ("q.jsonl", b'{"question": "a"}\n[1]\n', "row 2 must be an object"),
        ("q.jsonl", b"[" * 200_000, "line 1 is not JSON"),
        ("q.jsonl", b"\xff\xff\n", "q.jsonl: line 1 is not UTF-8"),
        ("q.json", b'{"question": "a"}', "must be a list"),
        ("q.json", b'["a"]', "row 1 must be an object"),
        ("q.csv", b"a;b\n1;2;3\n", "which column is the text"),
        ("q.csv", b"a,b\n1,2,3\n", "which column is the text"),
        ("q.jsonl", codecs.BOM_UTF8, "no questions"),
    ],
)
def test_files_that_cannot_be_read_name_the_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    source = tmp_path / name
    source.write_bytes(data)
    with pytest.raises(QuestionError, match=message):
        read_questions(str(source), answers=False)


def test_one_process_answers_into_a_folder(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(6)]))
    upstream = Upstream(latency=0.4)
    with serving(upstream.app()) as url:
        with child([*COMMAND, *command(url, source, out)], stdout=subprocess.DEVNULL) as first:
            wait_for(lambda: upstream.seen, first)
            with pytest.raises(ConfigError, match=f"in use by process {first.pid} on"):
                roi(*command(url, source, out, "--resume"))
            assert first.wait() == 0
        roi(*command(url, source, out, "--resume"))
    assert len(upstream.seen) == 6, "nothing is asked twice"
    assert len(rows(out)) == 6
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "audit.json", "ledger.jsonl"]


def wait_for(what: Any, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, "the command ended"
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "window"), [(signal.SIGTERM, "1"), (signal.SIGINT, "3")])
def test_a_signal_leaves_what_there_is_and_resume_goes_on(tmp_path: Path, number: signal.Signals, window: str) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(9)]))
    upstream = Upstream(latency=0.3)
    with serving(upstream.app()) as url:
        asked = command(url, source, out, "--window", window)
        with child([*COMMAND, *asked], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            wait_for(lambda: len(upstream.seen) >= 4, process)
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "--resume goes on" in output
        assert "Traceback" not in output
        before = rows(out)
        assert 1 <= len(before) < 9
        assert audit(out)["interrupted"]
        assert all(row["charged"] == row["reserved"] == 51 for row in before if row["error"] == "interrupted")
        ledger = Ledger(out / "ledger.jsonl")
        ledger.close()
        assert ledger.charged == audit(out)["charged"]
        roi(*asked, "--resume")
    assert [row["line"] for row in rows(out)] == list(range(1, 10))
    for then, now in zip(before, rows(out), strict=False):
        assert {**then, "remaining": 0} == {**now, "remaining": 0}, "what is decided stays"
    assert upstream.generated <= audit(out)["charged"]


def test_a_recording_ends_at_sigterm_as_at_ctrl_c(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text("".join(json.dumps({"question": f"{n}?", "answer": "42"}) + "\n" for n in range(12)))
    upstream = Upstream(latency=0.3)
    with serving(upstream.app()) as url:
        options = ["--endpoint", f"{url}/v1", "--backend", "vllm", "--questions", str(source), "--samples", "1", *TIERS]
        asked = ["record", "stub", *options, "--out", str(tmp_path / "t.parquet"), "--concurrency", "2"]
        with child([*COMMAND, *asked], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            wait_for(lambda: len(upstream.seen) >= 4, process)
            process.terminate()
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "the same command goes on" in output
        assert not (tmp_path / "t.journal.jsonl.lock").exists()
        upstream.latency = 0.0
        assert "24 of 24 done" in roi(*asked)


def test_other_budgets_tiers_and_more_questions_go_on(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(8)]))
    upstream = Upstream()
    with serving(upstream.app()) as url:
        roi(*command(url, source, out, budget="60"))
        statuses = [row["status"] for row in rows(out)]
        assert statuses.count("not reached") > 4
        spent = audit(out)["charged"]
        output = roi(*command(url, source, out, "--resume", budget="150"))
        assert "goes on with other settings: budget was 60, is now 150" in output
        assert 60 < audit(out)["charged"] <= 150
        source.write_text(lines([f"{n}?" for n in range(12)]))
        more = command(url, source, out, "--resume", budget="2000")
        more[more.index("long=40+10")] = "long=30+10"
        output = roi(*more, "--tier", "max=90+10")
        assert "tiers was" in output
        found = rows(out)
        assert [row["line"] for row in found] == list(range(1, 13))
        assert {row["status"] for row in found} <= {"answered", "cut"}
        assert audit(out)["charged"] == upstream.generated > spent
        assert roi(*more, "--tier", "max=90+10").count("other settings") == 0
        assert rows(out) == found
        source.write_text(lines(["another?", *[f"{n}?" for n in range(1, 12)]]))
        with pytest.raises(ConfigError, match=r"question 1 was .* when it was decided, it is .* now") as caught:
            roi(*more, "--tier", "max=90+10")
        assert "choose another place" in str(caught.value)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--model", "another"), 'model was "stub", is now "another"'),
        (("--prompt", "Say: {question}"), 'prompt was "{question}", is now "Say: {question}"'),
        (("--system", "Be brief."), 'system was null, is now "Be brief."'),
        (("--temperature", "0.5"), "temperature was null, is now 0.5"),
        (("--body", '{"top_p": 0.5}'), 'extra was {}, is now {"top_p": 0.5}'),
    ],
)
def test_answers_of_two_kinds_are_not_mixed(other: tuple[str, ...], named: str, tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(8)]))
    upstream = Upstream()
    with serving(upstream.app()) as url:
        roi(*command(url, source, out, budget="60"))
        before, asked = {path.name: path.read_bytes() for path in out.iterdir()}, len(upstream.seen)
        with pytest.raises(ConfigError, match="answers of tier 'now' would be of two kinds: ") as caught:
            roi(*command(url, source, out, "--resume", *other, budget="400"))
        assert named in str(caught.value)
        assert "choose another place" in str(caught.value)
        assert ({path.name: path.read_bytes() for path in out.iterdir()}, len(upstream.seen)) == (before, asked)
    with serving(upstream.app()) as moved:
        roi(*command(moved, source, out, "--resume", budget="400"))
    assert {row["status"] for row in rows(out)} <= {"answered", "cut"}


def test_a_tier_of_a_file_keeps_its_model_and_others_may_come(tmp_path: Path) -> None:
    source, out, tiers = tmp_path / "q.jsonl", tmp_path / "a", tmp_path / "tiers.yaml"
    source.write_text(lines([f"{n}?" for n in range(8)]))

    def written(url: str, **models: str) -> None:
        made = [f"{{name: {n}, endpoint: {url}/v1, backend: vllm, model: {m}, cap: 40}}" for n, m in models.items()]
        tiers.write_text("tiers:\n" + "".join(f"- {one}\n" for one in made))

    asked = ["answer", str(source), "--out", str(out), "--tiers", str(tiers), "--agent", "fixed-1", "--budget"]
    with serving(Upstream().app()) as url:
        written(url, one="small")
        roi(*asked, "60")
        written(url, one="other")
        with pytest.raises(ConfigError, match='tier \'one\' would be of two kinds: model was "small", is now "other"'):
            roi(*asked, "400", "--resume")
        written(url, two="other")
        roi(*asked, "100", "--resume")
        written(url, one="other", two="other")  # it was left out meanwhile
        with pytest.raises(ConfigError, match='tier \'one\' would be of two kinds: model was "small", is now "other"'):
            roi(*asked, "400", "--resume")
        written(url, one="small", two="other")
        roi(*asked, "400", "--resume")
    assert {row["status"] for row in rows(out)} == {"answered"}


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(8)]))
    with serving(Upstream().app()) as url:
        roi(*command(url, source, out, budget="60"))
        first, *others = (out / "ledger.jsonl").read_text().splitlines(keepends=True)
        earlier = {name: value for name, value in json.loads(first).items() if name != "made_by"}
        (out / "ledger.jsonl").write_text(json.dumps(earlier) + "\n" + "".join(others))
        assert "goes on with other settings" in roi(
            *command(url, source, out, "--resume", "--model", "b", budget="400")
        )
        with pytest.raises(ConfigError, match='model was "b", is now "stub"'):
            roi(*command(url, source, out, "--resume", budget="400"))


def test_a_ledger_that_two_processes_wrote_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(6)]))
    upstream = Upstream()
    with serving(upstream.app()) as url:
        roi(*command(url, source, out))
        ledger = out / "ledger.jsonl"
        whole = ledger.read_bytes().splitlines(keepends=True)
        # Both asked questions 3 to 6; the second one died as it wrote its last line.
        damaged = b"".join([*whole, *whole[5:-1], whole[-1][:40]])
        ledger.write_bytes(damaged)
        output = roi(*command(url, source, out, "--resume"))
    assert "was damaged" in output
    assert "two processes wrote" in output
    assert (out / "ledger.jsonl.damaged-1").read_bytes() == damaged
    found = audit(out)
    assert found["charged"] >= 24 * 6 + 24 * 3 + 51
    assert found["charged"] == sum(row["charged"] for row in rows(out)) + found["lost"]
    assert found["by_status"] == {"answered": 6}
    assert len(upstream.seen) == 6


def test_an_endpoint_that_wants_rest_stops_the_run_and_resume_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(9)]))
    for window in ("1", "4"):
        out = tmp_path / window
        upstream = Upstream(["ok", "ok", "429-after"], retry_after="3600")
        with serving(upstream.app()) as url:
            output = roi(*command(url, source, out, "--window", window), code=1)
            assert "Stopped: " in output
            assert "429" in output
            assert "--resume goes on" in output
            found = audit(out)
            assert found["charged"] == upstream.generated
            assert "429" in found["held"]
            assert found["by_status"].get("not reached") is None
            roi(*command(url, source, out, "--window", window, "--resume"))
        assert [row["status"] for row in rows(out)] == ["answered"] * 9
        assert audit(out)["charged"] == upstream.generated == 9 * 24


@pytest.mark.parametrize("window", ["1", "4"])
def test_an_endpoint_that_is_not_there_stops_the_run_and_resume_goes_on(tmp_path: Path, window: str) -> None:
    """Nothing is asked in vain, and no question is lost to an endpoint that was down."""
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{n}?" for n in range(9)]))
    options = ("--window", window, "--retries", "0", "--decision-cost", "3")
    output = roi(*command("http://127.0.0.1:9", source, out, *options), code=1)
    assert "Stopped: no connection" in output
    assert "--resume goes on" in output
    assert audit(out)["charged"] == 0
    upstream = Upstream()
    with serving(upstream.app()) as url:
        roi(*command(url, source, out, *options, "--resume"))
    assert [row["status"] for row in rows(out)] == ["answered"] * 9
    assert audit(out)["charged"] == upstream.generated + 9 * 3


def test_a_run_without_an_answer_says_why_and_fails(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text(lines(["one?", "two?"]))
    with serving(Upstream(["422", "422"]).app()) as url:
        output = roi(*command(url, source, tmp_path / "a"), code=1)
    assert "2 error of 2 questions" in output
    assert "2 x HTTP 422" in output or "2 x 422" in output
    source.write_text(lines([f"{number}?" for number in range(9)]))
    login = Route("/{path:path}", lambda request: Response("<html>", media_type="text/html"), methods=["POST"])
    with serving(Starlette(routes=[login])) as url:  # what nobody can read takes the budget
        output = roi(*command(url, source, tmp_path / "b", budget="60"), code=1)
    assert "2 error, 7 not reached of 9 questions" in output
    silent = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    with serving(Upstream(script=[silent]).app()) as url:
        output = roi(*command(url, source, tmp_path / "c"))
    assert "9 answered of 9 questions (9 of the answers without a text)" in output


def test_answers_that_nobody_can_judge_are_told_once_and_counted(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text("".join(json.dumps({"question": f"{n}?", "answer": "Paris"}) + "\n" for n in range(5)))
    with serving(Upstream().app()) as url:
        output = roi(*command(url, source, tmp_path / "a", "--grader", "number"))
        with pytest.raises(ConfigError, match=r"No module named 'my_own'.*PYTHONPATH"):
            roi(*command(url, source, tmp_path / "b", "--grader", "my_own:judge"))
    assert output.count("was not judged and counts as wrong: question") == 1
    assert "5 answers were not judged and count as wrong" in output
    assert not [one for one in recwarn if "judged" in str(one.message)]


@pytest.mark.parametrize("status", [401, 402, 404, 307])
def test_what_is_no_fault_of_a_question_stops_the_run_and_resume_goes_on(status: int, tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{number}?" for number in range(5)]))
    where = {"location": "http://other.example/v1"}
    answer = Route("/{path:path}", lambda request: Response("no", status, where), methods=["POST"])
    with serving(Starlette(routes=[answer])) as url:
        output = roi(*command(url, source, out), code=1)
    said = (
        "redirects are not followed, give the address that it names: http://other.example/v1" if status == 307 else "no"
    )
    assert f"Stopped: HTTP {status}: {said}." in output
    assert "--patience" not in output, "no waiting mends it"
    assert (audit(out)["charged"], len(rows(out))) == (0, 1)
    with serving(Upstream().app()) as url:
        roi(*command(url, source, out, "--resume"))
    assert [row["status"] for row in rows(out)] == ["answered"] * 5


def test_a_decided_question_whose_text_changed_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"

    def write(*texts: str) -> None:
        source.write_text("".join(json.dumps({"id": n, "question": text}) + "\n" for n, text in enumerate(texts)))

    with serving(Upstream().app()) as url:
        write("one?", "two?")
        roi(*command(url, source, out))
        write("one?", "another?", "three?")
        with pytest.raises(ConfigError, match="question 2, '1', had another text when it was decided"):
            roi(*command(url, source, out, "--resume"))
        write("one?", "two?", "three?")
        roi(*command(url, source, out, "--resume"))
    assert [row["question_id"] for row in rows(out)] == ["0", "1", "2"]
    ledger = out / "ledger.jsonl"
    first, rest = ledger.read_text().split("\n", 1)
    kept = [line for line in rest.splitlines() if "settings" not in line]
    earlier = {**json.loads(first), "questions": ["0", "1", "2"]}
    ledger.write_text("\n".join([json.dumps(earlier), *kept, ""]))
    with serving(Upstream().app()) as url:  # a ledger of an earlier version names questions alone
        roi(*command(url, source, out, "--resume"))
    assert len(rows(out)) == 3


def test_a_full_disk_is_named_in_a_line_and_resume_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "q.jsonl", tmp_path / "a"
    source.write_text(lines([f"{number}?" for number in range(40)]))
    upstream = Upstream()
    with serving(upstream.app()) as url:
        limited = f"ulimit -f 4; exec {shlex.join([*COMMAND, *command(url, source, out)])}"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"roi: {out / 'ledger.jsonl'}: File too large\n")
        roi(*command(url, source, out, "--resume"))
        assert len(rows(out)) == 40
        assert audit(out)["charged"] >= upstream.generated
        source.write_text(
            "".join(json.dumps({"question": f"{number}?", "answer": "42"}) + "\n" for number in range(40))
        )
        options = ["--endpoint", f"{url}/v1", "--questions", str(source), "--out", str(tmp_path / "t.parquet"), *TIERS]
        limited = f"ulimit -f 4; exec {shlex.join([*COMMAND, 'record', 'stub', *options, '--samples', '1'])}"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"roi: {tmp_path / 't.journal.jsonl'}: File too large\n")
        assert "80 of 80 done" in roi("record", "stub", *options, "--samples", "1")


def test_a_recording_goes_on_elsewhere_and_with_further_tiers_but_not_with_other_answers(tmp_path: Path) -> None:
    source = tmp_path / "q.jsonl"
    source.write_text("".join(json.dumps({"question": f"{n}?", "answer": "42"}) + "\n" for n in range(4)))

    def asked(url: str, *tiers: str) -> list[str]:
        options = ["--endpoint", f"{url}/v1", "--backend", "vllm", "--questions", str(source), "--samples", "1"]
        return ["record", "stub", *options, "--out", str(tmp_path / "t.parquet"), "--grader", "number", *tiers]

    first, second = Upstream(), Upstream()
    with serving(first.app()) as url:
        assert "8 of 8 done" in roi(*asked(url, *TIERS))
        journal = tmp_path / "t.journal.jsonl"
        writing = Ledger(journal, Ledger(journal).settings)
        roi("regrade", str(journal), "--out", str(tmp_path / "r.parquet"), "--grader", "exact")
        with pytest.raises(ConfigError, match="in use by process"):
            roi(*asked(url, *TIERS))
        writing.close()
    with serving(second.app()) as url:
        output = roi(*asked(url, *TIERS, "--tier", "max=90+10"))
        assert "goes on with other settings: url was" in output
        assert "12 of 12 done" in output
        for more, what in (
            (["--temperature", "0.1"], "temperature was 0.7"),
            (["--system", "brief"], "system was null"),
        ):
            with pytest.raises(ConfigError, match=f"other settings: {what}"):
                roi(*asked(url, *TIERS, "--tier", "max=90+10"), *more)
        with pytest.raises(ConfigError, match="other settings: tiers was"):
            roi(*asked(url, "--tier", "now=0+10", "--tier", "long=41+10"))
    assert (len(first.seen), len(second.seen)) == (8, 4)


def test_budgets_are_written_as_everywhere(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"text": "1 + 1"}\n{"text": "2 + 2"}\n')

    def told(budget: str) -> str:
        return roi("answer", str(questions), "--budget", budget, "--dry-run")

    assert told("medium") == told("0.3")
    assert "2 questions, 70 tokens" in told("70")
    for text in ("²", "٥", "x", "", "9" * 5000, "nan", "0", "-1"):
        with pytest.raises(ConfigError, match="budget"):
            told(text)


def test_beliefs_of_a_table_with_more_tiers_than_are_offered(tmp_path: Path) -> None:
    source = tmp_path / "gsm8k.jsonl"
    source.write_text(lines(["one?", "two?"]))

    def told(*tiers: str) -> str:
        offered = [word for tier in tiers for word in ("--tier", f"{tier}=0+{tier}")]
        beliefs = ["--table", str(PACKAGED["paper"]), "--predictor", "none"]
        return roi("answer", str(source), "--budget", "999", "--agent", "resolve", *offered, *beliefs, "--dry-run")

    assert "tiers 256, 1024, agent resolve" in told("256", "1024")
    with pytest.raises(ConfigError, match="name them alike"):
        told("256", "300")
