"""Which routers matter: RoSais on the discovery split, and how far it can be believed (METHODS section 1)."""

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
from pointsman.jobs.audit.results import RankingSeeds, Reach, Rise, RosaisSettings, RouterScore, Spread, TargetRise
from pointsman.methods.rosais import RoSais, RoSaisResult
from pointsman.runs.bench import Bench
from pointsman.stats.permutation import PERMUTATIONS, permutation_p
from pointsman.stats.rank_agreement import spearman, stability
from pointsman.stats.rates import Mean


@dataclass(frozen=True)
class Ranking:
    """The routers by their importance.

    Attributes:
        order: MoE layers from the most to the least important, by the first token as in the paper.
        routers, settings, reach: As in the results.
        seeds: The ranking under other seeds; None if it was not repeated.
    """

    order: tuple[int, ...]
    routers: tuple[RouterScore, ...]
    settings: RosaisSettings
    reach: Reach
    seeds: RankingSeeds | None


def rank(bench: Bench[AuditQuestion], plan: Audit, prompts: AuditPrompts) -> Ranking:
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
    """RoSais per router with 95 % intervals over prompts and p-values.

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
