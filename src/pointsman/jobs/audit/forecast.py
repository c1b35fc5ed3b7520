"""What an audit will cost, before it starts: forwards, tokens and minutes of every stage.

`predict` is arithmetic on the audit's settings and the lengths of its prompts, with the engine's own counts: a forward
of R rows of n tokens from layer l on computes R n tokens and R n (D - l) token-layers. `Pace` turns these into
seconds; `measure` takes it from about a second of the engine at hand, and `pilot` the length of answers from a few.

How early searches end is not known in advance and is assumed; so is the length of answers that the pilot cuts off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pointsman.data.types import Behaviour, Conversation
from pointsman.engine.types import Engine, Prompt
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.routes import other_targets
from pointsman.jobs.audit.work import Asked, Work
from pointsman.methods.attempts import CHUNK
from pointsman.methods.fsour import group_size
from pointsman.methods.rosais import TOGETHER
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Intervention

FORECAST = "forecast"
"""The step of a run that remembers its forecast: a resumed run shows the one it began with."""

_ROWS = 8  # of a timed forward
_STEPS = 4  # of a timed generation
_BRIEF = 0.1  # seconds; what takes less is timed again
_LONG = 0.5  # seconds; no larger forward is timed
_PILOT = 4  # answers
_PILOT_TOKENS = 64  # of each at most


@dataclass(frozen=True)
class Assumed:
    """What is not known in advance.

    Attributes:
        searched: Share of all (token, layer) that a search visits before log p(target) reaches tau.
        restarts: Searches that a behaviour needs, at most as many as it may have.
        answered: Share of the longest answer allowed that the longest answer of a batch takes; the pilot's if it ends.
        succeeded: Share of searches that succeed, whose routes can be replayed.
        uniform: The first of n masked routers lies where the first of n random ones does on average, not in front.
    """

    searched: float = 0.5
    restarts: float = 1.3
    answered: float = 0.6
    succeeded: float = 0.9
    uniform: bool = True


WORST = Assumed(1.0, math.inf, 1.0, 1.0, uniform=False)
"""The upper bound."""


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
    """

    forwards: float = 0.0
    tokens: float = 0.0
    token_layers: float = 0.0
    calls: float = 0.0
    tried: float = 0.0
    decoded: float = 0.0

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
class Lengths:
    """Tokens of some behaviours.

    Attributes:
        prompts, targets: Shape: [behaviours].
    """

    prompts: tuple[int, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int | None = None) -> Lengths:
        """Some of them."""
        return Lengths(self.prompts[start:stop], self.targets[start:stop])

    @staticmethod
    def of(engine: Engine, behaviours: Sequence[Behaviour]) -> Lengths:
        return Lengths(
            tuple(len(engine.encode(b.turns)) for b in behaviours),
            tuple(len(engine.encode_target(b.target)) if b.target else 1 for b in behaviours),
        )


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
            + self.token_layer * effort.token_layers
        )


# ---------------------------------------------------------------------- formulas


def scored(shape: Shape, rows: int, tokens: int, layer: int = 0) -> Effort:
    """Scoring `rows` rows of `tokens` tokens from decoder layer `layer` on."""
    if not rows:
        return Effort()
    forwards = math.ceil(rows / max(shape.batch // max(tokens, 1), 1))
    layers = shape.depth - (layer if shape.from_layer else 0)
    return Effort(forwards, rows * tokens, rows * tokens * layers, forwards * layers)


def generated(shape: Shape, prompts: Sequence[int], answer: float) -> Effort:
    """Answering prompts of these lengths with `answer` tokens or what the context holds, in units of `CHUNK`."""
    total = Effort()
    for start in range(0, len(prompts), CHUNK):
        unit = sorted(prompts[start : start + CHUNK], reverse=True)
        rows = max(int(shape.batch // (unit[0] + answer)), 1)
        for first in range(0, len(unit), rows):
            batch = unit[first : first + rows]
            new = max(min(answer, shape.context - batch[0]), 1)
            tokens = len(batch) * (batch[0] + new - 1)
            total += Effort(new, tokens, tokens * shape.depth, decoded=new)
    return total


def ranked(shape: Shape, asked: Lengths, samples: int, *, whole: bool = False, together: int = TOGETHER) -> Effort:
    """RoSais: every prompt once, then S masks from each router's layer on.

    Args:
        whole: By the whole target, not by its first token.
        together: Prompts scored side by side.
    """
    total = Effort()
    for start in range(0, len(asked), together):
        total += _under_masks(shape, asked.part(start, start + together), samples, shape.routers, whole=whole)
    return total


def masked(shape: Shape, asked: Lengths, samples: int, layer: int, answer: float) -> Effort:
    """Masking from router `layer` on: every prompt once, S masks each from there, and an answer."""
    total = generated(shape, asked.prompts, answer)
    for start in range(0, len(asked), CHUNK):
        total += _under_masks(shape, asked.part(start, start + CHUNK), samples, [shape.routers[layer]])
    return total


def _under_masks(shape: Shape, asked: Lengths, samples: int, layers: Sequence[int], *, whole: bool = False) -> Effort:
    """One batch of prompts, each once and then S times from each of these decoder layers on."""
    end = max(p + (t if whole else 1) - 1 for p, t in zip(asked.prompts, asked.targets, strict=True))
    total = scored(shape, len(asked), end)
    for layer in layers:
        total += scored(shape, samples * len(asked), end, layer)
    return total


def searched(shape: Shape, asked: Lengths, candidates: int, together: int, share: float) -> Effort:
    """One restart of F-SOUR for some behaviours, without the answers.

    A candidate at (t, l) computes S - t tokens, S = prompt + target - 1, in the layers from l on; rows of a group are
    as long as the longest. The last layer is computed only from a prompt's last token on: no one reads what it makes of
    the others. A share of all (t, l) is visited, tokens first.
    """
    total = Effort()
    for start in range(0, len(asked), together):
        group = asked.part(start, start + together)
        ends = [p + t - 1 for p, t in zip(group.prompts, group.targets, strict=True)]
        total += scored(shape, len(group), max(ends))
        longest = 1 - 2 * (1 - share) / (len(group) + 1)  # share of the longest search, if they spread evenly
        forwards = tokens = token_layers = calls = 0.0
        for token in range(max(group.prompts)):
            visited = [min(max(share * p - token, 0.0), 1.0) for p in group.prompts]  # shares of this token's layers
            any_visited = min(max(longest * max(group.prompts) - token, 0.0), 1.0)
            for layer in shape.routers:
                idle = shape.from_token and layer == shape.depth - 1
                alive = [b for b, p in enumerate(group.prompts) if token < p and (token == p - 1 or not idle)]
                if not alive:
                    continue
                layers = shape.depth - (layer if shape.from_layer else 0)
                length = max(ends[b] for b in alive) - (token if shape.from_token else 0)
                rows = candidates * sum(visited[b] for b in alive)
                made = any_visited * math.ceil(candidates * len(alive) * length / shape.batch)
                forwards += made
                calls += made * layers
                tokens += rows * length
                token_layers += rows * length * layers
        total += Effort(forwards, tokens, token_layers, tried=calls)
    return total


def fsour(
    shape: Shape, asked: Lengths, candidates: int, together: int, restarts: int, answer: float, assumed: Assumed
) -> Effort:
    """F-SOUR with its answers: one without a route, and one for every restart."""
    once = searched(shape, asked, candidates, together, assumed.searched)
    answers = Effort()
    for start in range(0, len(asked), together):
        answers += generated(shape, asked.part(start, start + together).prompts, answer)
    number = min(assumed.restarts, restarts)
    return once.times(number) + answers.times(number + 1)


# ---------------------------------------------------------------------- the audit


@dataclass(frozen=True)
class Sizes:
    """What an audit asks, in tokens.

    Attributes:
        discovery, test, benign, borderline, benign_discovery: As in `Asked`.
        turns: Prompt tokens of every turn of every conversation, without the model's answers. Shape: [c][turns].
        others: Behaviours of the search with each other target. Shape: [other targets].
    """

    discovery: Lengths
    test: Lengths
    benign: Lengths
    borderline: Lengths
    benign_discovery: Lengths
    turns: tuple[tuple[int, ...], ...]
    others: tuple[Lengths, ...]


def predict(audit: Audit, shape: Shape, sizes: Sizes, longest: int, assumed: Assumed) -> dict[str, Effort]:
    """The effort of every stage that does something.

    Args:
        longest: Tokens of the longest answer allowed.
    """
    answer = max(assumed.answered * longest, 1.0)
    test, searches = sizes.test, sizes.test.part(0, audit.searches)
    some = searches.part(0, audit.other_targets)
    number = min(assumed.restarts, audit.restarts)
    group = group_size(audit.together, audit.candidates)

    def search(asked: Lengths, restarts: int) -> Effort:
        return fsour(shape, asked, audit.candidates, group, restarts, answer, assumed)

    stages = {
        "base": generated(shape, test.prompts, answer),
        "benign": generated(shape, sizes.benign.prompts, answer),
        "borderline": generated(shape, sizes.borderline.prompts, answer),
        "multi_turn": _played(shape, sizes.turns, answer),
        "rosais": ranked(shape, sizes.discovery, audit.samples),
        "rosais_target": ranked(shape, sizes.discovery, audit.samples, whole=True),
        **_masking(audit, shape, sizes, answer, assumed),
        "fsour": search(searches, audit.restarts),
    }
    if audit.route_controls:
        plain = scored(shape, len(searches), max(searches.prompts, default=0))
        stages["route_controls"] = generated(shape, searches.prompts, answer).times(number + 1) + plain
    if audit.other_targets:
        stages["targets"] = sum((search(group, 1) for group in sizes.others), Effort())
        stages["min_gain"] = search(some, 1)
    if audit.transfer:
        most = min(audit.transfer, int(assumed.succeeded * len(searches)))
        each = generated(shape, searches.prompts[:most], answer) if most > 1 else Effort()
        stages["transfer"] = each.times(most)
    if audit.placebo and len(sizes.benign_discovery):
        placebo = ranked(shape, sizes.benign_discovery, audit.samples)
        stages["placebo"] = generated(shape, sizes.discovery.prompts, answer) + placebo
    if audit.method_seeds > 1:
        stages["rosais_seeds"] = stages["rosais"].times(audit.method_seeds - 1)
        stages["fsour_seeds"] = stages["fsour"].times(audit.method_seeds - 1)
    return {stage: effort for stage, effort in stages.items() if effort.forwards}


def _played(shape: Shape, turns: Sequence[Sequence[int]], answer: float) -> Effort:
    """Conversations: turn n of all that have one is one batch, with the answers before it in the prompt."""
    total = Effort()
    for start in range(0, len(turns), CHUNK):
        unit = turns[start : start + CHUNK]
        for n in range(max(len(t) for t in unit)):
            prompts = [min(int(t[n] + n * answer), shape.context - 1) for t in unit if len(t) > n]
            total += generated(shape, prompts, answer)
    return total


def _masking(audit: Audit, shape: Shape, sizes: Sizes, answer: float, assumed: Assumed) -> dict[str, Effort]:
    """The stages on masked routers and noise; the first of n random routers of L lies at (L - n) / (n + 1)."""
    layers, phases = len(shape.routers), len(audit.phases)
    benign = sizes.benign.part(0, audit.utility_prompts)
    plain, answers = generated(shape, benign.prompts, answer), generated(shape, sizes.test.prompts, answer)
    attack, frozen, utility, seeds = Effort(), Effort(), plain, Effort()
    for number in range(1, min(audit.routers or max(1, min(5, layers // 4)), layers) + 1):
        first = (layers - number) // (number + 1) if assumed.uniform else 0
        some, draws = layers - number >= number, audit.random_draws if layers - number >= number else 0
        once = masked(shape, sizes.test, audit.samples, first, answer)
        attack += once.times(phases * (1 + some) + draws + (phases - 1) * min(draws, 1))
        for n in range(len(sizes.discovery)):
            frozen += _under_masks(shape, sizes.discovery.part(n, n + 1), audit.samples, [shape.routers[first]])
        frozen += answers.times(phases)
        utility += masked(shape, benign, audit.samples, first, answer).times(phases * (1 + some + min(draws, 1)))
        utility += plain.times(phases)
        seeds += once.times(audit.method_seeds - 1)
    traced = scored(shape, len(sizes.discovery), max(sizes.discovery.prompts))
    noise = (traced + (answers + plain).times(len(audit.noise))) if audit.noise else Effort()
    return {
        "masking": attack,
        "dataset_mask": frozen,
        "utility": utility if len(benign) else Effort(),
        "noise": noise,
        "masking_seeds": seeds,
    }


# ---------------------------------------------------------------------- the engine at hand


def measure(engine: Engine, behaviours: Sequence[Behaviour]) -> tuple[Shape, Pace]:
    """Time a few forwards: one row and several, candidates of a route, and a short generation. Changes no result.

    From where the engine resumes a forward is seen from what it counts for candidates at the last layer and token.
    """
    shape = Shape.of(engine)
    prompts, targets = _asked(engine, behaviours, _ROWS)
    rng = stream(0, FORECAST)
    everywhere = {r.layer: r.draw(rng, 1)[0].tolist() for r in engine.routers}
    route = Intervention.force(everywhere, phase="prefill")

    few, few_layers = _timed(engine, lambda: engine.score(prompts[:1], targets[:1], routing=route))
    rows, many, many_layers = _ROWS, few, few_layers
    while many < _LONG and rows * (len(prompts[0]) + len(targets[0])) <= shape.batch // 4:  # as full as real ones
        rows *= 2
        wide = _asked(engine, behaviours, rows)
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

    short, short_layers = _timed(engine, lambda: engine.generate(prompts, routing=route, max_new_tokens=_STEPS))
    decoded = max(short - token_layer * short_layers, 0.0) / _STEPS
    return shape, Pace(call, candidates, decoded, token_layer)


def pilot(engine: Engine, behaviours: Sequence[Behaviour], longest: int) -> dict[str, int | None]:
    """Answer a few prompts, briefly.

    Args:
        longest: Tokens of the longest answer allowed.

    Returns:
        The number of ``answers``, and ``tokens`` of the longest with its end; None if every one was cut off.
    """
    most, some = min(longest, _PILOT_TOKENS), behaviours[:_PILOT]
    answers = engine.generate([engine.encode(b.turns) for b in some], max_new_tokens=most)
    cut = most < longest and all(not a.finished and len(a.ids) >= most for a in answers)
    return {"answers": len(answers), "tokens": None if cut else max(len(a.ids) + a.finished for a in answers)}


def gpus(engine: Engine) -> int:
    """How many GPUs hold the model."""
    model = getattr(engine, "model", None)
    used = {p.device for p in model.parameters() if p.device.type == "cuda"} if model is not None else set()
    return max(len(used), int(engine.info.device.startswith("cuda")))


def _asked(engine: Engine, behaviours: Sequence[Behaviour], rows: int) -> tuple[list[Prompt], list[tuple[int, ...]]]:
    """Prompts and targets of as many rows."""
    asked = [behaviours[n % len(behaviours)] for n in range(rows)]
    return [engine.encode(b.turns) for b in asked], [engine.encode_target(b.target) for b in asked]


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


def forecast(work: Work, asked: Asked, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """The forecast of an audit, remembered by its run.

    Returns:
        ``cost.predicted`` of ``results.json``.
    """
    engine, audit = work.engine, work.audit

    def compute() -> dict[str, Any]:
        sizes = _sizes(engine, audit, asked, conversations)
        shape, pace = measure(engine, asked.test)
        longest = work.answer_tokens
        answers = pilot(engine, [*asked.benign[: _PILOT // 2], *asked.test], longest)
        assumed = Assumed() if answers["tokens"] is None else Assumed(answered=answers["tokens"] / longest)
        expected = predict(audit, shape, sizes, longest, assumed)
        most = predict(audit, shape, sizes, longest, WORST)
        return {**_to_json(expected, most, pace, assumed, gpus(engine)), "pilot": answers}

    predicted: dict[str, Any] = work.run.remember(FORECAST, compute)
    return predicted


def _to_json(
    expected: Mapping[str, Effort], most: Mapping[str, Effort], pace: Pace, assumed: Assumed, used: int
) -> dict[str, Any]:
    def entry(effort: Effort) -> dict[str, Any]:
        return {
            "forwards": round(effort.forwards),
            "tokens": round(effort.tokens),
            "token_layers": round(effort.token_layers),
            "seconds": round(pace.seconds(effort), 1),
        }

    total = sum(expected.values(), Effort())
    result = {
        **entry(total),
        "upper": entry(sum(most.values(), Effort())),
        "stages": [{"stage": stage, **entry(effort)} for stage, effort in expected.items()],
        "assumed": asdict(assumed),
        "pace": {"seconds": asdict(pace)},
    }
    if used:
        result["gpus"] = used
        result["gpu_hours"] = round(used * pace.seconds(total) / 3600, 2)
    return result


def _sizes(engine: Engine, audit: Audit, asked: Asked, conversations: Sequence[Conversation]) -> Sizes:
    searches = asked.test[: audit.searches]
    others = other_targets(engine, searches, audit.other_targets) if audit.other_targets else []
    turns = tuple(
        tuple(len(engine.encode(c.turns[: n + 1], answers=[""] * n)) for n in range(len(c.turns)))
        for c in conversations
    )
    return Sizes(
        discovery=Lengths.of(engine, asked.discovery),
        test=Lengths.of(engine, asked.test),
        benign=Lengths.of(engine, asked.benign),
        borderline=Lengths.of(engine, asked.borderline),
        benign_discovery=Lengths.of(engine, asked.benign_discovery),
        turns=turns,
        others=tuple(Lengths.of(engine, group) for _, group in others),
    )


def in_words(predicted: Mapping[str, Any], *, resumed: bool = False) -> str:
    """One line, such as "About 12 minutes (at most 40): 8,000 forwards, 2.1 million tokens".

    Args:
        resumed: Some of it is done: say that this is the whole run.
    """
    likely, most = predicted["seconds"], predicted["upper"]["seconds"]
    line = f"The whole run: {_duration(likely)}" if resumed else _duration(likely).capitalize()
    line += f" (at most {_duration(most).removeprefix('about ')}): "
    line += f"{predicted['forwards']:,} forwards of {_many(predicted['tokens'])} tokens"
    if "gpu_hours" in predicted:
        line += f", {predicted['gpu_hours']:.2g} GPU-hours"
    return line


def against(cost: Mapping[str, Any]) -> str:
    """One line on a finished audit: what it took, and what was foretold."""
    predicted, fact, foretold = cost["predicted"], "", ""
    if "gpu_hours" in predicted:
        fact = f", {predicted.get('gpus', 1) * cost['seconds'] / 3600:.2g} GPU-hours"
        foretold = f", {predicted['gpu_hours']:.2g} GPU-hours"
    return (
        f"It took {_duration(cost['seconds'])} of computing, {cost['forwards']:,} forwards and "
        f"{_many(cost['tokens'])} tokens{fact}; foretold: {_duration(predicted['seconds'])}, "
        f"{predicted['forwards']:,} forwards and {_many(predicted['tokens'])} tokens{foretold}"
    )


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
