"""Ledgers: one process writes at a time, and whatever happens to the file, nothing that was charged is forgotten."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from roi_env.answering.base import ThinkingTier
from roi_env.answering.ledger import JournalError, Ledger, LineFile
from tests.processes import child
from tests.roi_env.answering.booking import reserve

TIERS = [["now", 0, 10, None], ["long", 40, 10, None]]
SETTINGS: dict[str, Any] = {"budget": 5000, "decision_cost": 0, "tiers": TIERS}
MOST = ThinkingTier("long", 40, 10).most_tokens


def add(path: Path, seed: int, count: int, first: int = 0) -> None:
    """Enter and settle requests as a command does: up to three in flight, some beyond their cap, one left open."""
    rng = random.Random(seed)

    async def run() -> None:
        ledger = Ledger(path, SETTINGS)
        open_: list[Any] = []
        for place in range(first, first + count):
            most = rng.choice([10, MOST])
            open_.append(await reserve(ledger, (place, f"q{place}", 1 + (most > 10), 5000 - place), most))
            if rng.random() < 0.1:
                ledger.note({"skipped": [place, f"q{place}", 0, 9], "decision": 0})
            while len(open_) > 2 or (open_ and rng.random() < 0.6):
                entry = open_.pop(rng.randrange(len(open_)))
                tokens = rng.randint(1, entry.reserved + 20 * (rng.random() < 0.2))
                ledger.settle(entry, tokens, {"text": f'is {place}\n"{{ré', "tokens": tokens, "cap": entry.reserved})
        ledger.close()

    asyncio.run(run())


def provable(data: bytes) -> int:
    """Tokens that whole lines alone prove: every settlement, and of each number's reservations those left over."""
    reserved: dict[int, list[int]] = defaultdict(list)
    settled: dict[int, list[int]] = defaultdict(list)
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "reserve" in record:
            reserved[record["n"]].append(record["reserve"])
        if "charge" in record:
            settled[record["n"]].append(record["charge"])
    return sum(sum(settled[n]) + sum(sorted(reserved[n])[len(settled[n]) :]) for n in reserved.keys() | settled.keys())


def charged(path: Path) -> int:
    """What a ledger reads, which must be the same before and after its repair, and for good."""
    reading = Ledger(path)
    reading.close()
    writing = Ledger(path, SETTINGS)
    writing.close()
    again = Ledger(path, SETTINGS)
    again.close()
    assert again.messages == [], "repaired once"
    assert reading.charged == writing.charged == again.charged
    assert [entry.number for entry in again.entries] == list(range(len(again.entries)))
    return again.charged


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "ledger.jsonl"
    add(path, 1, 12)
    return path.read_bytes()


def test_cut_at_every_byte(whole: bytes, tmp_path: Path) -> None:
    head = whole.index(b"\n") + 1
    path = tmp_path / "ledger.jsonl"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        ledger = Ledger(path)
        ledger.close()
        assert ledger.charged >= provable(whole[:cut]), cut
    for cut in range(0, len(whole) + 1, 5):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        assert charged(path) >= provable(whole[:cut]), cut
        torn = cut < head or whole[cut - 1 : cut] != b"\n"
        kept = tmp_path / f"{cut}.jsonl.damaged-1"
        if kept.exists():
            assert torn
            assert kept.read_bytes() == whole[:cut]
        else:
            assert not torn or cut == 0 or whole[cut : cut + 1] == b"\n"


def test_a_doubled_tail_is_charged_twice(whole: bytes, tmp_path: Path) -> None:
    head = whole.index(b"\n") + 1
    for start in range(head, len(whole), 29):
        path = tmp_path / f"{start}.jsonl"
        path.write_bytes(whole + whole[start:])
        assert charged(path) >= provable(whole + whole[start:]) >= provable(whole)


@pytest.mark.parametrize("seed", range(8))
def test_two_writers_are_both_charged_and_no_answer_changes_its_question(seed: int, tmp_path: Path) -> None:
    shared = tmp_path / "shared.jsonl"
    add(shared, seed, 4)
    before = shared.read_bytes()
    tails = []
    for writer in (1, 2):
        path = tmp_path / f"{writer}.jsonl"
        path.write_bytes(before)
        add(path, 100 * seed + writer, 5, first=4 if seed % 2 else 4 * writer)
        tails.append(path.read_bytes()[len(before) :].splitlines(keepends=True))
    truth = provable(before + b"".join(tails[0])) + provable(before + b"".join(tails[1])) - provable(before)
    open_before = provable(before) - sum(
        json.loads(line).get("charge", 0) for line in before.splitlines() if b"charge" in line
    )
    rng, merged = random.Random(seed), []
    while any(tails):
        merged.append(rng.choice([tail for tail in tails if tail]).pop(0))
    path = tmp_path / "merged.jsonl"
    path.write_bytes(before + b"".join(merged))
    found = charged(path)
    assert found >= truth - open_before
    assert found <= truth + 10 * MOST
    ledger = Ledger(path)
    answered = [entry for entry in ledger.entries if entry.facts is not None]
    assert answered, "answers that are certain are kept"
    for entry in answered:
        assert entry.facts is not None
        assert entry.facts["cap"] == entry.reserved
    ledger.close()


@pytest.mark.parametrize("with_what", [b"\0", b"\xff", b"x", b"\n", b'{"'])
def test_garbage_in_the_tail(whole: bytes, with_what: bytes, tmp_path: Path) -> None:
    rng = random.Random(0)
    head = whole.index(b"\n") + 1
    for number in range(60):
        start = rng.randrange(head, len(whole) - 1)
        end = min(len(whole), start + rng.choice([1, 5, 40, 150, 400]))
        damaged = whole[:start] + (with_what * (end - start))[: end - start] + whole[end:]
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(damaged)
        found = charged(path)
        assert found >= provable(damaged)
        last = whole.rindex(b'{"n": 11, "reserve"')
        if end <= last and b'"charge"' not in whole[start:end]:
            # What later numbers prove to have been there is charged; only an overshoot can be hidden.
            assert found + 20 * 12 >= provable(whole)


@pytest.mark.parametrize("hole", [b"\0", b"x", b"\n"])
def test_a_question_whose_skipping_is_hidden_is_charged(hole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    settings = {**SETTINGS, "decision_cost": 3}

    async def run() -> None:
        ledger = Ledger(path, settings)
        for place in (0, 2):
            entry = await reserve(ledger, (place, f"q{place}", 1, 90), 13)
            ledger.settle(entry, 7, {"text": "", "tokens": 4, "cap": 10})
            ledger.note({"skipped": [place + 1, f"q{place + 1}", 0, 80], "decision": 3})
        ledger.close()

    asyncio.run(run())
    whole = path.read_bytes()
    at = whole.index(b'"skipped"')
    path.write_bytes(whole[:at] + hole * 9 + whole[at + 9 :])
    ledger = Ledger(path, settings)
    ledger.close()
    assert ledger.charged + sum(note["decision"] for note in ledger.notes) >= 2 * (7 + 3)


def test_a_first_line_that_is_gone_or_doubled(whole: bytes, tmp_path: Path) -> None:
    head = whole.index(b"\n") + 1
    first, rest = whole[:head], whole[head:]
    for name, data in (
        ("gone", rest),
        ("zeros", b"\0" * (head - 1) + b"\n" + rest),
        ("twice", first + first + rest),
        ("whole file twice", whole + whole),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(data)
        assert charged(path) >= provable(whole)
        ledger = Ledger(path)
        assert ledger.settings == SETTINGS
        ledger.close()


def test_odd_lines_are_charged_or_named_and_never_an_exception(whole: bytes, tmp_path: Path) -> None:
    odd = [
        b"null", b"[]", b"7", b'"n"', b"{}", b'{"n": 3}', b'{"n": -1, "reserve": 5, "key": []}',
        b'{"n": 12, "reserve": 1e400, "key": [1]}', b'{"n": 12, "reserve": 5}', b'{"n": 3, "charge": NaN, "facts": {}}',
        b'{"n": 3, "charge": 4}', b'{"n": true, "charge": 4, "facts": {}}', b'{"n": 99, "charge": 7, "facts": {}}',
        b'{"skipped": 3}', b'{"question": 4}', b'{"lost": -3}', b'{"lost": 5}', b'{"settings": []}', b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b', "charge": 1, "facts": {}}',
    ]  # fmt: skip
    for number, line in enumerate(odd):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(whole + line + b"\n")
        found = charged(path)
        assert found >= provable(whole)
        assert found <= provable(whole) + 5 + 90 * MOST, line


def test_a_repaired_ledger_goes_on(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(whole[:-30])
    before = charged(path)
    add(path, 5, 6, first=20)
    ledger = Ledger(path)
    ledger.close()
    assert ledger.messages == []
    assert ledger.charged == provable(path.read_bytes()) + ledger.lost > before
    assert path.stat().st_mode & 0o777 == (tmp_path / "ledger.jsonl.damaged-1").stat().st_mode & 0o777 == 0o600


def test_one_process_writes_at_a_time_and_readers_may_look(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path, SETTINGS)
    with pytest.raises(JournalError, match=rf"in use by process {os.getpid()} on .* since"):
        Ledger(path, SETTINGS)
    with pytest.raises(JournalError, match="in use"):
        LineFile(path, SETTINGS)
    asyncio.run(reserve(first, (0,), 7))
    reader = Ledger(path)
    assert reader.charged == 7
    with pytest.raises(JournalError, match="reading only"):
        reader.note({"skipped": [], "decision": 0})
    reader.close()
    first.settle(first.entries[0], 3, {})
    first.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["ledger.jsonl"], "no lock stays behind"
    second = Ledger(path, SETTINGS)
    assert second.charged == 3
    second.close()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys, time; from roi_env.answering.ledger import Ledger\n"
        f"ledger = Ledger(sys.argv[1], {SETTINGS!r}); print('open', flush=True); time.sleep(600)"
    )
    with child([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(JournalError, match=f"process {process.pid} on"):
            Ledger(path, SETTINGS)
    assert (tmp_path / "ledger.jsonl.lock").exists()
    Ledger(path, SETTINGS).close()
    for holder in (b"", b"not json", b"\0\xff", b'{"pid": 1}'):
        (tmp_path / "ledger.jsonl.lock").write_bytes(holder)
        Ledger(path, SETTINGS).close()


def test_of_many_that_open_at_once_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys, time; from roi_env.answering.ledger import JournalError, Ledger\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "for _ in range(40):\n"
        "    try:\n"
        f"        ledger = Ledger(sys.argv[1], {SETTINGS!r})\n"
        "    except JournalError: continue\n"
        "    ledger.note({'skipped': [len(ledger.notes)], 'decision': 0}); ledger.close()\n"
    )
    begin = str(time.time() + 1.5)
    with ExitStack() as stack:
        command = [sys.executable, "-c", code, str(path), begin]
        processes = [stack.enter_context(child(command)) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
    ledger = Ledger(path)
    ledger.close()
    assert ledger.messages == []
    assert [note["skipped"] for note in ledger.notes] == [[n] for n in range(len(ledger.notes))]
    assert ledger.notes


def test_other_settings_are_refused_or_kept_as_the_caller_says(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    add(path, 3, 3)
    with pytest.raises(JournalError, match="other settings: budget was 5000, is now 9") as caught:
        Ledger(path, {**SETTINGS, "budget": 9})
    assert "choose another place" in str(caught.value)
    seen = []
    ledger = Ledger(path, {**SETTINGS, "budget": 9}, refuse=lambda *given: seen.append(given))
    assert ledger.messages == [f"{path} goes on with other settings: budget was 5000, is now 9"]
    asyncio.run(reserve(ledger, (3, "q3", 1, 5), 4))
    ledger.close()
    assert len(seen[0][2]) == len(path.read_bytes().splitlines()) - 2, "all that was there, its first settings too"
    path.write_bytes(path.read_bytes() + b"torn")
    for _ in range(2):
        again = Ledger(path, {**SETTINGS, "budget": 9})
        assert [entry.settings["budget"] for entry in again.entries] == [5000, 5000, 5000, 9]
        again.close()


def test_a_full_disk_leaves_no_half_a_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "ledger.jsonl"
    code = (
        "import resource, signal, sys, asyncio; from roi_env.answering.ledger import Ledger\n"
        f"ledger = Ledger(sys.argv[1], {SETTINGS!r})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))\n"
        "try:\n"
        "    for n in range(100): asyncio.run(ledger.secure(ledger.enter((n, 'q', 1, 9), 10)))\n"
        "except OSError as error: print(error.errno, len(ledger.entries), error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    number, entries = map(int, done.stdout.split()[:2])
    assert number == errno.EFBIG
    assert done.stdout.split()[2] == str(path), "who reads it knows which disk"
    assert path.read_bytes().endswith(b"\n")
    ledger = Ledger(path)
    ledger.close()
    assert len(ledger.unknown) == entries > 3
