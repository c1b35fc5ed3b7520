"""The route stages of the audit: F-SOUR, its controls, other targets, sparser and transferred routes, other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pointsman.data.types import Behaviour
from pointsman.engine.types import Engine
from pointsman.jobs.audit.route_findings import (
    controls_section,
    fsour_section,
    one_search,
    seeds_section,
    transfer_section,
)
from pointsman.jobs.audit.work import Asked, Work
from pointsman.methods.fsour import FSour, FSourResult, Search
from pointsman.methods.route_controls import NaturalRoutes, RandomRoutes, Transfer, template_places

SPARSE = 0.1
"""The minimum gain that the default is compared with, in nats."""


def search(work: Work, asked: Asked) -> dict[str, Any]:
    """Search unsafe routes, and find out what they owe to what.

    Returns:
        The section ``fsour``, and ``seeds`` if there are several method seeds.
    """
    audit = work.audit
    method = FSour(
        candidates=audit.candidates, restarts=audit.restarts, min_gain=audit.min_gain,
        max_new_tokens=work.answer_tokens, together=audit.together, seed=audit.seed,
    )  # fmt: skip
    chosen = asked.test[: audit.searches]
    with work.stage("fsour", "F-SOUR", len(chosen)) as steps:
        found = method.search(work.engine, chosen, work.judge, steps=steps)
    work.note("fsour", chosen, [r.best.attempt for r in found])
    section = fsour_section(found, work.engine, method, {b.id: b for b in chosen})
    if audit.route_controls:
        section |= _controls(work, method, chosen, found)
    if audit.other_targets:
        section["targets"] = _other_targets(work, method, chosen, found)
        section["min_gain"] = _min_gain(work, method, chosen, found)
    if audit.transfer:
        section["transfer"] = _transfer(work, method, chosen, found)
    if audit.method_seeds > 1:
        return {"fsour": section, "seeds": {"fsour": _seeds(work, method, chosen, found)}}
    return {"fsour": section}


def other_targets(engine: Engine, behaviours: Sequence[Behaviour], most: int) -> list[tuple[str, list[Behaviour]]]:
    """The first `most` behaviours that have other targets, aimed at the first of these, the second, and so on.

    Returns:
        For each its kind and the behaviours that have one: ``content`` if none begins with the first token of the
        target proper, ``affirmative`` if all do, else ``mixed``.
    """
    some = [b for b in behaviours if b.targets][:most]
    aimed = []
    for number in range(max((len(b.targets) for b in some), default=0)):
        group = [b for b in some if len(b.targets) > number]
        alike = [engine.encode_target(b.target)[0] == engine.encode_target(b.targets[number])[0] for b in group]
        kind = "affirmative" if all(alike) else "mixed" if any(alike) else "content"
        aimed.append((kind, [replace(b, target=b.targets[number], targets=()) for b in group]))
    return aimed


def _controls(work: Work, method: FSour, chosen: Sequence[Behaviour], found: Sequence[FSourResult]) -> dict[str, Any]:
    """Random routes, judged as often as the search, and the natural experts, at the pairs of the routes found."""
    answer, seed = work.answer_tokens, method.seed
    with work.stage("route_controls", "Route controls", len(found) * (method.restarts + 1)) as steps:
        random = RandomRoutes(method.restarts, method.phase, answer, seed).ask(
            work.engine, chosen, work.judge, found, steps=steps
        )
        natural = NaturalRoutes(method.phase, answer).ask(work.engine, chosen, work.judge, found, steps=steps)
    for draw in range(max(len(draws) for draws in random)):
        drawn = [n for n, draws in enumerate(random) if len(draws) > draw]
        work.note(f"fsour-random-{draw + 1}", [chosen[n] for n in drawn], [random[n][draw] for n in drawn])
    work.note("fsour-natural", chosen, natural)
    return controls_section(found, random, natural)


def _other_targets(
    work: Work, method: FSour, chosen: Sequence[Behaviour], found: Sequence[FSourResult]
) -> list[dict[str, Any]]:
    """One search with each other target, beside the first search with the target proper on the same behaviours."""
    groups = other_targets(work.engine, chosen, work.audit.other_targets)
    if not groups:
        return []
    proper = _first_searches(found, groups[0][1])
    entries = [{"target": "affirmative", "number": 0, **one_search(proper)}]
    once = replace(method, restarts=1)
    with work.stage("targets", "Other targets", sum(len(aimed) for _, aimed in groups)) as steps:
        for number, (kind, aimed) in enumerate(groups, start=1):
            results = once.search(work.engine, aimed, work.judge, steps=steps.under(f"target-{number}"))
            searches = [r.searches[0] for r in results]
            entries.append({"target": kind, "number": number, **one_search(searches)})
            work.note(f"fsour-target-{number}", aimed, [s.attempt for s in searches])
    return entries


def _min_gain(
    work: Work, method: FSour, chosen: Sequence[Behaviour], found: Sequence[FSourResult]
) -> list[dict[str, Any]]:
    """One search that accepts only a gain of `SPARSE` nats, beside the first search as it was."""
    some = chosen[: work.audit.other_targets]
    entries = [{"min_gain": method.min_gain, **one_search(_first_searches(found, some))}]
    if method.min_gain == SPARSE:
        return entries
    sparse = replace(method, restarts=1, min_gain=SPARSE)
    with work.stage("min_gain", "Sparser routes", len(some)) as steps:
        results = sparse.search(work.engine, some, work.judge, steps=steps.under(f"min-gain-{SPARSE}"))
    searches = [r.searches[0] for r in results]
    work.note("fsour-min-gain", some, [s.attempt for s in searches])
    return [*entries, {"min_gain": SPARSE, **one_search(searches)}]


def _transfer(
    work: Work, method: FSour, chosen: Sequence[Behaviour], found: Sequence[FSourResult]
) -> dict[str, Any] | None:
    """Routes that were needed and succeeded, replayed on each other's prompts; None if there are fewer than two."""
    needed = [
        (b, f.best.steps)
        for b, f in zip(chosen, found, strict=True)
        if f.best.attempt.verdict.success and f.best.steps and not f.base.verdict.success
    ][: work.audit.transfer]
    if len(needed) < 2:
        return None
    behaviours, routes = [b for b, _ in needed], [steps for _, steps in needed]
    with work.stage("transfer", "Transfer", len(needed) ** 2) as steps:
        matrix = Transfer(method.phase, work.answer_tokens).replay(
            work.engine, behaviours, work.judge, routes, steps=steps
        )
    kept = []
    for behaviour, route in needed:
        prompt = work.engine.encode(behaviour.turns)
        places = template_places(prompt, prompt)
        kept.append(sum(step.position in places for step in route) / len(route))
    return transfer_section([b.id for b in behaviours], matrix, kept)


def _seeds(work: Work, method: FSour, chosen: Sequence[Behaviour], found: list[FSourResult]) -> dict[str, Any]:
    """The same search under the next seeds."""
    seeds, runs = [method.seed], [found]
    with work.stage("fsour_seeds", "F-SOUR, other seeds", (work.audit.method_seeds - 1) * len(chosen)) as steps:
        for seed in range(method.seed + 1, method.seed + work.audit.method_seeds):
            again, own = replace(method, seed=seed), steps.under(f"seed-{seed}")
            runs.append(again.search(work.engine, chosen, work.judge, steps=own))
            seeds.append(seed)
    return seeds_section(seeds, runs)


def _first_searches(found: Sequence[FSourResult], behaviours: Sequence[Behaviour]) -> list[Search]:
    """The first restart of some behaviours."""
    first = {f.id: f.searches[0] for f in found}
    return [first[b.id] for b in behaviours]
