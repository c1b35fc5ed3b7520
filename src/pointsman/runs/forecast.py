"""What a run will take and what it took, in one line each. The forecast itself is made by the job."""

from __future__ import annotations

from pointsman.runs.results import Forecast, RunCost, Spent


def foretold(forecast: Forecast, *, resumed: bool = False) -> str:
    """One line, such as "About 12 minutes (at most 40): 8,000 forwards, 2.1 million tokens".

    Args:
        resumed: Some of it is done: say that this is the whole run.
    """
    likely = _duration(forecast.seconds)
    line = f"The whole run: {likely}" if resumed else likely.capitalize()
    if forecast.upper is not None:
        line += f" (at most {_duration(forecast.upper.seconds).removeprefix('about ')})"
    line += f": {forecast.forwards:,} forwards of {_many(forecast.tokens)} tokens"
    return line if forecast.gpu_hours is None else f"{line}, {forecast.gpu_hours:.2g} GPU-hours"


def against_forecast(cost: RunCost, forecast: Forecast) -> str:
    """One line on a finished run: what it took, and what was foretold."""
    fact = before = ""
    if forecast.gpu_hours is not None:
        fact = f", {(forecast.gpus or 1) * cost.seconds / 3600:.2g} GPU-hours"
        before = f", {forecast.gpu_hours:.2g} GPU-hours"
    return (
        f"It took {_duration(cost.seconds)} of computing, {_counts(cost)}{fact}; "
        f"foretold: {_duration(forecast.seconds)}, {_counts(forecast)}{before}"
    )


def _counts(spent: Spent) -> str:
    return f"{spent.forwards:,} forwards and {_many(spent.tokens)} tokens"


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.95 * length:
            return f"about {seconds / length:.{1 if unit == 'hours' and seconds < 36000 else 0}f} {unit}"
    return f"about {round(seconds)} seconds" if seconds >= 1.5 else "about a second"


def _many(count: int) -> str:
    for word, size in (("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {word}"
    return f"{count:,}"
