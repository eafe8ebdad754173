"""Files that are replaced whole or not at all, and what a killed process leaves of them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roi_env import files
from roi_env.files import replacing


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with replacing(target) as path:
        path.write_text("1")
        assert path.suffix == ".json"
    with pytest.raises(TypeError), replacing(target) as path:
        path.write_text(b"cut")  # type: ignore[arg-type]
    assert target.read_text() == "1"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of more than 20 kB cannot be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_told_of_with_the_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")

    def to_file(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(weights, file)

    weights = {"weights": torch.arange(10_000)}
    for name, write in {
        "text": lambda path: path.write_text("x" * 50_000),
        "torch": lambda path: torch.save(weights, path),
        "torch to a file": to_file,
        "safetensors": lambda path: safetensors.save_file(weights, path),
        "parquet": lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).random(10_000)}), path),
    }.items():
        with pytest.raises(OSError, match="cannot be written") as told, replacing(tmp_path / name) as path:
            write(path)
        assert (told.value.filename, bool(told.value.errno)) == (str(tmp_path / name), True), name
        assert "\n" not in told.value.strerror
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_deleted_and_what_is_written_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "held") as held, replacing(tmp_path / "new") as new:
        left = tmp_path / (held.name[:-8] + "abcdefgh")
        own = tmp_path / ".my-settings"
        for file in (held, left, own):
            file.write_text("x")
            os.utime(file, (0, 0))
        new.write_text("y")
        files._swept.clear()  # as in the next process
        with replacing(tmp_path / "other") as other:
            other.write_text("z")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".my-settings", "held", "new", "other"]
