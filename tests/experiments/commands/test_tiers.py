"""Tiers as the command line writes them."""

from __future__ import annotations

import pytest

from experiments.commands.endpoints import parse_tiers
from experiments.config import ConfigError


@pytest.mark.parametrize(
    ("texts", "caps"),
    [
        (["short=0+160", "long=0+400"], [160, 400]),
        (["now=0+64", "open=0+256", "think=512+64"], [64, 256, 577]),
        (["a=100+10", "b=100+20"], [111, 121]),
        (["direct=0+512", "low=1024"], [512, 1049]),
        (["direct=0+512", "low=128+128"], [512, 257]),
    ],
)
def test_caps_of_thoughts_or_of_answers_grow(texts: list[str], caps: list[int]) -> None:
    assert [tier.most_tokens for tier in parse_tiers(texts, 24)] == caps


@pytest.mark.parametrize(
    "texts",
    [
        ["long=0+400", "short=0+160"],
        ["a=0+160", "b=0+160"],
        ["a=0+160", "a=0+400"],
        ["a=0", "b=0"],
        ["a=10+5", "b=5+400"],
    ],
)
def test_others_are_refused_with_what_was_given(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"growing caps, or growing answers .* got (a=|long=0\+400)"):
        parse_tiers(texts, 24)


def test_no_tier_is_called_like_what_is_not_asked() -> None:
    with pytest.raises(ConfigError, match="'skip' is what becomes of a question that is not asked"):
        parse_tiers(["skip=48"], 24)
