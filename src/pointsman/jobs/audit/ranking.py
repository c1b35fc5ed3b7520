"""Which routers matter: RoSais, or the screen, on the discovery split, and how far that can be believed.

METHODS sections 1 and 9. Where the screen ranks, RoSais is measured on a few prompts beside it: their agreement is told
with the ranking, and only masks say whether routing reaches the answer at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.audit.placebo import rank_by_refusal, without_placebo
from pointsman.jobs.audit.plan import Audit
from pointsman.jobs.audit.prompts import AuditPrompts
from pointsman.jobs.audit.question import AuditQuestion
from pointsman.jobs.audit.results import (
    RankingSeeds,
    Reach,
    Rise,
    RosaisSettings,
    RouterScore,
    ScreenAgreement,
    Spread,
    TargetRise,
)
from pointsman.methods.rosais import RoSais, RoSaisResult
from pointsman.methods.screen import Screen
from pointsman.runs.bench import Bench
from pointsman.stats.permutation import PERMUTATIONS, permutation_p
from pointsman.stats.rank_agreement import kendall_tau, spearman, spearman_interval, stability
from pointsman.stats.rates import Mean


@dataclass(frozen=True)
class Ranking:
    """The routers by their importance.

    Attributes:
        order: MoE layers from the most to the least important, by the first token as in the paper.
        routers, settings, reach: As in the results.
        seeds: The ranking under other seeds, which the screen does not depend on; None if it was not repeated.
    """

    order: tuple[int, ...]
    routers: tuple[RouterScore, ...]
    settings: RosaisSettings
    reach: Reach
    seeds: RankingSeeds | None


def rank(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts) -> Ranking:
    """Rank the routers, as the plan says."""
    return rank_by_screen(bench, plan, prompts) if plan.rank == "screen" else rank_by_rosais(bench, plan, prompts)


def rank_by_screen(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts) -> Ranking:
    """Rank the routers by the screen of the first token; by that of the whole target, and by a small RoSais beside it.

    RoSais is measured on the same prompts as are compared: on others, prompts would be compared as well as methods.
    """
    engine, discovery, top_n = bench.engine, prompts.discovery, plan.most_masked(len(bench.engine.routers))
    method = Screen()
    with bench.stage("screen", "Screen", len(discovery)) as steps:
        first = method.rank(engine, discovery, steps=steps)
    with bench.stage("screen_target", "Screen of targets", len(discovery)) as steps:
        target = replace(method, score="target").rank(engine, discovery, steps=steps.under("target"))
    checked = checked_prompts(plan, len(discovery))
    with bench.stage("rosais", "RoSais", len(checked)) as steps:
        masks = RoSais(samples=plan.samples, seed=plan.seed)
        beside = masks.rank(engine, [discovery[n] for n in checked], steps=steps)
    settings = RosaisSettings(
        samples=0,
        prompts=len(first.prompts),
        sources=len(set(first.sources)),
        score=method.score,
        scale="log_probability",
        base=float(first.base.mean()),
        target_base=float(target.base.mean()),
        permutations=PERMUTATIONS,
        stability=stability(first.scores, first.sources, top_n=top_n, seed=plan.seed),
        agreement=spearman(first.mean, target.mean),
        placebo=without_placebo("the screen has none, since it knows no refusal; RoSais has (--rank rosais)"),
        screen=agreement_with_rosais(
            replace(first, scores=first.scores[checked]), beside, plan.samples, top_n, plan.seed
        ),
    )
    many = plan.method_seeds
    seeds = RankingSeeds(
        tuple(range(plan.seed, plan.seed + many)), (first.ranking,) * many, (first.ranking[0],) * many, None
    )
    return Ranking(
        order=first.ranking,
        routers=router_scores(engine, first, target, None, plan.seed),
        settings=settings,
        reach=measure_reach(engine, beside),
        seeds=seeds if many > 1 else None,
    )


def checked_prompts(plan: Audit, prompts: int) -> list[int]:
    """On which of so many prompts RoSais is measured beside the screen: spread over all of them."""
    number = min(plan.rank_check, prompts)
    return [n * prompts // number for n in range(number)]


def agreement_with_rosais(
    screen: RoSaisResult, rosais: RoSaisResult, samples: int, top_n: int, seed: int
) -> ScreenAgreement:
    """How alike the two rank the routers on the same prompts."""
    low, high = spearman_interval(screen.scores, rosais.scores, rosais.sources, seed) or (None, None)
    return ScreenAgreement(
        prompts=len(rosais.prompts),
        samples=samples,
        spearman=spearman(screen.mean, rosais.mean),
        low=low,
        high=high,
        kendall=kendall_tau(screen.mean, rosais.mean),
        top_n=top_n,
        same_top=len({*screen.ranking[:top_n]} & {*rosais.ranking[:top_n]}),
    )


def rank_by_rosais(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts) -> Ranking:
    """Rank the routers by the first token, as the paper does; by the whole target and on benign prompts beside it."""
    engine, discovery = bench.engine, prompts.discovery
    method = RoSais(samples=plan.samples, seed=plan.seed)
    with bench.stage("rosais", "RoSais", len(discovery)) as steps:
        first = method.rank(engine, discovery, steps=steps)
    by_target = replace(method, score="target", scale="log_probability")
    with bench.stage("rosais_target", "RoSais of targets", len(discovery)) as steps:
        target = by_target.rank(engine, discovery, steps=steps.under("target"))
    placebo, placebo_settings = None, without_placebo("not asked for")
    if plan.placebo:
        placebo, placebo_settings = rank_by_refusal(bench, method, discovery, prompts.benign_discovery)
    settings = RosaisSettings(
        samples=method.samples,
        prompts=len(first.prompts),
        sources=len(set(first.sources)),
        score=method.score,
        scale=method.scale,
        base=float(first.base.mean()),
        target_base=float(target.base.mean()),
        permutations=PERMUTATIONS,
        stability=stability(first.scores, first.sources, top_n=plan.most_masked(len(engine.routers)), seed=plan.seed),
        agreement=spearman(first.mean, target.mean),
        placebo=placebo_settings,
    )
    return Ranking(
        order=first.ranking,
        routers=router_scores(engine, first, target, placebo, plan.seed),
        settings=settings,
        reach=measure_reach(engine, first),
        seeds=_other_seeds(bench, discovery, method, first, plan.method_seeds) if plan.method_seeds > 1 else None,
    )


def router_scores(
    engine: Engine, first: RoSaisResult, target: RoSaisResult, placebo: RoSaisResult | None, seed: int
) -> tuple[RouterScore, ...]:
    """The score of every router with its 95 % interval over prompts and p-value.

    Args:
        first: Rises of the first token, which the routers are ranked by.
        target: Rises of log p(target), in nats, on the same prompts.
        placebo: Rises of the refusal on benign prompts.
        seed: Of permutations.
    """
    p, target_p = (permutation_p(r.scores, r.sources, seed=seed) for r in (first, target))
    return tuple(
        RouterScore(
            router=router.path,
            layer=router.layer,
            decoder_layer=router.decoder_layer,
            **vars(_rise(first, router.layer)),
            rank=first.ranking.index(router.layer) + 1,
            p=p[router.layer],
            target=TargetRise(
                **vars(_rise(target, router.layer)),
                rank=target.ranking.index(router.layer) + 1,
                p=target_p[router.layer],
            ),
            placebo=None if placebo is None else _rise(placebo, router.layer),
        )
        for router in engine.routers
    )


def _rise(result: RoSaisResult, layer: int) -> Rise:
    mean = Mean.of(result.scores[:, layer].tolist(), result.sources)
    return Rise(mean.mean, mean.low, mean.high)


def measure_reach(engine: Engine, ranked: RoSaisResult) -> Reach:
    """At how many routers a mask moved p(A) of a prompt by more than rounding; a router without a choice has no mask.

    Args:
        ranked: By differences of probabilities.
    """
    base = np.maximum(ranked.base, 1e-300)[:, None]  # shape: [prompts, 1]
    moved = np.abs(np.log(np.maximum((ranked.base[:, None] + ranked.scores) / base, 1e-300)))  # shape: [prompts, L]
    rounding = 5e-2 if engine.info.dtype in ("bfloat16", "float16") else 1e-4
    with_choice = sum(router.top_k < router.experts for router in engine.routers)
    return Reach(len(engine.routers), with_choice, int((moved > rounding).any(0).sum()))


def _other_seeds(
    bench: Bench[AuditQuestion], discovery: Sequence[Behaviour], method: RoSais, first: RoSaisResult, number: int
) -> RankingSeeds:
    """The ranking once more with each of the other seeds: how much of it is the luck of the masks."""
    seeds = range(method.seed, method.seed + number)
    results = [first]
    with bench.stage("rosais_seeds", "RoSais, other seeds", len(discovery) * (len(seeds) - 1)) as steps:
        for seed in seeds[1:]:
            again = replace(method, seed=seed)
            results.append(again.rank(bench.engine, discovery, steps=steps.under(f"seed-{seed}")))
    pairs = [spearman(a.mean, b.mean) for n, a in enumerate(results) for b in results[:n]]
    kept = [p for p in pairs if p is not None]
    return RankingSeeds(
        seeds=tuple(seeds),
        rankings=tuple(r.ranking for r in results),
        top1=tuple(r.ranking[0] for r in results),
        spearman=Spread.of(kept) if kept else None,
    )
