"""Sentences on what a run will take and what it took."""

from __future__ import annotations

from dataclasses import replace

from pointsman.runs.forecast import against_forecast, foretold
from pointsman.runs.results import Forecast, RunCost, Spent


def test_sentences_on_cost() -> None:
    upper = Spent(forwards=1, tokens=1, token_layers=1, seconds=8000)
    forecast = Forecast(forwards=8123, tokens=2_140_000, token_layers=1, seconds=700, upper=upper)
    assert foretold(forecast) == "About 12 minutes (at most 2.2 hours): 8,123 forwards of 2.1 million tokens"
    forecast = replace(forecast, gpu_hours=0.19, seconds=0.2, tokens=900)
    assert foretold(forecast) == "About a second (at most 2.2 hours): 8,123 forwards of 900 tokens, 0.19 GPU-hours"
    cost = RunCost(forwards=10, tokens=1000, token_layers=1, seconds=61.0, stages=())
    assert against_forecast(cost, forecast) == (
        "It took about 61 seconds of computing, 10 forwards and 1,000 tokens, 0.017 GPU-hours; foretold: about a "
        "second, 8,123 forwards and 900 tokens, 0.19 GPU-hours"
    )
    assert "1,000 tokens, 0.034 GPU-hours; " in against_forecast(cost, replace(forecast, gpus=2))
    assert "GPU" not in against_forecast(cost, replace(forecast, gpus=2, gpu_hours=None))
    assert foretold(forecast, resumed=True).startswith("The whole run: about a second (at most 2.2 hours): ")
