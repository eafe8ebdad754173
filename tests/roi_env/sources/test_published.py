"""A table as a data set of the hub: written, and read back by us and by `datasets`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from roi_env.sources.outcome_tables import OutcomeTable, OutcomeTableError
from roi_env.sources.packaged import TINYLM
from roi_env.sources.published import publish_table


@pytest.fixture(scope="module")
def table() -> OutcomeTable:
    whole = OutcomeTable.read(TINYLM)
    return replace(whole.shard(0, 1000), unit="micro-usd")


@pytest.fixture(scope="module")
def folder(table: OutcomeTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("published") / "set"
    written = publish_table(table, target, name="me/set", licence="cc-by-4.0", rows_a_shard=300)
    assert [path.name for path in written] == [*(f"train-{n:05d}-of-00004.parquet" for n in range(4)), "README.md"]
    return target


def test_rows_and_metadata_come_back(table: OutcomeTable, folder: Path) -> None:
    again = OutcomeTable.read(folder)
    assert again.rows.to_pylist() == table.rows.to_pylist()
    assert (again.unit, again.level_edges, again.tier_caps) == ("micro-usd", table.level_edges, table.tier_caps)
    assert (again.pairing, again.decision_cost) == (table.pairing, table.decision_cost)


def test_the_readme_s_head_says_where_the_data_are(folder: Path) -> None:
    head = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert "roi compare --table hf:me/set" in (folder / "README.md").read_text()


def test_the_hub_s_own_package_reads_it(table: OutcomeTable, folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert read["tokens"][:] == table.rows["tokens"].to_pylist()


def test_a_name_of_the_hub_is_read_from_its_cache(
    table: OutcomeTable, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    # What the hub's package keeps of a data set once it was fetched.
    kept = tmp_path / "datasets--me--set"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / ("0" * 40)).symlink_to(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert OutcomeTable.read("hf:me/set").num_rows == table.num_rows
    with pytest.raises(OutcomeTableError, match="hf:me/other: cannot be had from the hub"):
        OutcomeTable.read("hf:me/other")


def test_what_is_not_whole_is_refused(table: OutcomeTable, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutcomeTableError, match="not empty"):
        publish_table(table, folder, name="a", licence="mit")
    for name, licence in (("a b", "mit"), ("../a", "mit"), ("a/b/c", "mit"), ("a", "MIT: yes\n")):
        with pytest.raises(OutcomeTableError, match="must"):
            publish_table(table, tmp_path / "new", name=name, licence=licence)
    with pytest.raises(OutcomeTableError, match=r"without data/\*.parquet"):
        OutcomeTable.read(tmp_path)
    (tmp_path / "data").mkdir()
    shard = sorted((folder / "data").glob("*.parquet"))[0]
    (tmp_path / "data" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(OutcomeTableError, match="1 of 4 shards"):
        OutcomeTable.read(tmp_path)
