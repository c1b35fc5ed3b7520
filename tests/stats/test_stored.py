"""Statistics as they are stored: a dataclass has the keys of its JSON in their order, and None where JSON has null."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from pointsman.stats.auroc import Auroc
from pointsman.stats.calibration import Calibration, CalibrationBin
from pointsman.stats.paired import AboveDraws, Comparison, above_draws, compare
from pointsman.stats.rank_agreement import SplitHalf, Stability, stability
from pointsman.stats.rates import Mean, Rate


@pytest.mark.parametrize(
    ("statistic", "text"),
    [
        (
            Rate(1, 2, 0.5, 0.1, 0.9, "Wilson", 3),
            '{"k": 1, "n": 2, "rate": 0.5, "low": 0.1, "high": 0.9, "method": "Wilson", "clusters": 3}',
        ),
        (
            Rate.of([]),
            '{"k": 0, "n": 0, "rate": null, "low": 0.0, "high": 1.0, "method": "no rows", "clusters": null}',
        ),
        (
            Mean(0.5, 0.1, 0.9, 2, "t", 3),
            '{"mean": 0.5, "low": 0.1, "high": 0.9, "n": 2, "method": "t", "clusters": 3}',
        ),
        (
            Mean.of([]),
            '{"mean": null, "low": null, "high": null, "n": 0, "method": "no rows", "clusters": null}',
        ),
        (
            Comparison(0.5, 0.1, 0.9, 0.2, 0.3, 4, 5, 6, "t", 7),
            '{"difference": 0.5, "low": 0.1, "high": 0.9, "p_mcnemar": 0.2, "p_clustered": 0.3, "n01": 4, "n10": 5, '
            '"n": 6, "method": "t", "clusters": 7}',
        ),
        (
            compare([], [], []),
            '{"difference": null, "low": -1.0, "high": 1.0, "p_mcnemar": 1.0, "p_clustered": 1.0, "n01": 0, "n10": 0, '
            '"n": 0, "method": "no rows", "clusters": 0}',
        ),
        (
            AboveDraws(0.5, 0.1, 0.9, 3, 1, 0.25),
            '{"difference": 0.5, "low": 0.1, "high": 0.9, "draws": 3, "reached": 1, "p_draws": 0.25}',
        ),
        (Auroc(0.5, 0.1, 0.9, 2), '{"value": 0.5, "low": 0.1, "high": 0.9, "n": 2}'),
        (Auroc.of([0.0], [1]), '{"value": null, "low": 0.0, "high": 1.0, "n": 1}'),
        (
            Calibration(0.5, (CalibrationBin(0.1, 0.2, 1), CalibrationBin(None, None, 0))),
            '{"ece": 0.5, "bins": [{"p": 0.1, "observed": 0.2, "n": 1}, {"p": null, "observed": null, "n": 0}]}',
        ),
        (
            Stability(0.5, SplitHalf(0.4, 0.1, 0.9, 200), 2, {"3": 1.0}),
            '{"kendall_w": 0.5, "split_half": {"mean": 0.4, "low": 0.1, "high": 0.9, "halves": 200}, "top_n": 2, '
            '"top": {"3": 1.0}}',
        ),
        (
            stability(np.zeros((1, 2)), ["a"], top_n=1),
            '{"kendall_w": null, "split_half": null, "top_n": 1, "top": {}}',
        ),
    ],
)
def test_keys_and_order(statistic: Any, text: str) -> None:
    assert json.dumps(asdict(statistic), allow_nan=False) == text


def test_what_is_computed_is_numbers_of_python() -> None:
    """numpy's own would be written by no JSON encoder, or not be equal to what is read."""
    won, lost, clusters = [True, True, False, True] * 6, [False, True, False, False] * 6, list("aabbcc") * 4
    p = np.linspace(0.05, 0.95, 24)
    for statistic in (
        Rate.of(won, clusters),
        Rate.over_draws([won, lost], clusters),
        Rate.over_pairs(np.outer(won, lost), [str(n // 2) for n in range(24)]),
        Mean.of(p.tolist(), clusters),
        Mean.of(p.tolist()),
        compare(won, lost, clusters),
        above_draws(won, [lost, won], clusters),
        Auroc.of(p, [int(w) for w in won], clusters),
        Calibration.of(p, np.array(won, dtype=np.int64)),
        stability(np.outer(p, [1.0, 2.0, 3.0]) + np.eye(24, 3), clusters, top_n=1),
    ):
        leaves: list[Any] = [asdict(statistic)]
        for leaf in leaves:
            if isinstance(leaf, dict | tuple):
                leaves += leaf.values() if isinstance(leaf, dict) else leaf
            else:
                assert type(leaf) in (bool, int, float, str, type(None)), statistic
