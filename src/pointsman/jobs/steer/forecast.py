"""What a steering run will cost, before it starts: forwards, tokens and minutes of every stage.

Arithmetic on the plan, the scenario's grid and the lengths of the prompts, as for an audit. Answers under a mask are
counted at the longest length allowed: a batch lasts as long as its longest answer, and where the model is disturbed
some answer runs to the limit. What falls, and how many strengths are tried, is known only later and is assumed. Not
foretold: training surrogates, timing the mask, tasks of lm-eval, the loss of answers, and whatever is scored to judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from pointsman.data.scenario import Scenario
from pointsman.data.splits import SPLITS
from pointsman.data.types import Split
from pointsman.engine.pace import Effort, Shape, pilot, scoring_effort, time_forwards
from pointsman.engine.types import Engine
from pointsman.jobs.steer.choosing import SCREENED, coarse
from pointsman.jobs.steer.plan import Contrast, Steer
from pointsman.jobs.steer.prompts import SteerPrompts
from pointsman.jobs.steer.question import ScenarioQuestion, SteerQuestion
from pointsman.jobs.steer.strengths import FINE
from pointsman.jobs.steer.surrogates import GAP
from pointsman.jobs.steer.traces import TOGETHER
from pointsman.methods.optimise import UNIT
from pointsman.methods.steermoe import sizes, swept_sizes
from pointsman.methods.through_model import ThroughModel
from pointsman.runs.bench import Bench
from pointsman.runs.forecast import answers_effort, forecast_of, foretold, played_effort
from pointsman.runs.results import Forecast, dump, read
from pointsman.runs.run import FORECAST

_ROWS_BACKWARD = 8  # a forward with its backward holds so many times fewer rows than one without


@dataclass(frozen=True)
class Assumed:
    """What is not known in advance.

    Attributes:
        answered: Share of the longest answer allowed that the longest unsteered answer of a batch takes; the pilot's if
            it ends.
        fallen: Share of the conversations that fall, or of the scenario's requests that are refused.
        bisected: Share of the weaker strengths tried, of those that bisection may try for a finalist.
        sharpened: Share of the stronger strengths tried, of those allowed for the best of a method.
    """

    answered: float = 0.6
    fallen: float = 0.5
    bisected: float = 0.25
    sharpened: float = 0.25


WORST = Assumed(1.0, 1.0, 1.0, 1.0)
"""The upper bound."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one split under one routing, in tokens.

    Attributes:
        talks, harmless: Conversations to defend in, and benign ones: prompt tokens of every turn without the model's
            answers. Shapes: [c][turns].
        scenario, restricted, benign, borderline: Single requests.
        goals: The requests of the conversations on their own, each once.
    """

    talks: tuple[tuple[int, ...], ...]
    harmless: tuple[tuple[int, ...], ...]
    scenario: tuple[int, ...]
    restricted: tuple[int, ...]
    benign: tuple[int, ...]
    borderline: tuple[int, ...]
    goals: tuple[int, ...]

    @staticmethod
    def of(engine: Engine, prompts: SteerPrompts, system: str | None) -> Asked:
        def turns(name: str) -> tuple[tuple[int, ...], ...]:
            return tuple(
                tuple(
                    len(engine.encode(c.turns[: n + 1], answers=[""] * n, system=system)) for n in range(len(c.turns))
                )
                for c in getattr(prompts, name)
            )

        def single(texts: Sequence[Sequence[str]]) -> tuple[int, ...]:
            return tuple(len(engine.encode(text, system=system)) for text in texts)

        kinds = {
            name: single([b.turns for b in getattr(prompts, name)])
            for name in ("scenario", "restricted", "benign", "borderline")
        }
        goals = single([[goal] for goal in dict.fromkeys(c.goal for c in prompts.conversations)])
        return Asked(turns("conversations"), turns("benign_conversations"), **kinds, goals=goals)

    def effort(self, shape: Shape, answer: float) -> Effort:
        """Everything asked once."""
        total = played_effort(shape, self.talks, answer) + played_effort(shape, self.harmless, answer)
        for kind in (self.scenario, self.restricted, self.benign, self.borderline):
            total += answers_effort(shape, kind, answer)
        return total

    def to_turn(self, shape: Shape, answer: float, share: float) -> list[int]:
        """Prompts of about as many contexts as shall be turned, with the model's answers in them."""
        prompts = [min(int(t[-1] + (len(t) - 1) * answer), shape.context - 1) for t in self.talks] or [*self.scenario]
        return prompts[: math.ceil(share * len(prompts))]

    def contexts(self, shape: Shape, answer: float, contrast: Contrast) -> list[int]:
        """Prompts of all that are labelled; within a topic, of its requests once more with their targets."""
        every = self.to_turn(shape, answer, 1.0)
        if self.talks:
            return [*every, *self.restricted, *self.goals]
        against = self.benign if contrast == "benign" else self.scenario
        return [*every, *self.restricted, *against]


@dataclass(frozen=True)
class _Counts:
    """How many matrices, candidates and tries a plan makes of a grid."""

    surrogate: int
    on_policy: int
    through: int
    conditional: int
    screened: int
    tries: float

    @staticmethod
    def of(plan: Steer, scenario: Scenario, experts: int, assumed: Assumed) -> _Counts:
        grid, objective = scenario.grid, scenario.objective
        strengths, phases = len(coarse(grid.alphas)), len(grid.phases)
        draws = plan.random_draws * ("random" in plan.asked)
        pins = [len(sizes(experts))] * ("steermoe" in plan.asked)
        pins += [len(swept_sizes(experts))] * ("steermoe_paired" in plan.asked)
        refined = grid.refinements if plan.learns_constant else ()
        conditional = math.ceil(plan.conditional_steps / UNIT) * plan.learns_conditional
        surrogate, on_policy = (len(grid.lambdas) * (name in refined) for name in ("surrogate", "on_policy"))
        through = len(plan.lambdas_for(objective)) * len(plan.holds_for(objective)) * len(plan.phases_for(grid.phases))
        through *= len(plan.through_starts) * ("through_model" in refined)
        groups = [surrogate * phases, on_policy * phases, through, *[3 * phases] * len(pins), draws]
        finalists = sum(min(plan.finalists, group) for group in groups) + bool(conditional)
        weaker = assumed.bisected * math.ceil(math.log2(len(grid.alphas) + 1))
        ways = 1 if plan.searches == "joint" else sum(map(bool, (surrogate, on_policy, through, conditional)))
        searches = ways + len(pins) + bool(draws)  # masks, pins, random masks
        masks = (surrogate + on_policy) * phases + through + draws * (plan.method == "mascing")
        single = conditional + draws * (plan.method == "conditional")  # screened at one strength
        return _Counts(
            surrogate, on_policy, through, conditional,
            screened=1 + masks * strengths + single + sum(pins) * phases,
            tries=finalists * (1 + weaker) + max(conditional - 1, 0) + searches * FINE * assumed.sharpened,
        )  # fmt: skip


def predict(
    plan: Steer,
    scenario: Scenario,
    experts: int,
    shape: Shape,
    asked: Mapping[Split, Asked],
    longest: int,
    assumed: Assumed,
) -> dict[str, Effort]:
    """The effort of every stage that does something.

    Args:
        experts: Of all layers together.
        longest: Tokens of the longest answer allowed.
    """
    answer, count = max(assumed.answered * longest, 1.0), _Counts.of(plan, scenario, experts, assumed)
    discovery, validation, test = (asked[split] for split in SPLITS)
    turned = {split: asked[split].to_turn(shape, answer, assumed.fallen) for split in SPLITS}
    contexts = {split: asked[split].contexts(shape, answer, plan.contrast) for split in SPLITS}
    lesson = min(plan.lesson_tokens, int(answer) + 1)
    learnt_from = _scored(shape, contexts["discovery"])
    validated, again = validation.effort(shape, longest), answers_effort(shape, turned["test"], longest)
    arm = test.effort(shape, longest) + again
    defends, repeated = scenario.objective == "defend", plan.method_seeds - 1
    screens = (plan.rounds + 1) * bool(count.on_policy) + ("surrogate" in plan.through_starts) * bool(count.through)

    stages = {f"base/{split}": asked[split].effort(shape, answer) for split in SPLITS}
    stages["goals"] = answers_effort(shape, discovery.goals, answer)
    if not defends:
        wanted = [turned["discovery"], turned["validation"][:SCREENED], turned["test"] if plan.upper_bound else []]
        stages["wanted"] = sum((answers_effort(shape, some, answer) for some in wanted), Effort())
    if plan.learns_constant:
        stages["traces"] = sum((_scored(shape, some) for some in contexts.values()), Effort())
    if "steermoe" in plan.asked:
        stages["activations"] = learnt_from
    if "steermoe_paired" in plan.asked:
        answered = _scored(shape, turned["discovery"] * 2, lesson)
        stages["activations"] = stages.get("activations", Effort()) + answered
    if count.on_policy:
        traced = learnt_from.times(2 * plan.rounds + plan.rounds * (plan.rounds + 1) / 2)
        stages["on_policy"] = answers_effort(shape, contexts["discovery"], longest).times(plan.rounds) + traced
    taught = shape, discovery, turned["discovery"], lesson
    once, again_by_model = _through(plan.steps_for(scenario.objective), *taught), repeated if count.through else 0
    stages["through_model"] = once.times(count.through + again_by_model)
    if count.conditional:
        again_by_model = repeated if plan.method == "conditional" else 0
        stages["conditional"] = _through(plan.conditional_steps, *taught).times(1 + again_by_model)
    kept = [*validation.benign, *validation.borderline, *validation.restricted]
    rows = [*turned["validation"][:SCREENED] * 2, *kept[: 3 * SCREENED // 2]]
    matrices = max(count.surrogate, count.on_policy)
    strongest = _scored(shape, turned["discovery"] * 2, lesson).times(matrices * screens)
    stages["screen"] = _scored(shape, rows, lesson).times(count.screened) + strongest
    gap = answers_effort(shape, turned["validation"][:GAP], longest)
    stages["gap"] = gap.times(count.surrogate + count.on_policy + count.through)
    stages["validation"] = validated.times(count.tries + repeated * (1 + FINE * assumed.sharpened))
    ways = {
        "surrogate_only": count.surrogate, "on_policy": count.on_policy, "through_model": count.through,
        "conditional": count.conditional,
    }  # fmt: skip
    learnt, rivals = {way for way, matrices in ways.items() if matrices}, set(plan.asked)
    arms = 1 + len(rivals & learnt) - (learnt <= rivals)  # one of them is the chosen mask's own
    arms += len(rivals & {"steermoe", "steermoe_paired"}) + bool(plan.random_draws and "random" in rivals)
    before = answers_effort(shape, turned["test"], answer)
    stages["test"] = (arm if defends else test.effort(shape, longest)).times(arms) + (before if defends else Effort())
    stages["moved"] = _moved(shape, test, plan.moved_prompts)
    stages["seeds"] = test.effort(shape, longest).times(repeated)
    if plan.upper_bound:
        conditional = plan.method == "conditional"
        steps = plan.conditional_steps if conditional else plan.steps_for(scenario.objective)
        bound = _through(steps, shape, test, turned["test"], lesson)
        stages["upper_bound"] = bound + test.effort(shape, longest)
    return {stage: effort for stage, effort in stages.items() if effort.forwards}


def _moved(shape: Shape, asked: Asked, most: int) -> Effort:
    """Prompts of each kind, read without the mask and with it."""
    scenario = asked.scenario or [turns[-1] for turns in asked.talks]
    kinds = [_scored(shape, kind[:most]) for kind in (scenario, asked.restricted, asked.benign)]
    return sum(kinds, Effort()).times(2)


def _scored(shape: Shape, prompts: Sequence[int], answer: int = 0) -> Effort:
    """Prompts with these answers, side by side; as many tokens as without padding."""
    total = Effort()
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        total += scoring_effort(shape, len(some), round(sum(some) / len(some)) + answer)
    return total


def _through(steps: int, shape: Shape, asked: Asked, turned: Sequence[int], lesson: int) -> Effort:
    """One optimisation through the model: a batch of what shall turn and one of each group that is held, every step."""
    batch, smaller = ThroughModel.batch, replace(shape, batch=max(shape.batch // _ROWS_BACKWARD, 1))
    held = [asked.benign, asked.borderline, [t[-1] for t in asked.harmless], asked.restricted]
    step = unsteered = Effort()
    for group in filter(None, (turned, *held)):
        length = round(sum(group) / len(group)) + lesson
        step += scoring_effort(smaller, min(batch, len(group)), length)
        if group is not turned:
            unsteered += scoring_effort(shape, len(group), length)
    backwards = replace(step, calls=3 * step.calls, back=step.token_layers)
    return backwards.times(steps) + unsteered


# ---------------------------------------------------------------------- the engine at hand


Predict = Callable[[Shape, Mapping[Split, Asked], int, Assumed], dict[str, Effort]]
"""The stages, of the engine's shape, what is asked of each split, the longest answer allowed, and what is assumed."""


def forecast(bench: Bench[SteerQuestion], plan: Steer, prompts: Mapping[Split, SteerPrompts]) -> Forecast | None:
    """The forecast of a steering run, remembered by it; None for one that began without."""
    scenario, experts = bench.question.scenario, sum(router.experts for router in bench.engine.routers)
    return _remembered(bench, prompts, partial(predict, plan, scenario, experts))


def forecast_evaluation(bench: Bench[ScenarioQuestion], prompts: SteerPrompts, moved_prompts: int) -> Forecast | None:
    """The forecast of an evaluation, remembered by it; None for one that began without."""

    def stages(shape: Shape, asked: Mapping[Split, Asked], longest: int, assumed: Assumed) -> dict[str, Effort]:
        test, answer, total = asked["test"], max(assumed.answered * longest, 1.0), Effort()
        turned = test.to_turn(shape, answer, assumed.fallen) if test.talks else []
        for length in (answer, longest):  # without the mask, and with it
            total += test.effort(shape, length) + answers_effort(shape, turned, length)
        return {"test": total, "moved": _moved(shape, test, moved_prompts)}

    return _remembered(bench, {"test": prompts}, stages)


def _remembered(
    bench: Bench[ScenarioQuestion] | Bench[SteerQuestion], prompts: Mapping[Split, SteerPrompts], stages: Predict
) -> Forecast | None:
    """The forecast of these stages, said as well; None for a run that began without one."""
    if bench.run.has_begun and FORECAST not in bench.run:
        return None
    found = read(bench.run.remember(FORECAST, lambda: dump(_forecast(bench, prompts, stages))), Forecast)
    beside = "surrogates, latency and tasks" if "discovery" in prompts else "latency and tasks"
    bench.say(f"{foretold(found, resumed=bench.run.has_begun)}; {beside} come on top")
    return found


def _forecast(
    bench: Bench[ScenarioQuestion] | Bench[SteerQuestion], prompts: Mapping[Split, SteerPrompts], stages: Predict
) -> Forecast:
    engine, system, longest = bench.engine, bench.question.scenario.system, bench.answer_tokens
    test = prompts["test"]
    requests = [*test.benign[:2], *test.scenario, *test.restricted, *test.benign[2:]]
    encoded = [engine.encode(b.turns, system=system) for b in requests]
    begun = [engine.encode_target(b.target) if b.target else (encoded[0].ids[0],) for b in requests]
    shape, pace = time_forwards(engine, encoded, begun)
    answers = pilot(engine, encoded, longest)
    ended = answers["tokens"]
    assumed = Assumed() if ended is None else Assumed(answered=ended / longest)
    asked = {split: Asked.of(engine, some, system) for split, some in prompts.items()}
    likely, most = (stages(shape, asked, longest, each) for each in (assumed, WORST))
    return forecast_of(engine, pace, likely, most, asdict(assumed), answers)
