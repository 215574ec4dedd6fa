"""The frequency module against numpy.fft: the basis for every length, the three spectra, the pads."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import reference
import torch
from conftest import drawn_anew

from model.config import Spectrum
from model.embedding import event_mask
from model.frequency import FrequencyModule, basis_table, cutoff_of, fourier_basis

SLOTS, WIDTH = 50, 12
LENGTHS = (0, 1, 2, 3, 5, 9, 10, 11, 20, 30, 49, 50)


def rfft_low(x: np.ndarray, columns: int) -> np.ndarray:
    """The low pass that keeps `columns` frequencies, by numpy.fft."""
    spectrum = np.fft.rfft(x, axis=0)
    spectrum[(columns + 1) // 2 :] = 0
    return np.fft.irfft(spectrum, n=len(x), axis=0)


@pytest.mark.parametrize("cutoff", [1, 3, 5, 7, 9])
def test_basis_is_orthonormal_and_the_rfft_low_pass(cutoff: int) -> None:
    for length in range(1, 61):
        basis = fourier_basis(length, cutoff)
        columns = min(cutoff, length if length % 2 else length - 1)
        assert basis.dtype == torch.float64
        assert basis.shape == (length, columns)
        B = basis.numpy()
        np.testing.assert_allclose(B.T @ B, np.eye(columns), atol=1e-12)
        x = np.random.default_rng(length).normal(size=(length, 4))
        np.testing.assert_allclose(B @ (B.T @ x), rfft_low(x, columns), atol=1e-12)
        np.testing.assert_allclose(reference.low(x, cutoff), rfft_low(x, columns), atol=1e-12)


@pytest.mark.parametrize("cutoff", [0, 2, 4, 50, -1, -3])
def test_even_or_non_positive_cutoff_is_refused(cutoff: int) -> None:
    with pytest.raises(ValueError, match="cutoff"):
        fourier_basis(50, cutoff)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_without_events_has_no_basis(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        fourier_basis(length, 5)


@pytest.mark.parametrize("cutoff", [1, 3, 5, 7, 9])
def test_proportional_cutoff_is_the_nearest_odd_number(cutoff: int) -> None:
    for slots in (7, 10, 50):
        for events in range(1, slots + 1):
            found = cutoff_of(events, slots, cutoff, "proportional")
            assert found == reference.cutoff_of(events, slots, cutoff)
            assert cutoff_of(events, slots, cutoff, "count") == cutoff
        assert found == cutoff  # of a full history


def test_short_histories_keep_high_frequencies_only_when_proportional() -> None:
    """A fixed count leaves High = 0 for odd n <= c: the reason for the default."""
    x = torch.randn(1, SLOTS, WIDTH, dtype=torch.float64) * event_mask(torch.tensor([5]), SLOTS)[..., None]
    highs = {}
    for spectrum in get_args(Spectrum):
        module = module_of(spectrum, 5)
        highs[spectrum] = (x - module.low_pass(x, torch.tensor([5])))[0, :5].abs().max()
    assert highs["count"] < 1e-12
    assert highs["proportional"] > 0.1


def module_of(spectrum: Spectrum, cutoff: int) -> FrequencyModule:
    module = FrequencyModule(WIDTH, SLOTS, cutoff, spectrum, gate_hidden=8)
    drawn_anew(module, seed=cutoff)
    module = module.double()
    module.table = basis_table(SLOTS, cutoff, spectrum)
    return module


def histories(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x [U, L, D] with zeros in the pads, valid [U, L]"""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(LENGTHS), SLOTS, WIDTH, dtype=torch.float64, generator=generator)
    valid = event_mask(torch.tensor(LENGTHS), SLOTS)
    return x * valid[..., None], valid


@pytest.mark.parametrize("cutoff", [1, 5, 9])
@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_module_agrees_with_the_reference(spectrum: Spectrum, cutoff: int) -> None:
    module, (x, valid) = module_of(spectrum, cutoff), histories()
    out = module(x, valid).detach().numpy()
    weights = reference.weights_of(module)
    for u, n in enumerate(LENGTHS):
        expected = reference.frequency(weights, x[u, :n].numpy(), SLOTS, cutoff, spectrum)
        np.testing.assert_allclose(out[u, :n], expected, atol=1e-10)
        assert (out[u, n:] == 0).all()


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_float32_module_agrees_to_1e_6(spectrum: Spectrum) -> None:
    module, (x, valid) = FrequencyModule(WIDTH, SLOTS, 5, spectrum, 8), histories()
    out = module(x.float(), valid).detach().numpy()
    weights = reference.weights_of(module)
    for u, n in enumerate(LENGTHS):
        expected = reference.frequency(weights, x[u, :n].numpy(), SLOTS, 5, spectrum)
        np.testing.assert_allclose(out[u, :n], expected, atol=3e-6)


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_slots_beyond_the_longest_history_change_nothing(spectrum: Spectrum) -> None:
    module, (x, valid) = module_of(spectrum, 5), histories()
    short = [u for u, n in enumerate(LENGTHS) if n <= 20]
    full, trimmed = module(x[short], valid[short]), module(x[short, :20], valid[short, :20])
    torch.testing.assert_close(full[:, :20], trimmed, atol=1e-12, rtol=0)


@pytest.mark.parametrize("spectrum", get_args(Spectrum))
def test_gradients_are_finite_without_events(spectrum: Spectrum) -> None:
    module, (x, valid) = module_of(spectrum, 5), histories()
    x.requires_grad_()
    module(x, valid).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert x.grad.isfinite().all()
