"""Losses against hand-computed numbers, PyTorch's distributions and gradients."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from agents.rllib.losses import (
    aggregate,
    clipped_surrogate,
    entropy,
    kl_exact,
    kl_k3,
    log_ratio,
    masked_log_softmax,
    sequence_mean,
    sequence_sum,
)

SEQUENCE = torch.tensor([0, 0, 0, 1])
VALUES = torch.tensor([1.0, 2.0, 6.0, 5.0])


def test_aggregations_by_hand():
    assert aggregate(VALUES, SEQUENCE, "token").item() == pytest.approx(14 / 4)
    assert aggregate(VALUES, SEQUENCE, "sequence").item() == pytest.approx((3 + 5) / 2)
    assert aggregate(VALUES, SEQUENCE, "constant", 10).item() == pytest.approx(14 / 20)
    with pytest.raises(ValueError, match="max_length"):
        aggregate(VALUES, SEQUENCE, "constant")
    with pytest.raises(ValueError, match="must be one of"):
        aggregate(VALUES, SEQUENCE, "mean")  # type: ignore[arg-type]


def test_interleaved_sequences_have_the_same_means():
    order = torch.tensor([3, 1, 0, 2])
    assert sequence_mean(VALUES[order], SEQUENCE[order]).tolist() == [3.0, 5.0]


def test_sequence_ratio_is_the_geometric_mean_of_the_exams_ratios():
    logp, old = torch.log(torch.tensor([0.5, 0.2, 0.9, 0.3])), torch.log(torch.tensor([0.25, 0.4, 0.9, 0.6]))
    assert log_ratio(logp, old, SEQUENCE, "token").exp().tolist() == pytest.approx([2.0, 0.5, 1.0, 0.5])
    whole = (0.5 * 0.2 * 0.9 / (0.25 * 0.4 * 0.9)) ** (1 / 3)
    assert log_ratio(logp, old, SEQUENCE, "sequence").exp().tolist() == pytest.approx([whole] * 3 + [0.5])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, -1.3), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8), (1.0, 2.0, -2.0)],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    log = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = clipped_surrogate(log, torch.tensor([advantage]), 0.2, 0.3)
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    clipped = (advantage > 0 and ratio > 1.3) or (advantage < 0 and ratio < 0.8)
    assert log.grad is not None
    assert log.grad.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


def masked_pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator)
    mask = torch.rand(50, 4, generator=generator) < 0.6
    mask[:, 0] = True
    return logits, reference, mask


def test_entropy_and_kl_against_pytorchs_distributions_over_legal_actions():
    logits, reference, mask = masked_pair()
    for i in range(len(mask)):
        policy, other = Categorical(logits=logits[i, mask[i]]), Categorical(logits=reference[i, mask[i]])
        assert entropy(logits, mask)[i].item() == pytest.approx(policy.entropy().item(), abs=1e-6)
        expected = kl_divergence(policy, other).item()
        assert kl_exact(logits, reference, mask)[i].item() == pytest.approx(expected, abs=1e-6)


def test_k3_is_unbiased_and_never_negative():
    logits, reference, mask = masked_pair()
    logp, other = masked_log_softmax(logits, mask), masked_log_softmax(reference, mask)
    estimate = kl_k3(logp, other)
    assert (estimate[mask] >= 0).all()
    expectation = (logp.exp() * estimate.masked_fill(~mask, 0.0)).sum(-1)
    assert expectation.tolist() == pytest.approx(kl_exact(logits, reference, mask).tolist(), abs=1e-5)


def test_masked_actions_get_no_probability_and_finite_gradients():
    logits, _, mask = masked_pair()
    logits.requires_grad_()
    logp = masked_log_softmax(logits, mask)
    assert (logp.exp()[~mask] == 0).all()
    (entropy(logits, mask).sum() + kl_exact(logits, logits.detach() + 1.0, mask).sum()).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_values_are_counted_and_summed_in_float32(dtype):
    """Independent reference: the same functions on the same (rounded) values in float64."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([700, 3, 300])
    sequence = torch.repeat_interleave(torch.arange(3), length)
    same = torch.full((700,), 0.01, dtype=dtype)
    assert sequence_mean(same, sequence[:700]).item() == pytest.approx(same[0].item(), rel=1e-5)
    assert sequence_sum(torch.ones(700, dtype=dtype), sequence[:700]).item() == 700
    values, old = (torch.rand(1003, generator=generator).mul(0.1).to(dtype) for _ in range(2))
    logits, reference = (torch.randn(1003, 4, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(1003, 4, generator=generator) < 0.6
    mask[:, 0] = True

    def everything(*tensors: torch.Tensor) -> list[torch.Tensor]:
        values, old, logits, reference = tensors
        return [
            sequence_sum(values, sequence),
            *(aggregate(values, sequence, how, 700) for how in ("token", "sequence", "constant")),
            log_ratio(values, old, sequence, "token"),
            log_ratio(values, old, sequence, "sequence"),
            clipped_surrogate(values, old, 0.2, 0.2),
            masked_log_softmax(logits, mask)[mask],
            entropy(logits, mask),
            kl_exact(logits, reference, mask),
            kl_k3(values, old),
        ]

    exact = everything(*(tensor.double() for tensor in (values, old, logits, reference)))
    for found, expected in zip(everything(values, old, logits, reference), exact, strict=True):
        assert found.dtype == torch.float32
        assert expected.dtype == torch.float64
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-6)
