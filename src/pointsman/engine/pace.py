"""How fast an engine is: what a forward computes, how many seconds that takes, and how long answers are.

A forward of R rows of n tokens from layer l on computes R n tokens and R n (D - l) token-layers, as the engine itself
counts them. `Pace` turns these into seconds; `time_forwards` takes it from about a second of the engine at hand, and
`pilot` the length of answers from a few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np

from pointsman.engine.types import Engine, Prompt
from pointsman.routing.intervention import Intervention

Item = TypeVar("Item")
_ROWS = 8  # of a timed forward
_STEPS = 4  # of a timed generation
_BRIEF = 0.1  # seconds; what takes less is timed again
_LONG = 0.5  # seconds; once several rows take so long, no more are timed
_PILOT = 4  # answers
_PILOT_TOKENS = 64  # of each at most


@dataclass(frozen=True)
class Effort:
    """What is computed.

    Attributes:
        forwards: Of a batch of rows; in generation one for each new token.
        tokens: Rows x tokens.
        token_layers: Rows x tokens x decoder layers.
        calls: Decoder layers of all forwards that score.
        tried: Decoder layers of all forwards that try candidates of a route.
        decoded: Forwards of generation.
        back: Token-layers that are gone through backwards as well, for a gradient: counted once, timed as three.
    """

    forwards: float = 0.0
    tokens: float = 0.0
    token_layers: float = 0.0
    calls: float = 0.0
    tried: float = 0.0
    decoded: float = 0.0
    back: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        mine, theirs = asdict(self), asdict(other)
        return Effort(**{name: mine[name] + theirs[name] for name in mine})

    def times(self, factor: float) -> Effort:
        """As much as `factor` of these."""
        return Effort(**{name: value * factor for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a forward.

    Attributes:
        depth: Decoder layers (D).
        routers: The decoder layer of each router. Shape: [L].
        batch: Tokens that one forward may hold, padding included.
        from_layer, from_token: Whether a forward can begin at a layer, and at a token.
        context: Tokens that a prompt and its answer may have.
    """

    depth: int
    routers: tuple[int, ...]
    batch: int
    from_layer: bool = True
    from_token: bool = True
    context: int = 1 << 20

    @staticmethod
    def of(engine: Engine) -> Shape:
        """The engine's; its batches as they are unless memory is short or the user chose them."""
        routers = tuple(r.decoder_layer for r in engine.routers)
        batch = 8192 if engine.info.device == "cpu" else 131072
        return Shape(routers[-1] + 1, routers, batch, context=engine.info.context)


@dataclass(frozen=True)
class Pace:
    """Seconds of an engine.

    Attributes:
        call: One decoder layer of a forward that scores, whatever its rows.
        tried: One decoder layer of a forward that tries candidates.
        decoded: One forward of generation.
        token_layer: One token in one layer, on top.
    """

    call: float
    tried: float
    decoded: float
    token_layer: float

    def seconds(self, effort: Effort) -> float:
        return (
            self.call * effort.calls
            + self.tried * effort.tried
            + self.decoded * effort.decoded
            + self.token_layer * (effort.token_layers + 2 * effort.back)
        )


def scoring_effort(shape: Shape, rows: int, tokens: int, layer: int = 0) -> Effort:
    """Scoring `rows` rows of `tokens` tokens from decoder layer `layer` on."""
    if not rows:
        return Effort()
    forwards = math.ceil(rows / max(shape.batch // max(tokens, 1), 1))
    layers = shape.depth - (layer if shape.from_layer else 0)
    return Effort(forwards, rows * tokens, rows * tokens * layers, forwards * layers)


def generation_effort(shape: Shape, prompts: Sequence[int], answer: float) -> Effort:
    """Answering prompts of these lengths, all at once, with `answer` tokens or what the context holds."""
    total, longest_first = Effort(), sorted(prompts, reverse=True)
    rows = max(int(shape.batch // (longest_first[0] + answer)), 1) if prompts else 1
    for first in range(0, len(prompts), rows):
        batch = longest_first[first : first + rows]
        new = max(min(answer, shape.context - batch[0]), 1)
        tokens = len(batch) * (batch[0] + new - 1)
        total += Effort(new, tokens, tokens * shape.depth, decoded=new)
    return total


# ---------------------------------------------------------------------- the engine at hand


def time_forwards(engine: Engine, prompts: Sequence[Prompt], targets: Sequence[tuple[int, ...]]) -> tuple[Shape, Pace]:
    """Time a few forwards: one row and several, candidates of a route, and a short generation. Changes no result.

    From where the engine resumes a forward is seen from what it counts for candidates at the last layer and token.
    """
    shape = Shape.of(engine)
    rng = np.random.default_rng(0)
    everywhere = {r.layer: r.draw(rng, 1)[0].tolist() for r in engine.routers}
    route = Intervention.force(everywhere, phase="prefill")

    few, few_layers = _timed(engine, lambda: engine.score(prompts[:1], targets[:1], routing=route))
    rows, many, many_layers = _ROWS, few, few_layers
    tokens = len(prompts[0]) + len(targets[0])
    while (many < _LONG or rows == _ROWS) and rows * tokens <= shape.batch // 4:  # as full as real ones
        rows *= 2
        wide = _repeated(prompts, rows), _repeated(targets, rows)
        many, many_layers = _timed(engine, lambda wide=wide: engine.score(*wide, routing=route))  # type: ignore[misc]
    token_layer = max((many - few) / max(many_layers - few_layers, 1), 0.0)
    call = max(few - token_layer * few_layers, 0.0) / shape.depth

    first, last = engine.routers[0], engine.routers[-1]
    sets = {0: first.draw(rng, _ROWS)}
    with engine.scorer(prompts[:1], targets[:1]) as scorer:
        tried, tried_layers = _timed(engine, lambda: scorer.tries(first.layer, 0, sets))
        before = engine.cost.copy()
        scorer.tries(last.layer, len(prompts[0]) - 1, {0: last.draw(rng, _ROWS)})
        spent = engine.cost - before
    shape = replace(
        shape,
        from_layer=spent.token_layers < spent.tokens * shape.depth,
        from_token=spent.tokens < _ROWS * (len(prompts[0]) + len(targets[0]) - 1),
    )
    layers = shape.depth - (first.decoder_layer if shape.from_layer else 0)
    candidates = max(tried - token_layer * tried_layers, 0.0) / layers

    eight = _repeated(prompts, _ROWS)
    short, short_layers = _timed(engine, lambda: engine.generate(eight, routing=route, max_new_tokens=_STEPS))
    decoded = max(short - token_layer * short_layers, 0.0) / _STEPS
    return shape, Pace(call, candidates, decoded, token_layer)


def pilot(engine: Engine, prompts: Sequence[Prompt], longest: int) -> dict[str, int | None]:
    """Answer the first few prompts, briefly.

    Args:
        longest: Tokens of the longest answer allowed.

    Returns:
        The number of ``answers``, and ``tokens`` of the longest with its end; None if every one was cut off.
    """
    most = min(longest, _PILOT_TOKENS)
    answers = engine.generate(prompts[:_PILOT], max_new_tokens=most)
    cut = most < longest and all(not a.finished and len(a.ids) >= most for a in answers)
    return {"answers": len(answers), "tokens": None if cut else max(len(a.ids) + a.finished for a in answers)}


def gpus(engine: Engine) -> int:
    """How many GPUs hold the model."""
    model = getattr(engine, "model", None)
    used = {p.device for p in model.parameters() if p.device.type == "cuda"} if model is not None else set()
    return max(len(used), int(engine.info.device.startswith("cuda")))


def _repeated(items: Sequence[Item], number: int) -> list[Item]:
    """As many as `number`, in turns."""
    return [items[n % len(items)] for n in range(number)]


def _timed(engine: Engine, run: Callable[[], object]) -> tuple[float, int]:
    """The engine's seconds for a call, and its token-layers; again if brief, since a first call prepares things."""
    seconds, layers = math.inf, 0
    for _ in range(3):
        before = engine.cost.copy()
        run()
        spent = engine.cost - before
        seconds, layers = min(seconds, spent.seconds), spent.token_layers
        if seconds > _BRIEF:
            break
    return seconds, layers
