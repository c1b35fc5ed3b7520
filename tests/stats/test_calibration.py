"""Calibration: bins and error."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from pointsman.stats.calibration import Calibration, CalibrationBin


def test_calibration_bins() -> None:
    found = Calibration.of(np.array([0.0, 0.05, 0.95, 1.0]), np.array([0, 1, 1, 1]))
    assert found.bins[0] == CalibrationBin(0.025, 0.5, 2)
    assert found.bins[9] == CalibrationBin(0.975, 1.0, 2)
    assert found.bins[4] == CalibrationBin(None, None, 0)
    assert found.ece == pytest.approx((0.475 + 0.025) / 2)
    assert Calibration.from_json(asdict(found)) == found
