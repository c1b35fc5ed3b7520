"""What an audit will cost, before it starts: forwards, tokens and minutes of every stage.

`predict` is arithmetic on the audit's settings and the lengths of its prompts, in the efforts of `engine.pace`. How
early searches end is not known in advance and is assumed; so is the length of unrouted answers that the pilot cuts off.

Answers under a mask, a route or noise are counted at the longest length allowed. The pilot answers without a routing
and says nothing of them; and a batch lasts as long as its longest answer: where the model is disturbed, some answer of
nearly every batch runs to the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import that_guides
from pointsman.engine.learning import BACKWARD
from pointsman.engine.pace import Effort, Shape, pilot, scoring_effort, time_forwards
from pointsman.engine.types import Engine, GradientMemory
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.ranking import checked_prompts
from pointsman.jobs.audit.route_attacks import RouteAttacks
from pointsman.jobs.audit.route_variants import other_targets
from pointsman.jobs.audit.routes import guided_method
from pointsman.jobs.audit.universal import forwards_of_gradient, random_routes
from pointsman.methods.fsour import group_size
from pointsman.methods.guided import Guided
from pointsman.methods.rosais import TOGETHER
from pointsman.methods.screen import Screen
from pointsman.methods.steps import CHUNK
from pointsman.methods.universal import Universal
from pointsman.runs.bench import Bench
from pointsman.runs.forecast import answers_effort, forecast_of, played_effort
from pointsman.runs.results import Forecast, dump, read
from pointsman.runs.run import FORECAST


@dataclass(frozen=True)
class Assumed:
    """What is not known in advance.

    Attributes:
        searched: Share of all (token, layer) that a search visits before log p(target) reaches tau.
        restarts: Searches that a behaviour needs, at most as many as it may have.
        answered: Share of the longest answer allowed that the longest unrouted answer of a batch takes; the pilot's if
            it ends. Under a routing, batches take all of it.
        succeeded: Share of searches that succeed, whose routes can be replayed.
        uniform: The first of n masked routers, and of n pairs of a route, lies where the first of n random ones does on
            average, not in front.
        iterations: Gradients that Guided takes for a route, at most as many as it may; each but the last is followed by
            pairs alone.
        arrives: The last of them need not be.
        halvings: Tries that follow the joint try that arrives, at most as many as there are pairs between it and the
            one before.
        pairs: That Guided tries to leave out of its route, at most as many as it may have.
    """

    searched: float = 0.5
    restarts: float = 1.3
    answered: float = 0.6
    succeeded: float = 0.9
    uniform: bool = True
    iterations: float = 1.0
    arrives: bool = True
    halvings: float = 4.0
    pairs: float = 8.0

    def unrouted(self, longest: int) -> float:
        """Tokens of the longest answer of a batch without a routing, of `longest` allowed."""
        return max(self.answered * longest, 1.0)


_GRADIENT_CALLS = 4.0
"""Of every layer in a route gradient: forward, backward, which counts two, and all of its experts, side by side."""

_ITERATIONS, _PLACES = 4, 4  # of the search of a universal route, and the places that one adds: assumed as well
WORST = Assumed(
    1.0, math.inf, 1.0, 1.0, uniform=False, iterations=math.inf, arrives=False, halvings=math.inf, pairs=math.inf
)
"""The upper bound."""


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


# ---------------------------------------------------------------------- formulas


def rosais_effort(shape: Shape, asked: Lengths, samples: int, *, whole: bool = False) -> Effort:
    """RoSais: every prompt once, then S masks from each router's layer on.

    Args:
        whole: By the whole target, not by its first token.
    """
    total = Effort()
    for start in range(0, len(asked), TOGETHER):
        total += _under_masks(shape, asked.part(start, start + TOGETHER), samples, shape.routers, whole=whole)
    return total


def screen_effort(shape: Shape, asked: Lengths, gradient: float, *, whole: bool = False) -> Effort:
    """The screen: a route gradient of every prompt.

    Args:
        gradient: What one takes, in forwards of its row.
        whole: Of the whole target, not of its first token.
    """
    total = Effort()
    for start in range(0, len(asked), TOGETHER):
        some = asked.part(start, start + TOGETHER)
        end = max(p + (t if whole else 1) - 1 for p, t in zip(some.prompts, some.targets, strict=True))
        total += _gradient_effort(shape, len(some), end, gradient)
    return total


def _gradient_effort(shape: Shape, rows: int, tokens: int, gradient: float) -> Effort:
    """Route gradients of some rows, each of which takes `gradient` forwards of it."""
    once = scoring_effort(replace(shape, batch=max(shape.batch // BACKWARD, 1)), rows, tokens)
    return replace(once, token_layers=gradient * once.token_layers, calls=_GRADIENT_CALLS * once.calls)


def universal_effort(shape: Shape, asked: Lengths, gradient: float, assumed: Assumed) -> Effort:
    """The search of a universal route: in every iteration the gradients of all prompts, and all of them in every try.

    Args:
        gradient: What one takes, in forwards of its row.
    """
    method = Universal()
    iterations = method.iterations if assumed == WORST else min(_ITERATIONS, method.iterations)
    end = max(p + t - 1 for p, t in zip(asked.prompts, asked.targets, strict=True))
    tries = method.joint.bit_length() + method.singles - 1
    pruned = iterations * (method.joint if assumed == WORST else _PLACES)
    once = screen_effort(shape, asked, gradient, whole=True) + scoring_effort(shape, tries * len(asked), end)
    return once.times(iterations) + scoring_effort(shape, len(asked), end).times(1 + pruned)


def masking_effort(shape: Shape, asked: Lengths, samples: int, layer: int, answer: float) -> Effort:
    """Masking from router `layer` on: every prompt once, S masks each from there, and an answer."""
    total = answers_effort(shape, asked.prompts, answer)
    for start in range(0, len(asked), CHUNK):
        total += _under_masks(shape, asked.part(start, start + CHUNK), samples, [shape.routers[layer]])
    return total


def _under_masks(shape: Shape, asked: Lengths, samples: int, layers: Sequence[int], *, whole: bool = False) -> Effort:
    """One batch of prompts, each once and then S times from each of these decoder layers on."""
    end = max(p + (t if whole else 1) - 1 for p, t in zip(asked.prompts, asked.targets, strict=True))
    total = scoring_effort(shape, len(asked), end)
    for layer in layers:
        total += scoring_effort(shape, samples * len(asked), end, layer)
    return total


def search_effort(shape: Shape, asked: Lengths, candidates: int, together: int, share: float) -> Effort:
    """One restart of F-SOUR for some behaviours, without the answers.

    A candidate at (t, l) computes S - t tokens, S = prompt + target - 1, in the layers from l on; rows of a group are
    as long as the longest. The last layer is computed only from a prompt's last token on: no one reads what it makes of
    the others. A share of all (t, l) is visited, tokens first.
    """
    total = Effort()
    for start in range(0, len(asked), together):
        group = asked.part(start, start + together)
        ends = [p + t - 1 for p, t in zip(group.prompts, group.targets, strict=True)]
        total += scoring_effort(shape, len(group), max(ends))
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


def fsour_effort(
    shape: Shape, asked: Lengths, candidates: int, together: int, restarts: int, longest: int, assumed: Assumed
) -> Effort:
    """F-SOUR with its answers: one without a route, and one under the route of every restart."""
    once = search_effort(shape, asked, candidates, together, assumed.searched)
    plain, routed = Effort(), Effort()
    for start in range(0, len(asked), together):
        group = asked.part(start, start + together).prompts
        plain += answers_effort(shape, group, assumed.unrouted(longest))
        routed += answers_effort(shape, group, longest)
    return plain + (once + routed).times(min(assumed.restarts, restarts))


def guided_effort(
    shape: Shape, asked: Lengths, method: Guided, gradient: float, longest: int, assumed: Assumed
) -> Effort:
    """Guided with its answers: one without a route, and one under the route that it finds.

    Args:
        gradient: What one route gradient takes, in forwards of its row.
    """
    total = guided_search_effort(shape, asked, method, gradient, assumed)
    for start in range(0, len(asked), method.together):
        group = asked.part(start, start + method.together).prompts
        total += answers_effort(shape, group, assumed.unrouted(longest)) + answers_effort(shape, group, longest)
    return total


def guided_search_effort(shape: Shape, asked: Lengths, method: Guided, gradient: float, assumed: Assumed) -> Effort:
    """The search of Guided, without the answers.

    Args:
        gradient: What one route gradient takes, in forwards of its row.
    """
    layers, total = len(shape.routers), Effort()
    iterations = min(assumed.iterations, method.iterations)
    joint = [2**n for n in range(method.joint.bit_length())]
    halvings = min(assumed.halvings, math.log2(method.joint) - 1)  # between the joint try that arrives and the last
    for start in range(0, len(asked), method.together):
        group = asked.part(start, start + method.together)
        rows, end = len(group), max(p + t - 1 for p, t in zip(group.prompts, group.targets, strict=True))
        pairs = min(assumed.pairs, method.iterations * method.joint, layers * max(group.prompts))

        def tries(numbers: Sequence[int], rows: int = rows, end: int = end) -> Effort:
            """A row of every prompt under each of so many pairs, from the first layer of these on."""
            found = scoring_effort(shape, rows, end) if shape.from_layer and len(numbers) > 2 else Effort()
            apart = 1 if assumed.uniform else min(rows, layers)  # rows of another first layer are another forward
            for number in numbers:
                one = scoring_effort(shape, rows, end, shape.routers[layers // (number + 1) if assumed.uniform else 0])
                found += replace(one, forwards=apart * one.forwards, calls=apart * one.calls)
            return found

        once = scoring_effort(shape, rows, end)
        back = _gradient_effort(shape, rows, end, gradient)
        alone = tries([1] * (method.singles - 1)).times(iterations - assumed.arrives)
        total += once.times(1 + halvings + pairs) + (back + tries(joint)).times(iterations) + alone
    return total


# ---------------------------------------------------------------------- the audit


@dataclass(frozen=True)
class Sizes:
    """What an audit asks, in tokens.

    Attributes:
        discovery, test, benign, borderline, benign_discovery: As in `AuditPrompts`.
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

    @staticmethod
    def of(engine: Engine, plan: Audit, prompts: AuditPrompts) -> Sizes:
        searches = prompts.test[: plan.searches]
        others = other_targets(engine, searches, plan.other_targets) if plan.other_targets else []
        return Sizes(
            discovery=Lengths.of(engine, prompts.discovery),
            test=Lengths.of(engine, prompts.test),
            benign=Lengths.of(engine, prompts.benign),
            borderline=Lengths.of(engine, prompts.borderline),
            benign_discovery=Lengths.of(engine, prompts.benign_discovery),
            turns=tuple(
                tuple(len(engine.encode(c.turns[: n + 1], answers=[""] * n)) for n in range(len(c.turns)))
                for c in prompts.conversations
            ),
            others=tuple(Lengths.of(engine, group) for _, group in others),
        )


def predict(
    plan: Audit,
    shape: Shape,
    sizes: Sizes,
    longest: int,
    assumed: Assumed,
    attacks: RouteAttacks,
    *,
    gradient: float | None = None,
) -> dict[str, Effort]:
    """The effort of every stage that does something.

    Args:
        longest: Tokens of the longest answer allowed.
        attacks: The searches of routes that are run.
        gradient: What a route gradient takes that ranks routers or finds a universal route, in forwards of its row.
    """
    answer = assumed.unrouted(longest)
    test, searches = sizes.test, sizes.test.part(0, plan.searches)
    some = searches.part(0, plan.other_targets)
    number = min(assumed.restarts, plan.restarts)
    group = group_size(plan.together, plan.candidates)

    def search(asked: Lengths, restarts: int) -> Effort:
        return fsour_effort(shape, asked, plan.candidates, group, restarts, longest, assumed)

    stages = {
        "base": answers_effort(shape, test.prompts, answer),
        "benign": answers_effort(shape, sizes.benign.prompts, answer),
        "borderline": answers_effort(shape, sizes.borderline.prompts, answer),
        "multi_turn": played_effort(shape, sizes.turns, answer),
        **_ranking(plan, shape, sizes, longest, assumed, gradient),
        **_masking(plan, shape, sizes, longest, assumed),
    }
    routed = answers_effort(shape, searches.prompts, longest)
    traced = scoring_effort(shape, len(searches), max(searches.prompts, default=0))
    if attacks.fsour:
        stages["fsour"] = search(searches, plan.restarts)
        if plan.route_controls:
            stages["route_controls"] = routed.times(number + 1) + traced
        if plan.other_targets:
            stages["targets"] = sum((search(group, 1) for group in sizes.others), Effort())
            stages["min_gain"] = search(some, 1)
        if plan.transfer:
            most = min(plan.transfer, int(assumed.succeeded * len(searches)))
            each = answers_effort(shape, searches.prompts[:most], longest) if most > 1 else Effort()
            stages["transfer"] = each.times(most)
    if attacks.gradient is not None:
        stages["guided"] = guided_effort(shape, searches, guided_method(plan), attacks.gradient, longest, assumed)
        if plan.route_controls:
            stages["guided_controls"] = routed.times(2) + traced
    if plan.universal and gradient is not None:
        stages["universal"] = universal_effort(shape, sizes.discovery.part(0, plan.universal), gradient, assumed)
        stages["universal_answers"] = answers_effort(shape, test.prompts, longest).times(2 + random_routes(plan))
    if plan.method_seeds > 1:
        stages["fsour_seeds"] = stages.get("fsour", Effort()).times(plan.method_seeds - 1)
    return {stage: effort for stage, effort in stages.items() if effort.forwards}


def answers_to_judge(plan: Audit, prompts: AuditPrompts, layers: int, assumed: Assumed, attacks: RouteAttacks) -> int:
    """About how many answers an audit hands to its judge, counted as `predict` counts them."""
    test, benign = len(prompts.test), min(len(prompts.benign), plan.utility_prompts)
    searches, phases = min(len(prompts.test), plan.searches or len(prompts.test)), len(plan.phases)
    count = float(
        test + len(prompts.benign) + len(prompts.borderline) + sum(len(c.turns) for c in prompts.conversations)
    )
    for number in range(1, plan.most_masked(layers) + 1):
        some = layers - number >= number
        draws = plan.random_draws if some else 0
        once = phases * (1 + some) + draws + (phases - 1) * min(draws, 1)
        count += test * (once * plan.method_seeds + phases)
        count += benign * phases * (2 + some + min(draws, 1)) if benign else 0
    count += (test + benign) * len(plan.noise) + benign
    if attacks.fsour:
        found = searches * (min(assumed.restarts, plan.restarts) + 1)
        count += found * (plan.method_seeds + plan.route_controls)
        if plan.other_targets:
            count += 2 * 2 * min(searches, plan.other_targets)  # another target, and the search without small gains
        if plan.transfer:
            count += min(plan.transfer, int(assumed.succeeded * searches)) ** 2
    if attacks.gradient is not None:
        count += 2 * searches * (1 + plan.route_controls)
    if plan.universal:
        count += (2 + random_routes(plan)) * test
    if plan.placebo and prompts.benign_discovery and plan.rank == "rosais":
        count += len(prompts.discovery)
    return round(count)


def _ranking(
    plan: Audit, shape: Shape, sizes: Sizes, longest: int, assumed: Assumed, gradient: float | None
) -> dict[str, Effort]:
    """The stages that rank the routers."""
    if plan.rank == "screen" and gradient is not None:
        few = [sizes.discovery.part(n, n + 1) for n in checked_prompts(plan, len(sizes.discovery))]
        beside = Lengths(tuple(p for each in few for p in each.prompts), tuple(t for each in few for t in each.targets))
        return {
            "screen": screen_effort(shape, sizes.discovery, gradient),
            "screen_target": screen_effort(shape, sizes.discovery, gradient, whole=True),
            "rosais": rosais_effort(shape, beside, plan.samples),
        }
    stages = {
        "rosais": rosais_effort(shape, sizes.discovery, plan.samples),
        "rosais_target": rosais_effort(shape, sizes.discovery, plan.samples, whole=True),
    }
    if plan.placebo and len(sizes.benign_discovery):
        refusals = answers_effort(shape, sizes.discovery.prompts, assumed.unrouted(longest))
        stages["placebo"] = refusals + rosais_effort(shape, sizes.benign_discovery, plan.samples)
    if plan.method_seeds > 1:
        stages["rosais_seeds"] = stages["rosais"].times(plan.method_seeds - 1)
    return stages


def _masking(plan: Audit, shape: Shape, sizes: Sizes, longest: int, assumed: Assumed) -> dict[str, Effort]:
    """The stages on masked routers and noise; the first of n random routers of L lies at (L - n) / (n + 1)."""
    layers, phases = len(shape.routers), len(plan.phases)
    benign = sizes.benign.part(0, plan.utility_prompts)
    routed = answers_effort(shape, benign.prompts, longest)
    answers = answers_effort(shape, sizes.test.prompts, longest)
    attack, frozen, seeds = Effort(), Effort(), Effort()
    utility = answers_effort(shape, benign.prompts, assumed.unrouted(longest))
    for number in range(1, plan.most_masked(layers) + 1):
        first = (layers - number) // (number + 1) if assumed.uniform else 0
        some, draws = layers - number >= number, plan.random_draws if layers - number >= number else 0
        once = masking_effort(shape, sizes.test, plan.samples, first, longest)
        attack += once.times(phases * (1 + some) + draws + (phases - 1) * min(draws, 1))
        for n in range(len(sizes.discovery)):
            frozen += _under_masks(shape, sizes.discovery.part(n, n + 1), plan.samples, [shape.routers[first]])
        frozen += answers.times(phases)
        utility += masking_effort(shape, benign, plan.samples, first, longest).times(
            phases * (1 + some + min(draws, 1))
        )
        utility += routed.times(phases)
        seeds += once.times(plan.method_seeds - 1)
    spread = scoring_effort(shape, len(sizes.discovery), max(sizes.discovery.prompts))
    noise = (spread + (answers + routed).times(len(plan.noise))) if plan.noise else Effort()
    return {
        "masking": attack,
        "dataset_mask": frozen,
        "utility": utility if len(benign) else Effort(),
        "noise": noise,
        "masking_seeds": seeds,
    }


# ---------------------------------------------------------------------- the engine at hand


def forecast(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, attacks: RouteAttacks) -> Forecast:
    """The forecast of an audit, remembered by its run."""
    return read(bench.run.remember(FORECAST, lambda: dump(_forecast(bench, plan, prompts, attacks))), Forecast)


def _forecast(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, attacks: RouteAttacks) -> Forecast:
    engine, longest = bench.engine, bench.answer_tokens
    test = [engine.encode(b.turns) for b in prompts.test]
    shape, pace = time_forwards(engine, test, [engine.encode_target(b.target) for b in prompts.test])
    answers = pilot(engine, [*(engine.encode(b.turns) for b in prompts.benign[:2]), *test], longest)
    ended = answers["tokens"]
    assumed = Assumed() if ended is None else Assumed(answered=ended / longest)
    sizes = Sizes.of(engine, plan, prompts)
    gradient = None
    if plan.universal or plan.rank == "screen":
        most_tokens = max(prompts.discovery, key=lambda b: len(engine.encode(b.turns)) + len(b.target))
        ranks = plan.rank == "screen"
        gradient = Screen().forwards(engine, most_tokens) if ranks else forwards_of_gradient(engine, most_tokens)
    stages = predict(plan, shape, sizes, longest, assumed, attacks, gradient=gradient)
    most = predict(plan, shape, sizes, longest, WORST, attacks, gradient=gradient)
    made = forecast_of(engine, pace, stages, most, asdict(assumed), answers)
    return replace(made, gradient_memory=_gradient_memory(engine, plan, prompts, attacks))


def _gradient_memory(
    engine: Engine, plan: Audit, prompts: AuditPrompts, attacks: RouteAttacks
) -> GradientMemory | None:
    """What the largest route gradients of an audit need; None if there are none, or where it cannot be told."""
    guided, universal = guided_method(plan), Universal()
    asked: list[tuple[Sequence[Behaviour], int, int]] = []  # behaviours, of them at a time at most, and tries of each
    if attacks.gradient is not None:
        asked.append((prompts.test[: plan.searches], guided.together, guided.tries_together))
    if plan.universal:
        asked.append((prompts.discovery[: plan.universal], universal.together, guided.tries_together))
    if plan.rank == "screen":
        asked.append((prompts.discovery, len(prompts.discovery), 0))
    found = []
    for behaviours, together, tries in asked:
        rows = [(engine.encode(b.turns), engine.encode_target(b.target)) for b in behaviours]
        rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
        longest, targets = [p for p, _ in rows[:together]], [t for _, t in rows[:together]]
        found.append(that_guides(engine).gradient_memory(longest, targets, tries=tries))
    return max((memory for memory in found if memory is not None), key=lambda memory: memory.needed, default=None)
