"""`roi record` and `roi answer` against endpoints whose answers fail, hide what they cost, or die."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra [live]")

import pyarrow.parquet as pq
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.config import ConfigError
from roi_env.answering.ledger import Ledger
from roi_env.sources.outcome_tables import OutcomeTable
from tests.commands import roi
from tests.processes import child
from tests.upstream import Reset, Upstream, serving

TIERS = ("--tier", "now=0+10", "--tier", "long=30+10")
GOOD: dict[str, Any] = {
    "choices": [{"message": {"content": "36"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "q.jsonl"
    lines = ({"id": f"q{n}", "question": f"number {n}: six times six?", "answer": "36"} for n in range(4))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def recording(url: str, source: str, out: Path, *more: str) -> tuple[str, ...]:
    command = ("record", "stub", "--endpoint", f"{url}/v1", "--questions", source, "--samples", "1", "--out", str(out))
    return (*command, "--grader", "number", *TIERS, *more)


def metadata(out: Path) -> Any:
    return json.loads(pq.read_schema(out).metadata[b"seeds"])


FAILED: dict[str, Any] = {
    "finish reason": {"choices": [{"message": {"content": ""}, "finish_reason": "error"}], "usage": {"completion_tokens": 0}},
    "no choices": {"choices": [], "usage": {"completion_tokens": 0}},
    "error": {"error": {"message": "no such thing", "code": 404}},
    "error in a choice": {
        "choices": [{"message": {"content": "36"}, "finish_reason": "stop", "error": {"message": "gone", "code": 502}}],
        "usage": {"completion_tokens": 5},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILED)
def test_failed_answers_are_errors_and_are_asked_again(kind: str, source: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    upstream = Upstream(script=[FAILED[kind]])
    with serving(upstream.app()) as url:
        with pytest.raises(ConfigError, match="no answer came"):
            roi(*recording(url, source, out))
        assert not out.exists()
        assert len(upstream.seen) == 8
        upstream.script = [GOOD]
        with pytest.raises(ConfigError, match="no answer came"):
            roi(*recording(url, source, out, "--resume"))
        assert len(upstream.seen) == 8, "an error is a result"
        output = roi(*recording(url, source, out, "--retry-errors"))
    assert "8 of 8 done, 0 permanent errors" in output
    rows = OutcomeTable.read(out).rows.to_pylist()
    assert [(row["correct"], row["tokens"]) for row in rows] == [(1, 3)] * 8
    ledger = Ledger(out.with_suffix(".journal.jsonl"))
    ledger.close()
    assert ledger.charged == 8 * 3 + 8 * FAILED[kind].get("usage", {}).get("completion_tokens", 0)


@pytest.mark.parametrize("text", [{}, {"text": "\n"}])
def test_failures_that_a_journal_holds_as_answers_are_asked_again(
    text: dict[str, str], source: str, tmp_path: Path
) -> None:
    out = tmp_path / "t.parquet"
    journal = out.with_suffix(".journal.jsonl")
    upstream = Upstream(script=[FAILED["finish reason"], GOOD])
    with serving(upstream.app()) as url:
        roi(*recording(url, source, out))
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        for line in lines:
            if "error" in line.get("facts", {}):
                line["facts"] = {**text, "tokens": 0, "finish": "stop", "counted": "server", "attempts": 1}
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert "1 permanent errors" in roi(*recording(url, source, out))
        assert OutcomeTable.read(out).num_rows == 7
        assert "0 permanent errors" in roi(*recording(url, source, out, "--retry-errors"))
    assert OutcomeTable.read(out).num_rows == 8
    assert metadata(out) == {"seed": 0, "with": 8, "without": 0, "why": None}


def test_some_failed_answers_have_no_row(source: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    with serving(Upstream(script=[FAILED["finish reason"], GOOD]).app()) as url:
        output = roi(*recording(url, source, out))
    assert "8 of 8 done, 1 permanent errors" in output
    assert "1 x it ended with 'error'" in output
    assert "--retry-errors" in output
    assert OutcomeTable.read(out).num_rows == 7


def test_what_contradicts_is_in_the_table(source: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    usage = {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623}
    with serving(Upstream(script=[{**GOOD, "usage": usage}]).app()) as url:
        output = roi(*recording(url, source, out))
    assert "8 answers: the usage says fewer tokens than its total (column note)" in output
    rows = OutcomeTable.read(out).rows.to_pylist()
    assert {(row["tokens"], row["note"]) for row in rows} == {
        (603, "the usage says fewer tokens than its total (198 instead of 603)")
    }
    with serving(Upstream(script=[GOOD]).app()) as url:
        roi(*recording(url, source, tmp_path / "u.parquet"))
    assert {row["note"] for row in OutcomeTable.read(tmp_path / "u.parquet").rows.to_pylist()} == {None}


def test_words_of_an_endpoint_that_cannot_be_printed(source: str, tmp_path: Path) -> None:
    """Half a character in an error, a refusal, a reason and a text: printed and tabulated all the same."""
    half = "so \ud83d [/x]"
    usage = {"completion_tokens": 3}
    refused = {"message": {"content": None, "refusal": half}, "finish_reason": "stop"}
    unknown = {"message": {"content": f"36 {half}"}, "finish_reason": half}
    script: list[Any] = [
        {"error": {"code": 400, "message": half}},
        {"choices": [refused], "usage": usage},
        {"choices": [unknown], "usage": usage},
    ]
    out = tmp_path / "t.parquet"
    with serving(Upstream(script=script).app()) as url:
        output = roi(*recording(url, source, out))
    assert "1 x so \ufffd [/x]" in output
    notes = [row["note"] for row in OutcomeTable.read(out).rows.to_pylist()]
    assert notes.count("refusal: so \ufffd [/x]") == 1
    assert len(notes) == 7


@pytest.mark.parametrize("kind", FAILED)
def test_failed_answers_are_errors_under_a_budget_too(kind: str, source: str, tmp_path: Path) -> None:
    with serving(Upstream(script=[FAILED[kind], GOOD]).app()) as url:
        asked = ("answer", source, "--budget", "1000", "--endpoint", f"{url}/v1", "--model", "stub", *TIERS)
        roi(*asked, "--agent", "fixed-2", "--grader", "number", "--out", str(tmp_path / "a"))
    rows = [json.loads(line) for line in (tmp_path / "a" / "answers.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["error", "answered", "answered", "answered"]
    assert [row["correct"] for row in rows] == [None, True, True, True], "a failure is no wrong answer"
    assert rows[0]["error"]
    assert [row["charged"] for row in rows] == [FAILED[kind].get("usage", {}).get("completion_tokens", 0), 3, 3, 3]


@pytest.mark.parametrize("details", [{}, {"completion_tokens_details": {"reasoning_tokens": 405}}])
def test_a_budget_holds_against_what_totals_imply(details: dict[str, Any], source: str, tmp_path: Path) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623, **details}
    upstream = Upstream(script=[{**GOOD, "usage": usage}])
    tiers = ("--tier", "now=0+300", "--tier", "long=400+300")
    with serving(upstream.app()) as url:
        asked = ("answer", source, "--budget", "1000", "--endpoint", f"{url}/v1", "--model", "stub", *tiers)
        roi(*asked, "--agent", "fixed-2", "--out", str(tmp_path / "a"))
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert audit["charged"] == 603 * len(upstream.seen)
    assert len(upstream.seen) == 2, "a third answer would cost what is not there"
    assert (audit["remaining"], audit["overshoot"], audit["within"]) == (0, 603 - 397, True)
    assert audit["by_status"]["not reached"] == 2


def test_an_unfinished_thought_whose_block_the_prompt_opened_is_no_answer(source: str, tmp_path: Path) -> None:
    """Nothing in the text says so: other answers of the recording do."""

    def said(content: str, finish: str) -> dict[str, Any]:
        return {**GOOD, "choices": [{"message": {"content": content}, "finish_reason": finish}]}

    cut, whole = said(r"so \boxed{36}? wait", "length"), said(r"so </think>\boxed{36}", "stop")
    for name, script, right in (("opened", [cut] * 7 + [whole], 5), ("not opened", [cut], 8)):
        out = tmp_path / f"{name}.parquet"
        with serving(Upstream(script=script).app()) as url:
            output = roi(*recording(url, source, out, "--concurrency", "1"))
        rows = OutcomeTable.read(out).rows.to_pylist()
        assert sum(row["correct"] for row in rows) == right
        assert len(rows) == 8
        wrong = [row for row in rows if not row["correct"]]
        assert all(row["tier"] == "long" and row["note"] == "an unfinished thought is no answer" for row in wrong)
        assert ("3 answers: an unfinished thought is no answer" in output) == bool(wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


def test_recordings_under_two_seeds_share_no_request(source: str, tmp_path: Path) -> None:
    upstream = Upstream(script=[GOOD])
    with serving(upstream.app()) as url:
        for seed in ("0", "1"):
            roi(*recording(url, source, tmp_path / f"{seed}.parquet", "--seed", seed, "--samples", "4"))
    sent = [(seen.prompt, seen.body["seed"]) for seen in upstream.seen]
    assert len(sent) == len({seed for _, seed in sent}) == 2 * 4 * 4 * 2
    assert metadata(tmp_path / "1.parquet") == {"seed": 1, "with": 32, "without": 0, "why": None}


def test_no_seeds_are_sent_where_none_shall_be(source: str, tmp_path: Path) -> None:
    out, upstream = tmp_path / "t.parquet", Upstream(script=[GOOD])
    with serving(upstream.app()) as url:
        roi(*recording(url, source, out, "--limit", "1"))
        output = roi(*recording(url, source, out, "--no-seeds"))
        assert "No seeds are sent, since request 2: --no-seeds" in output
        assert ["seed" in seen.body for seen in upstream.seen] == [True] * 2 + [False] * 6
        assert metadata(out) == {"seed": 0, "with": 2, "without": 6, "why": "--no-seeds"}
        roi(*recording(url, source, out, "--samples", "2"))
    assert ["seed" in seen.body for seen in upstream.seen[8:]] == [False] * 8, "a journal goes on as it was"
    roi("regrade", str(out.with_suffix(".journal.jsonl")), "--out", str(tmp_path / "r.parquet"), "--grader", "exact")
    imported = roi(
        "import", str(out.with_suffix(".journal.jsonl")), "--out", str(tmp_path / "i.parquet"), "--grader", "exact"
    )
    assert imported.startswith("Format: journal of roi record")
    assert OutcomeTable.read(tmp_path / "i.parquet").rows.equals(OutcomeTable.read(tmp_path / "r.parquet").rows)
    assert metadata(tmp_path / "r.parquet") == metadata(out)
    with pytest.raises(ConfigError, match="--no-seeds belongs to --endpoint"):
        roi("record", "anything", "--questions", source, "--out", str(tmp_path / "l.parquet"), "--no-seeds")


def test_a_backend_without_seeds_says_so(source: str, tmp_path: Path) -> None:
    from roi_env.answering.recording import LiveRecording

    for backend in ("anthropic", "openai-responses"):
        ledger = Ledger(tmp_path / f"{backend}.jsonl", {"backend": backend, "seed": 3})
        ledger.close()
        assert LiveRecording(ledger).seeds() == {
            "seed": None, "with": 0, "without": 0, "why": f"{backend} takes no seeds",
        }  # fmt: skip


def test_the_version_that_seeds_kill_is_named(source: str, tmp_path: Path) -> None:
    for number, (version, more) in enumerate(
        [("0.32.0", ()), ("0.32.0", ("--no-seeds",)), ("0.40.1", ()), (None, ()), ("0.32.0", ("--backend", "generic"))]
    ):
        with serving(Upstream(script=[GOOD], version=version).app()) as url:
            output = roi(*recording(url, source, tmp_path / f"{number}.parquet", "--backend", "vllm", *more))
        assert ("vLLM 0.32.0" in output) == (number == 0), output


DIES = """
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

left = int(sys.argv[2])
one_at_a_time = threading.Lock()  # the answer before the last request is on its way when the server dies

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        with one_at_a_time:
            self.answer()

    def answer(self):
        global left
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "seed" in body:
            left -= 1
            if left < 0:
                os._exit(1)
        data = sys.argv[3].encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""


@contextmanager
def dying(port: int, seeded: int) -> Iterator[subprocess.Popen[str]]:
    """A server that dies of its request number ``seeded`` + 1 with a seed."""
    command = [sys.executable, "-c", DIES, str(port), str(seeded), json.dumps(GOOD)]
    with child(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def test_a_server_that_dies_of_seeds_is_named_and_the_recording_goes_on_without(source: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = recording(f"http://127.0.0.1:{port}", source, out, "--retries", "1", "--concurrency", "2")
    with dying(port, 3) as server:
        output = roi(*command, code=1)
        assert server.wait() == 1
    assert "Stopped: the endpoint takes nothing" in output
    assert "It broke down over requests with a seed: connection lost" in output
    assert "0 permanent errors" in output, "what could not be asked is no error"
    assert OutcomeTable.read(out).num_rows == 3, "what came is kept"
    with dying(port, 0):
        output = roi(*command)
    assert "No seeds are sent, since request" in output
    assert "8 of 8 done, 0 permanent errors" in output
    assert OutcomeTable.read(out).num_rows == 8
    told = metadata(out)
    assert (told["seed"], told["with"], told["without"]) == (0, 3, 5)
    assert "the endpoint died of them (connection lost" in told["why"]


@pytest.mark.parametrize("how", ["says so", "engine", "cuts off"])
def test_a_server_that_stays_but_fails_every_seed(how: str, source: str, tmp_path: Path) -> None:
    """The same where something before the engine stays alive, or restarts it at once."""
    out = tmp_path / "t.parquet"
    said = {"says so": "CPU Generator does not use offset", "engine": "EngineCore encountered an issue."}.get(how)

    async def answer(request: Request) -> Response:
        if "seed" not in await request.json():
            return JSONResponse(GOOD)
        return JSONResponse({"error": {"message": said}}, 500) if said else Reset("{}      ")

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    with serving(app) as url:
        command = recording(url, source, out, "--backend", "vllm", "--retries", "1", "--concurrency", "2")
        with pytest.raises(ConfigError, match="no answer came"):
            roi(*command)
        output = roi(*command)
    assert "No seeds are sent, since request" in output
    assert "8 of 8 done, 0 permanent errors" in output
    told = metadata(out)
    assert (told["with"], told["without"]) == (0, 8)
    assert (said or "connection lost") in told["why"]


def test_an_endpoint_that_goes_away_without_seeds_is_no_error_of_any_question(source: str, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = recording(f"http://127.0.0.1:{port}", source, out, "--retries", "0")
    with pytest.raises(ConfigError, match="no answer came"):
        roi(*command)
    with dying(port, 99):
        output = roi(*command)
    assert "8 of 8 done, 0 permanent errors" in output
    assert metadata(out) == {"seed": 0, "with": 8, "without": 0, "why": None}
