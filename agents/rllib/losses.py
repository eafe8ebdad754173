"""Losses of group-relative policy optimisation, in PyTorch: functions of flat batches of T decisions.

``sequence`` numbers the exam of every decision, 0 .. S - 1; a batch holds whole exams, so that ratios and averages over
an exam are what they say. Every function returns a loss to be minimised or a quantity per decision.

Values may have any dtype; all functions compute and return in float32, for float64 values in float64. In bfloat16 a
running sum stops growing at 256 times its terms, and counts are not whole numbers above 256.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch

Ratio = Literal["token", "sequence"]
RATIOS: Final[tuple[Ratio, ...]] = get_args(Ratio)
Aggregation = Literal["token", "sequence", "constant"]
AGGREGATIONS: Final[tuple[Aggregation, ...]] = get_args(Aggregation)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The same values in a dtype that can be summed: float64 stays, everything else becomes float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def sequence_sum(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """(S,) sum of ``values`` (T,) over each exam; ``sequence`` (T,) int64."""
    values = _wide(values)
    return values.new_zeros(int(sequence.max()) + 1).index_add(0, sequence, values)


def sequence_mean(values: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """(S,) mean of ``values`` (T,) over each exam; exams without decisions give 0."""
    return sequence_sum(values, sequence) / torch.bincount(sequence).clamp(min=1)


def aggregate(
    values: torch.Tensor, sequence: torch.Tensor, how: Aggregation, max_length: int | None = None
) -> torch.Tensor:
    """One number from T decisions.

    * ``token``: mean over all decisions (long exams weigh more);
    * ``sequence``: mean over exams of their means (GRPO's own; short exams' decisions weigh more);
    * ``constant``: sum / (number of exams x ``max_length``): no bias towards either (Dr. GRPO, arXiv 2503.20783).

    :param values: (T,) float.
    :param sequence: (T,) int64.
    :param max_length: decisions of the longest possible exam, for ``constant``.
    :raises ValueError: for an unknown ``how``, or ``constant`` without ``max_length``.
    """
    values = _wide(values)
    if how == "token":
        return values.mean()
    if how == "sequence":
        return sequence_mean(values, sequence).mean()
    if how != "constant":
        raise ValueError(f"aggregation must be one of {list(AGGREGATIONS)}, got {how!r}")
    if max_length is None:
        raise ValueError("aggregation 'constant' needs max_length, the number of decisions of the longest exam")
    return values.sum() / ((int(sequence.max()) + 1) * max_length)


def log_ratio(logp: torch.Tensor, old_logp: torch.Tensor, sequence: torch.Tensor, ratio: Ratio) -> torch.Tensor:
    """(T,) log importance ratio of every decision.

    ``token``: its own, logp - old_logp. ``sequence``: the mean over its exam, a length-normalised ratio of whole exams
    (GSPO, arXiv 2507.18071, eq. 7), the same for all its decisions.

    :raises ValueError: for an unknown ``ratio``.
    """
    difference = _wide(logp) - _wide(old_logp)
    if ratio == "token":
        return difference
    if ratio != "sequence":
        raise ValueError(f"ratio must be one of {list(RATIOS)}, got {ratio!r}")
    return sequence_mean(difference, sequence)[sequence]


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """(T,) PPO's clipped surrogate as a loss: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).

    Schulman et al. 2017, arXiv 1707.06347, eq. 7; two bounds as in DAPO (arXiv 2503.14476).
    """
    ratio, advantages = _wide(log_ratio).exp(), _wide(advantages)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def masked_log_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(T, A) log-probabilities over legal actions; a large negative number elsewhere (never -inf: 0 x inf is nan).

    :param logits: (T, A).
    :param mask: (T, A) bool; every row has a legal action.
    """
    logits = _wide(logits)
    return torch.log_softmax(logits.masked_fill(~mask, torch.finfo(logits.dtype).min), -1)


def entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(T,) entropy over legal actions, in nats."""
    logp = masked_log_softmax(logits, mask)
    return -(logp.exp() * logp.masked_fill(~mask, 0.0)).sum(-1)


def kl_exact(logits: torch.Tensor, reference_logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(T,) KL(policy || reference) summed over legal actions: no sampling noise, for small action sets."""
    logp, reference = masked_log_softmax(logits, mask), masked_log_softmax(reference_logits, mask)
    return (logp.exp() * (logp - reference).masked_fill(~mask, 0.0)).sum(-1)


def kl_k3(logp: torch.Tensor, reference_logp: torch.Tensor) -> torch.Tensor:
    """(T,) the k3 estimate of KL(policy || reference) at actions drawn from the policy: exp(d) - d - 1, d = reference -
    policy log-probability; unbiased, never negative (Schulman, "Approximating KL divergence", 2020)."""
    difference = _wide(reference_logp) - _wide(logp)
    return difference.exp() - difference - 1
