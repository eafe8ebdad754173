"""Sources of one's own from plain rows."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roi_env.exams.config import exam_spec
from roi_env.exams.exam import draw_exams
from roi_env.sources.build import Group, make_source
from roi_env.sources.source import Tier
from roi_env.sources.synthetic import FAMILIES, register_family
from tests.roi_env.sources.checksums import checksum

row = st.fixed_dictionaries(
    {
        "group": st.sampled_from(["a", "b"]),
        "item": st.sampled_from(["x", "y"]),
        "tier": st.sampled_from(["low", "high"]),
        "tokens": st.integers(1, 9),
        "correct": st.booleans(),
        "count": st.integers(1, 3),
    }
)
ROWS = [
    {"group": "a", "tier": "low", "tokens": 5, "correct": True},
    {"group": "b", "tier": "low", "tokens": 7, "correct": False},
]


@settings(deadline=None)
@given(st.lists(row, min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_published_laws_are_the_rows_counted(rows: list[dict[str, Any]], first: int, second: int) -> None:
    shares = {"a": first, "b": second}
    present = sorted({one["group"] for one in rows})
    source = make_source("own", ("low", "high"), [Group(name, share=shares[name]) for name in present], rows)
    expected = np.array([shares[name] for name in present]) / sum(shares[name] for name in present)
    np.testing.assert_allclose(source.group_probability[0], expected)
    for g, name in enumerate(present):
        items = sorted({one["item"] for one in rows if one["group"] == name})
        for k, tier in enumerate(("low", "high")):
            law: Counter[tuple[int, bool]] = Counter()
            offered = True
            for item in items:
                cell = [one for one in rows if (one["group"], one["item"], one["tier"]) == (name, item, tier)]
                total = sum(one["count"] for one in cell)
                offered &= total > 0
                for one in cell:
                    law[one["tokens"], one["correct"]] += Fraction(one["count"], total * len(items))
            assert source.published.offered[g, k] == offered
            if offered:
                right = float(sum(share for (_, correct), share in law.items() if correct))
                mean = float(sum(share * tokens for (tokens, _), share in law.items()))
                assert source.published.success_probability[g, k] == pytest.approx(right)
                assert source.published.expected_cost[g, k] == pytest.approx(mean)


def test_exams_are_drawn_from_it_and_frames_are_rows() -> None:
    pandas = pytest.importorskip("pandas")
    source = make_source("own", ("low",), ["a", "b"], ROWS)
    assert checksum(make_source("own", ("low",), ["a", "b"], pandas.DataFrame(ROWS))) == checksum(source)
    batch = draw_exams(exam_spec(source, num_tasks=5, budget=30), 0, np.arange(400))
    assert 0.45 < (batch.groups == 0).mean() < 0.55
    assert set(np.unique(batch.packed_outcomes())) == {5 << 1 | 1, 7 << 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "row 1: tokens must be an integer"),
        ({"tokens": 2.5}, "row 1: tokens must be an integer"),
        ({"tokens": True}, "row 1: tokens must be an integer"),
        ({"count": 0}, "row 1: count must be"),
        ({"correct": "yes"}, "row 1: correct must be"),
        ({"tier": "top"}, "row 1: tier must be one of"),
        ({"group": "c"}, "row 1: group must be one of"),
        ({"group": "a"}, r"groups \['b'\] have no outcomes"),
    ],
)
def test_rows_that_say_nothing_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_source("own", (Tier("low", 9),), ["a", "b"], [ROWS[0], {**ROWS[1], **changes}])


def test_groups_that_do_not_fit_are_named() -> None:
    for groups, message in (
        (["a", "a"], "distinct"),
        ([Group("a", share=0), "b"], "share"),
        ([Group("a", weight=float("nan")), "b"], "weight"),
        ([Group("a", features={"x": 1}), Group("b")], "features"),
    ):
        with pytest.raises(ValueError, match=message):
            make_source("own", ("low",), groups, ROWS)
    with pytest.raises(ValueError, match="missing"):
        make_source("own", ("low",), ["a", "b"], [{"group": "a"}])
    with pytest.raises(ValueError, match="paired"):
        make_source("own", ("low", "high"), ["a", "b"], [*ROWS, {**ROWS[0], "tier": "high", "count": 2}], paired=True)


def test_a_family_has_one_name() -> None:
    def own(num_tasks: int) -> Any:
        return make_source("own", ("low",), ["a", "b"], ROWS)

    register_family("own-family", own)
    try:
        assert exam_spec("own-family", budget=30).source.name == "own"
        for name in ("own-family", "signal", "tinylm", "math", "paper", "", "two words"):
            with pytest.raises(ValueError, match="family"):
                register_family(name, own)
    finally:
        del FAMILIES["own-family"]
