"""SGGD: at which noise levels current images serve as inputs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_magd.diffusion.schedule import NoiseSchedule
from avalanche_magd.distillation import MAGD
from avalanche_magd.distillation.sggd import outside_band


@given(low=st.floats(0.001, 1), high=st.floats(2, 100))
def test_a_lesson_is_outside_the_band_exactly_if_its_snr_is(low: float, high: float) -> None:
    snr = NoiseSchedule().snr(torch.arange(1000))
    expected = [not low <= ratio <= high for ratio in snr.tolist()]
    assert outside_band(snr, (low, high)).tolist() == expected


def test_without_a_band_no_lesson_is_outside() -> None:
    assert not outside_band(NoiseSchedule().snr(torch.arange(1000)), None).any()


@pytest.mark.parametrize("snr_band", [(1.0, 0.1), (-1.0, 0.1), (math.nan, 1.0), (0.1, math.nan)])
def test_what_is_no_band_is_refused(snr_band: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="with 0 ≤ low < high, or None; got"):
        MAGD(snr_band=snr_band)
