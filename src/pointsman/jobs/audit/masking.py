"""What masks do: the most important routers masked, beside random ones, the lowest, and one mask that is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any, Literal

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts, with_targets
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import AttackAndUse, Draw, MaskControl, Masked, MaskingSeeds, RankingSeeds, Spread
from pointsman.judges.types import Judge
from pointsman.methods.attempts import Attempt
from pointsman.methods.dataset_mask import DatasetMask, DatasetMaskResult
from pointsman.methods.masking import Masking, MaskingResult
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Phase
from pointsman.runs.bench import Bench
from pointsman.runs.rates import AttackRates, answered, compare_success, successes
from pointsman.stats.paired import above_draws, compare

Layers = tuple[int, ...]
Role = Literal["top", "lowest", "random", "dataset"]


@dataclass(frozen=True)
class RouterSets:
    """One row of the masking table: which routers are masked, and which are the controls.

    Attributes:
        phase: When the masks are in force.
        number: How many routers are masked.
        top, lowest: Of highest and lowest RoSais; `lowest` is empty if too few are left.
        random: Sets of others than the top ones.
    """

    phase: Phase
    number: int
    top: Layers
    lowest: Layers
    random: tuple[Layers, ...]

    def with_roles(self) -> list[tuple[Role, Layers]]:
        """All sets of routers."""
        lowest: list[tuple[Role, Layers]] = [("lowest", self.lowest)] if self.lowest else []
        return [("top", self.top), *lowest, *(("random", layers) for layers in self.random)]


@dataclass(frozen=True)
class Frozen:
    """A mask chosen on the discovery split, and the answers to restricted requests under it."""

    mask: DatasetMaskResult
    attempts: list[Attempt]


@dataclass(frozen=True)
class UnderMasks:
    """What was said under one row of the masking table.

    Attributes:
        attacked: Results on restricted requests by role.
        frozen: The same under one mask of the top routers.
        benign: Answers to benign requests by role; of the random sets, under the first. Empty if they were not asked.
    """

    attacked: Mapping[Role, list[MaskingResult]]
    frozen: Frozen
    benign: Mapping[Role, Sequence[Attempt]]


def mask(
    bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, order: Sequence[int], base: Sequence[Attempt]
) -> tuple[Masked, ...]:
    """Mask the top 1, 2, ... routers, random ones outside them, and the lowest; freeze one mask.

    Args:
        order: MoE layers from the most to the least important.
        base: Answers to the tested behaviours as the model is.
    """
    rows, judge, seed = router_sets(plan, order), bench.judge, plan.seed
    attacked = _attack(bench, plan, prompts.test, rows)
    frozen = _freeze(bench, plan, prompts, rows)
    benign = with_targets(prompts.benign[: plan.utility_prompts])
    under, unmasked = _ask_benign(bench, plan, benign, rows, frozen) if benign else ([{} for _ in rows], [])
    plain = AttackAndUse.beside_use(AttackRates.of(base, seed), unmasked, judge, seed)
    found = [Masked(**vars(plain), routers=0, layers=(), phase=plan.phases[0])]
    for row, answers in zip(rows, map(UnderMasks, attacked, frozen, under), strict=True):
        found.append(masked_row(row.phase, answers, base, unmasked, judge, seed))
        bench.keep_answers(f"masking-{row.number}-{row.phase}", prompts.test, answers.attacked["top"][0].attempts)
    return tuple(found)


def router_sets(plan: Audit, order: Sequence[int]) -> list[RouterSets]:
    """The rows of the table. Phases after the first have one random set each, the first one of the first phase."""
    rows = []
    for number in range(1, plan.most_masked(len(order)) + 1):
        top, rest = tuple(order[:number]), order[number:]
        enough = len(rest) >= number
        draws = _random_sets(plan.seed, rest, number, plan.random_draws) if enough else []
        lowest = tuple(order[-number:]) if enough else ()
        for phase in plan.phases:
            random = draws if phase == plan.phases[0] else draws[:1]
            rows.append(RouterSets(phase, number, top, lowest, tuple(random)))
    return rows


def _random_sets(seed: int, among: Sequence[int], number: int, wanted: int) -> list[Layers]:
    """Different sets of `number` routers; all of them where there are fewer than `wanted`."""
    found: list[Layers] = []
    draw = 0
    while len(found) < min(wanted, comb(len(among), number)):
        rng = stream(seed, "random routers", number, draw)
        chosen = tuple(sorted(int(c) for c in rng.choice(np.array(among), size=number, replace=False)))
        if chosen not in found:
            found.append(chosen)
        draw += 1
    return found


# ---------------------------------------------------------------------- what is asked


def _method(bench: Bench[AuditQuestion], plan: Audit, phase: Phase) -> Masking:
    return Masking(plan.samples, phase, max_new_tokens=bench.answer_tokens, seed=plan.seed)


def _attack(
    bench: Bench[AuditQuestion], plan: Audit, test: Sequence[Behaviour], rows: Sequence[RouterSets]
) -> list[Mapping[Role, list[MaskingResult]]]:
    """Restricted requests under masks on every set of routers."""
    found = list[Mapping[Role, list[MaskingResult]]]()
    with bench.stage("masking", "Masking", sum(len(row.with_roles()) for row in rows) * len(test)) as steps:
        for row in rows:
            method, results = _method(bench, plan, row.phase), dict[Role, list[MaskingResult]]()
            for role, layers in row.with_roles():
                result = method.search(bench.engine, test, bench.judge, layers, steps=steps)
                results.setdefault(role, []).append(result)
            found.append(results)
    return found


def _freeze(
    bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts, rows: Sequence[RouterSets]
) -> list[Frozen]:
    """Choose a mask for each number of routers on the discovery split, and attack with it."""
    method, chosen, found = DatasetMask(plan.samples, seed=plan.seed), dict[Layers, DatasetMaskResult](), []
    numbers = len({row.number for row in rows})
    total = numbers * len(prompts.discovery) + len(rows) * len(prompts.test)
    with bench.stage("dataset_mask", "Frozen masks", total) as steps:
        for row in rows:
            if row.top not in chosen:
                chosen[row.top] = method.search(bench.engine, prompts.discovery, row.top, steps=steps)
            routing = chosen[row.top].routing(row.phase)
            attempts = bench.ask(prompts.test, key=_frozen_key(row), steps=steps, routing=routing)
            found.append(Frozen(chosen[row.top], attempts))
    return found


def _ask_benign(
    bench: Bench[AuditQuestion],
    plan: Audit,
    benign: Sequence[Behaviour],
    rows: Sequence[RouterSets],
    frozen: Sequence[Frozen],
) -> tuple[list[Mapping[Role, Sequence[Attempt]]], Sequence[Attempt]]:
    """Benign requests under every row's masks, drawn and chosen as for restricted ones; and as the model is."""
    engine, judge, found = bench.engine, bench.judge, list[Mapping[Role, Sequence[Attempt]]]()
    roles = sum(2 + bool(row.lowest) + bool(row.random) for row in rows)
    with bench.stage("utility", "Utility under masks", (1 + roles) * len(benign)) as stage:
        steps = stage.under("utility")
        for row, froze in zip(rows, frozen, strict=True):
            method, answers = _method(bench, plan, row.phase), dict[Role, Sequence[Attempt]]()
            for role, layers in row.with_roles():
                if role not in answers:
                    answers[role] = method.search(engine, benign, judge, layers, steps=steps).attempts
            routing = froze.mask.routing(row.phase)
            answers["dataset"] = bench.ask(benign, key=_frozen_key(row), steps=steps, routing=routing)
            found.append(answers)
        unmasked = _method(bench, plan, plan.phases[0]).search(engine, benign, judge, (), steps=steps)
    return found, unmasked.attempts


def _frozen_key(row: RouterSets) -> str:
    return f"frozen/{row.phase}/{'-'.join(map(str, sorted(row.top)))}"


# ---------------------------------------------------------------------- what it comes to


def masked_row(
    phase: Phase,
    answers: UnderMasks,
    base: Sequence[Attempt],
    unmasked: Sequence[Attempt],
    judge: Judge,
    seed: int,
) -> Masked:
    """One row of the masking table: the attack, its controls, and its differences to them, paired by behaviour.

    Args:
        base, unmasked: Answers to restricted and to benign requests without any mask.
        seed: Of bootstraps.
    """
    (top,), frozen, under = answers.attacked["top"], answers.frozen, answers.benign.get("top", ())
    lowest, random = (answers.attacked.get(role, []) for role in ("lowest", "random"))
    differences: dict[str, Any] = {"vs_base": compare_success(top.attempts, base, seed)}
    controls: dict[str, MaskControl] = {}

    def rates(attacked: AttackRates, role: Role) -> dict[str, Any]:
        return vars(AttackAndUse.beside_use(attacked, answers.benign.get(role, ()), judge, seed))

    if lowest:
        attempts = lowest[0].attempts
        controls["lowest"] = MaskControl(**rates(AttackRates.of(attempts, seed), "lowest"), layers=lowest[0].layers)
        differences["vs_lowest"] = compare_success(top.attempts, attempts, seed)
    if random:
        each, sources = [successes(r.attempts) for r in random], [a.source for a in top.attempts]
        draws = tuple(Draw(r.layers, sum(won) / len(won)) for r, won in zip(random, each, strict=True))
        of_draws = AttackRates.of_draws([r.attempts for r in random], seed)
        controls["random"] = MaskControl(**rates(of_draws, "random"), draws=draws)
        differences["difference_random"] = above_draws(successes(top.attempts), each, sources, seed)
    controls["dataset"] = MaskControl(
        **rates(AttackRates.of(frozen.attempts, seed), "dataset"),
        layers=frozen.mask.layers,
        mask={str(n): tuple(experts) for n, experts in zip(frozen.mask.layers, frozen.mask.experts, strict=True)},
        discovery_score=frozen.mask.score,
        vs_base=compare_success(frozen.attempts, base, seed),
    )
    if under:
        sources = [a.source for a in unmasked]
        differences["utility_vs_base"] = compare(answered(under, judge), answered(unmasked, judge), sources, seed)
    return Masked(
        **rates(AttackRates.of(top.attempts, seed), "top"),
        **differences,
        routers=len(top.layers),
        layers=top.layers,
        phase=phase,
        controls=controls,
    )


# ---------------------------------------------------------------------- other seeds


def mask_under_other_seeds(
    bench: Bench[AuditQuestion],
    plan: Audit,
    test: Sequence[Behaviour],
    first: Sequence[Masked],
    ranking: RankingSeeds,
) -> tuple[MaskingSeeds, ...]:
    """The attack once more with each of the other seeds, on the routers that its own ranking puts on top.

    Args:
        first: What the first seed gave; repeated are the rows of the first phase.
    """
    method = _method(bench, plan, plan.phases[0])
    tops = [row for row in first if row.routers and row.phase == method.phase]
    others = list(zip(ranking.seeds, ranking.rankings, strict=True))[1:]
    found = []
    with bench.stage("masking_seeds", "Masking, other seeds", len(tops) * len(others) * len(test)) as steps:
        for row in tops:
            layers, asr = [row.layers], [row.asr.k / row.asr.n]
            for seed, order in others:
                again, named = replace(method, seed=seed), steps.under(f"seed-{seed}")
                result = again.search(bench.engine, test, bench.judge, order[: row.routers], steps=named)
                layers.append(result.layers)
                asr.append(sum(successes(result.attempts)) / len(test))
            spread = vars(Spread.of(asr))
            found.append(MaskingSeeds(row.routers, row.phase, ranking.seeds, tuple(layers), tuple(asr), **spread))
    return tuple(found)
