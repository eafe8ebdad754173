"""Synthetic task families as finite integer tables.

The ``effort`` generator: difficulty d ~ Beta(2, 2); tier j is right with probability sigmoid(10 (kappa_j - d)); its cost
is log-normal, grows with d and with a wrong answer, and is cut (without credit) at six times the mean cost of the top
tier. An agent sees the signal y = d + N(0, sd^2) instead of d. ``cap`` families think one thought of random length and
cut it at the tier's cap.

Difficulty is split into ``DIFFICULTIES`` equally likely classes, every (class, tier) into ``SLOTS`` equally likely
outcomes placed on a Hammersley set (correctness along one axis, cost along the other), and every class into equally
likely signal values. Floating point is used here only; the results are rounded to integers once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from roi_env.plugins import announced
from roi_env.sources.packaged import PACKAGED
from roi_env.sources.source import Source, Tier, laws_from_outcomes, published_laws

DIFFICULTIES = 32
"""Equally likely difficulty classes of a synthetic family."""
SLOTS = 512
"""Equally likely outcomes of one (difficulty class, tier)."""
SIGNAL_SLOTS = 128
"""Equally likely signal draws of one difficulty class."""

_SIGNAL_EDGES = np.linspace(-0.3, 1.3, 33)
_KAPPA = np.array([0.30, 0.55, 0.80])
_SIZE = np.array([0.1, 0.33, 1.0])
_BETA = np.array([0.8, 1.4, 2.0])
_TIER_NAMES = ("low", "medium", "high")
_WEIGHTS = (1.0, 2.0, 4.0, 8.0)

_Floats = npt.NDArray[np.float64]


def _normal_quantiles(count: int) -> _Floats:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])


@lru_cache(maxsize=1)
def _hammersley() -> tuple[_Floats, _Floats]:
    """(SLOTS,) uniform and (SLOTS,) standard normal coordinates, low-discrepancy as a pair."""
    bits = SLOTS.bit_length() - 1
    index = np.arange(SLOTS)
    reversed_index = sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    return (index + 0.5) / SLOTS, _normal_quantiles(SLOTS)[reversed_index]


def _beta22_quantiles(count: int) -> _Floats:
    """Mid-quantiles of Beta(2, 2): the root of 3x^2 - 2x^3 = u in [0, 1], in closed form."""
    u = (np.arange(count) + 0.5) / count
    return 0.5 - np.sin(np.arcsin(1 - 2 * u) / 3)


def _pack(tokens: _Floats, correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    return (np.maximum(np.rint(tokens), 1).astype(np.uint32) << np.uint32(1)) | correct.astype(np.uint32)


def _effort_outcomes(
    difficulty: _Floats, mean_high: int, sigma: float, wrong_shift: float, thetas: tuple[float, ...]
) -> npt.NDArray[np.uint32]:
    """(L, D, 3, SLOTS) packed outcomes; an ability of ``thetas`` (equally likely) shifts every tier's capacity kappa.

    One scale for all abilities, so that ability changes outcomes and not the unit of cost: the top tier costs
    ``mean_high`` tokens on average over abilities, difficulties and outcomes.
    """
    u, z = _hammersley()
    d = difficulty[:, None, None]
    ability = np.array(thetas)[:, None, None, None]
    right = u < 1 / (1 + np.exp(-10 * (_KAPPA[:, None] + ability - d)))
    shape = np.exp(_BETA[:, None] * (d - 0.5) + wrong_shift * ~right + sigma * z)
    cap = 6.0 * mean_high
    scale = float(mean_high)
    for _ in range(60):
        scale *= mean_high / np.minimum(scale * shape[:, :, -1], cap).mean()
    tokens = np.minimum(scale * _SIZE[:, None] * shape, cap)
    return _pack(tokens, right & (tokens < cap))


def _signal_rows(difficulty: _Floats, signal_sd: float) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Equally likely (difficulty class, signal bin) rows; ``signal_sd`` 0 shows the class itself."""
    classes = np.arange(len(difficulty), dtype=np.int32)
    if signal_sd == 0:
        return classes, classes
    y = difficulty[:, None] + signal_sd * _normal_quantiles(SIGNAL_SLOTS)
    bins = np.clip(np.searchsorted(_SIGNAL_EDGES, y, side="right") - 1, 0, len(_SIGNAL_EDGES) - 2)
    return np.repeat(classes, SIGNAL_SLOTS), bins.astype(np.int32).ravel()


def _assemble(
    name: str,
    tiers: tuple[Tier, ...],
    outcomes: npt.NDArray[np.uint32],
    row_item: npt.NDArray[np.int32],
    row_signal: npt.NDArray[np.int32],
    signal_value: _Floats,
    *,
    weights: tuple[float, ...] = (1.0,),
    common: bool = False,
) -> Source:
    """Build a source from (L, M, K, SLOTS) outcomes and (item, signal) rows, crossed with equally likely weights."""
    num_latent, num_items, num_tiers, slots = outcomes.shape
    used, signal_index = np.unique(row_signal, return_inverse=True)
    num_weights = len(weights)
    row_group = (signal_index[:, None] * num_weights + np.arange(num_weights)).ravel().astype(np.int32)
    row_item = np.repeat(row_item, num_weights).astype(np.int32)
    num_groups = len(used) * num_weights
    values = np.repeat(signal_value[used], num_weights)
    weight = np.tile(np.array(weights), len(used))
    features, names = [values], ["signal"]
    if num_weights > 1:
        features.append(weight / max(weights))
        names.append("weight")
    start = np.arange(num_latent * num_items * num_tiers, dtype=np.int32) * np.int32(slots)
    count = np.full(len(start), slots, np.int32)
    flat = np.ascontiguousarray(outcomes.ravel())
    laws = laws_from_outcomes(start, count, flat, num_tiers)
    published = published_laws(laws, row_item, row_group, num_groups, num_latent)
    if num_latent == 1:
        beliefs = published
    else:
        states = np.arange(num_latent) * num_groups
        beliefs = published.mixture(
            [states + group for group in range(num_groups)], [np.full(num_latent, 1 / num_latent)] * num_groups
        )
    return Source(
        name=name,
        tiers=tiers,
        row_item=row_item,
        row_group=row_group,
        row_given=np.zeros(len(row_item), np.int32),
        strata=np.array([0, len(row_item)], np.int32),
        replacement=True,
        outcome_start=start,
        outcome_count=count,
        outcomes=flat,
        num_latent=num_latent,
        coupling="common" if common else "independent",
        group_features=np.stack(features, 1).astype(np.float32),
        feature_names=tuple(names),
        group_weight=weight,
        group_key=np.repeat(np.arange(len(used)), num_weights).astype(np.int32),
        group_names=tuple(
            f"signal {v:.3f}" + (f", weight {w:g}" if num_weights > 1 else "")
            for v, w in zip(values, weight, strict=True)
        ),
        published=published,
        beliefs=beliefs,
        paired=True,
        synthetic=True,
    )


def _quantile_edges(outcomes: npt.NDArray[np.uint32], cap: int) -> list[int]:
    """Level edges of an effort family: the 90 % quantile of each tier's tokens, the cap for the top tier."""
    tokens = np.sort((outcomes >> np.uint32(1)).swapaxes(0, 1).reshape(outcomes.shape[1], -1), axis=1)
    edges = tokens[:, int(0.9 * tokens.shape[1])].astype(int).tolist()
    return [*edges[:-1], cap]


def _effort(
    name: str,
    num_tasks: int,
    *,
    sigma: float = 0.5,
    wrong_shift: float = 0.3,
    signal_sd: float = 0.15,
    weights: tuple[float, ...] = (1.0,),
    thetas: tuple[float, ...] = (0.0,),
) -> Source:
    mean_high = 100 if num_tasks <= 10 else 40
    difficulty = _beta22_quantiles(DIFFICULTIES)
    outcomes = _effort_outcomes(difficulty, mean_high, sigma, wrong_shift, thetas)
    edges = _quantile_edges(outcomes.reshape(-1, *outcomes.shape[2:]), 6 * mean_high)
    tiers = tuple(Tier(tier, edge, edge) for tier, edge in zip(_TIER_NAMES, edges, strict=True))
    row_item, row_signal = _signal_rows(difficulty, signal_sd)
    values = difficulty if signal_sd == 0 else (_SIGNAL_EDGES[1:] + _SIGNAL_EDGES[:-1]) / 2
    return _assemble(name, tiers, outcomes, row_item, row_signal, values, weights=weights)


def known(num_tasks: int = 10) -> Source:
    """``effort`` with the difficulty itself as signal: the optimum equals ``informed``."""
    return _effort("known", num_tasks, signal_sd=0.0)


def signal(num_tasks: int = 10) -> Source:
    """``effort`` behind noisy signals (sd 0.15): the default."""
    return _effort("signal", num_tasks)


def heavy(num_tasks: int = 10) -> Source:
    """``signal`` with heavy-tailed costs (sigma 1.1) and visible task weights 1, 2, 4, 8."""
    return _effort("heavy", num_tasks, sigma=1.1, wrong_shift=0.6, weights=_WEIGHTS)


def latent(num_tasks: int = 10) -> Source:
    """``effort`` (signal sd 0.1) with an exam-level ability of +-0.3 that the signals do not show."""
    return _effort("latent", num_tasks, signal_sd=0.1, thetas=(-0.3, 0.3))


def _thoughts(length: _Floats, right: npt.NDArray[np.bool_], caps: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """(D, K, SLOTS) outcomes of thoughts of ``length`` (D, SLOTS) tokens cut at K caps; credit only when finished."""
    tokens = np.maximum(np.rint(length), 1)[:, None, :]
    cap = caps[None, :, None].astype(float)
    return _pack(np.minimum(tokens, cap), (tokens <= cap) & right[:, None, :])


def cap(num_tasks: int = 10) -> Source:
    """Tiers are thinking caps on one latent length (log-normal, sigma 0.7, growing with difficulty): common coupling."""
    mean_high = 100 if num_tasks <= 10 else 40
    difficulty = _beta22_quantiles(DIFFICULTIES)
    z = _hammersley()[1]
    length = np.exp(5.0 * (difficulty[:, None] - 0.5) + 0.7 * z)
    sizes = np.array([0.5, 1.2, 3.0])
    scale = float(mean_high)
    for _ in range(60):
        scale *= mean_high / np.minimum(scale * length, 3.0 * mean_high).mean()
    caps = np.rint(sizes * mean_high).astype(np.int64)
    outcomes = _thoughts(scale * length, np.ones_like(length, bool), caps)[None]
    tiers = tuple(Tier(name, int(edge), int(edge)) for name, edge in zip(_TIER_NAMES, caps, strict=True))
    row_item, row_signal = _signal_rows(difficulty, 0.15)
    values = (_SIGNAL_EDGES[1:] + _SIGNAL_EDGES[:-1]) / 2
    return _assemble("cap", tiers, outcomes, row_item, row_signal, values, common=True)


# Public figures of Qwen2.5-1.5B-Instruct quoted with the paper: accuracy; mean tokens (only GSM8K's is public, the
# other two lengths are our calibration).
_PAPER = {"gsm8k": (0.675, 328.0), "math": (0.518, 560.0), "aime": (0.0, 900.0)}
_PAPER_EDGES = (256, 512, 1024)


def paper_synthetic(num_tasks: int = 3) -> Source:
    """Synthetic stand-in for the paper's exams: one task each of GSM8K, MATH and AIME, levels as thinking caps.

    Calibrated so that an uncut attempt (1024 tokens) has the public accuracy and GSM8K's public mean length.
    """
    u, z = _hammersley()
    classes = 16
    spread = _normal_quantiles(classes)
    outcomes = []
    for accuracy, mean_tokens in _PAPER.values():
        shape = np.exp(0.35 * spread[:, None] + 0.35 * z)
        scale = mean_tokens
        for _ in range(60):
            scale *= mean_tokens / np.minimum(scale * shape, 1024).mean()
        length = scale * shape
        finished = length <= _PAPER_EDGES[-1]
        chance = accuracy / finished.mean()
        outcomes.append(_thoughts(length, np.broadcast_to(u < chance, length.shape), np.array(_PAPER_EDGES)))
    table = np.concatenate(outcomes)[None]
    items = np.arange(len(_PAPER) * classes, dtype=np.int32)
    groups = items // classes
    tiers = tuple(Tier(f"level-{k}", edge, edge) for k, edge in enumerate(_PAPER_EDGES))
    source = _assemble("paper-synthetic", tiers, table, items, groups, np.arange(len(_PAPER), dtype=float), common=True)
    names = tuple(_PAPER)
    return _stratified(source, names)


def _stratified(source: Source, names: tuple[str, ...]) -> Source:
    """One stratum a group, one-hot features: exams take one task of each in turn."""
    order = np.argsort(source.row_group, kind="stable")
    sizes = np.bincount(source.row_group, minlength=source.num_groups)
    return replace(
        source,
        row_item=source.row_item[order],
        row_group=source.row_group[order],
        row_given=source.row_group[order].astype(np.int32),
        strata=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        group_features=np.eye(source.num_groups, dtype=np.float32),
        feature_names=names,
        group_names=names,
    )


FAMILIES: dict[str, Callable[[int], Source]] = {
    "known": lru_cache(known),
    "signal": lru_cache(signal),
    "heavy": lru_cache(heavy),
    "cap": lru_cache(cap),
    "latent": lru_cache(latent),
    "paper-synthetic": lru_cache(paper_synthetic),
}
"""Synthetic families by name: number of tasks -> source (cached)."""


def register_family(name: str, family: Callable[[int], Source]) -> None:
    """Give a family of one's own a name: for ``exam_spec(name)``, ``gym.make(..., source=name)`` and ``roi --variant``.

    :param family: number of tasks -> source; called once a number.
    :raises ValueError: for a name that is taken or is none.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"a family's name must be a word, got {name!r}")
    if name in FAMILIES or name in (*PACKAGED, "recorded"):
        raise ValueError(f"family {name!r} exists already")
    FAMILIES[name] = lru_cache(family)


def find_family(name: str) -> Callable[[int], Source] | None:
    """A family by name, those that installed packages announce (entry points ``roi.families``) included; None: there is none."""
    if name not in FAMILIES and (point := announced("roi.families").get(name)) is not None:
        register_family(name, point.load())
    return FAMILIES.get(name)
