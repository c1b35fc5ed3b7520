"""What a run will take and what it took, in one line each. What its stages compute is foretold by the job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pointsman.engine.pace import Effort, Pace, Shape, generation_effort, gpus
from pointsman.engine.types import Engine, GradientMemory
from pointsman.methods.steps import CHUNK
from pointsman.runs.results import Forecast, RunCost, Spent, StageCost


def answers_effort(shape: Shape, prompts: Sequence[int], longest: float) -> Effort:
    """Answers of that many tokens to prompts of these lengths, in units of `CHUNK`."""
    units = (prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK))
    return sum((generation_effort(shape, unit, longest) for unit in units), Effort())


def played_effort(shape: Shape, turns: Sequence[Sequence[int]], answer: float) -> Effort:
    """Conversations: turn n of all that have one is one batch, with the answers before it in the prompt."""
    total = Effort()
    for start in range(0, len(turns), CHUNK):
        unit = turns[start : start + CHUNK]
        for n in range(max(len(t) for t in unit)):
            prompts = [min(int(t[n] + n * answer), shape.context - 1) for t in unit if len(t) > n]
            total += generation_effort(shape, prompts, answer)
    return total


def forecast_of(
    engine: Engine,
    pace: Pace,
    stages: Mapping[str, Effort],
    most: Mapping[str, Effort],
    assumed: Mapping[str, float | bool],
    answers: Mapping[str, int | None],
) -> Forecast:
    """The forecast of these stages at this pace.

    Args:
        most: The stages at most.
        assumed: What was not known in advance.
        answers: Of the pilot.
    """
    likely, used = _spent(pace, sum(stages.values(), Effort())), gpus(engine)
    return Forecast(
        **asdict(likely),
        upper=_spent(pace, sum(most.values(), Effort())),
        stages=tuple(StageCost(stage=stage, **asdict(_spent(pace, effort))) for stage, effort in stages.items()),
        assumed=assumed,
        pace={"seconds": asdict(pace)},
        pilot=answers,
        gpus=used or None,
        gpu_hours=round(used * likely.seconds / 3600, 2) if used else None,
    )


def _spent(pace: Pace, effort: Effort) -> Spent:
    return Spent(
        forwards=round(effort.forwards),
        tokens=round(effort.tokens),
        token_layers=round(effort.token_layers),
        seconds=round(pace.seconds(effort), 1),
    )


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
    line += "" if forecast.gpu_hours is None else f", {forecast.gpu_hours:.2g} GPU-hours"
    return line if forecast.gradient_memory is None else f"{line}; {memory_foretold(forecast.gradient_memory)}"


def memory_foretold(memory: GradientMemory) -> str:
    """Such as "gradients and their tries need about 1.3 GiB above the model, 20 GiB are free"."""
    line = f"gradients and their tries need about {_gib(memory.needed)} above the model"
    if memory.by_layer:
        line += ", layer by layer"
    return line if memory.free is None else f"{line}, {_gib(memory.free)} are free"


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


def _gib(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**30 / 10 else f"{max(round(count / 2**20), 1)} MiB"


def _many(count: int) -> str:
    for word, size in (("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {word}"
    return f"{count:,}"
