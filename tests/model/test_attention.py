"""Attention at its edges: no events, pads, the sink.  Its values are compared in test_equations.py."""

from __future__ import annotations

import pytest
import torch
from conftest import drawn_anew
from torch import Tensor

from model.attention import SequenceAttention, TargetAttention
from model.embedding import event_mask

HEADS, HEAD_WIDTH, WIDTH, SLOTS = 2, 8, 12, 10
LENGTHS = torch.tensor([0, 1, 4, 10])
VALID = event_mask(LENGTHS, SLOTS)


def events(seed: int = 0, pads: float = 0.0) -> Tensor:
    x = torch.randn(4, SLOTS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(VALID[..., None], x, pads)


def target_attention(sink: bool) -> TargetAttention:
    attention = TargetAttention(WIDTH, HEADS, HEAD_WIDTH, sink)
    drawn_anew(attention, seed=0)
    return attention.double()


def sequence_attention(sink: bool = False) -> SequenceAttention:
    attention = SequenceAttention(WIDTH, WIDTH, HEADS, HEAD_WIDTH, sink)
    drawn_anew(attention, seed=0)
    return attention.double()


def targets(attention: TargetAttention, x: Tensor, scale: float = 1.0) -> Tensor:
    """Three queries of each user."""
    generator = torch.Generator().manual_seed(1)
    query = scale * torch.randn(4, 3, HEADS * HEAD_WIDTH, dtype=torch.float64, generator=generator)
    out: Tensor = attention(query, *attention.projections(x, VALID))
    return out


@pytest.mark.parametrize("sink", [False, True])
def test_attention_over_nothing_is_exactly_zero(sink: bool) -> None:
    out = targets(target_attention(sink), events())
    assert (out[0] == 0).all()
    assert (out[1:] != 0).all()
    own = sequence_attention(sink)(events(), events(), VALID, VALID)
    assert (own[~VALID] == 0).all()
    assert (own[VALID] != 0).all()
    asked = sequence_attention(sink)(
        events(), events(), VALID.flip(0), VALID
    )  # the first has queries, and nothing to ask
    assert (asked[0] == 0).all()


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("pads", [1.0, -1e6])
def test_nothing_is_read_from_the_pads(sink: bool, pads: float) -> None:
    attention, own = target_attention(sink), sequence_attention(sink)
    assert torch.equal(targets(attention, events()), targets(attention, events(pads=pads)))
    clean, dirty = events(), events(pads=pads)
    assert torch.equal(own(clean, clean, VALID, VALID), own(dirty, dirty, VALID, VALID))


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_gradients_are_finite(sink: bool, scale: float) -> None:
    attention, own, x = target_attention(sink), sequence_attention(sink), events().requires_grad_()
    (targets(attention, x, scale).sum() + own(x * scale, x, VALID, VALID).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[~VALID] == 0).all()
    parameters = [*attention.parameters(), *own.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize("sink", [False, True])
def test_a_sink_tells_how_many_events_match(sink: bool) -> None:
    """Of n equal events whose logit is the sink's, n / (n + 1) of the value comes out; without a sink all of it."""
    attention, same = target_attention(sink), torch.ones(4, SLOTS, WIDTH, dtype=torch.float64)
    out = targets(attention, same, scale=0.0)
    whole = attention.out(attention.projections.value(same[:, 0]))
    share = LENGTHS / (LENGTHS + sink).clamp(min=1)
    torch.testing.assert_close(out[:, 0], whole * share[:, None].double(), atol=1e-7, rtol=0)
