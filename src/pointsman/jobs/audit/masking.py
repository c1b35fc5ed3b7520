"""The masking stage of the audit: the most important routers masked, beside its controls; and noise on all routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from typing import Any

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.jobs.audit.findings import attempt_rates, difference, harmless_rates, masking_entry, useful
from pointsman.jobs.audit.ranking import routers_masked, with_targets
from pointsman.jobs.audit.work import Asked, Work
from pointsman.methods.attempts import Attempt, ask_in_steps
from pointsman.methods.dataset_mask import DatasetMask, DatasetMaskResult
from pointsman.methods.masking import Masking, MaskingResult
from pointsman.methods.noise import Noise, spread
from pointsman.methods.rosais import RoSaisResult
from pointsman.methods.steps import Steps, stream
from pointsman.routing.intervention import Phase
from pointsman.stats.paired import compare

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
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

    def sets(self) -> list[tuple[str, Layers]]:
        """All sets of routers with their roles."""
        lowest = [("lowest", self.lowest)] if self.lowest else []
        return [("top", self.top), *lowest, *(("random", layers) for layers in self.random)]


@dataclass
class Done:
    """What was measured of one cell.

    Attributes:
        attacked: Results on restricted requests by role.
        harmless: Answers to benign requests by role; of the random sets, under the first.
        dataset: The mask chosen on the discovery split, and the answers to restricted requests under it.
    """

    attacked: dict[str, list[MaskingResult]] = field(default_factory=dict)
    harmless: dict[str, Sequence[Attempt]] = field(default_factory=dict)
    dataset: tuple[DatasetMaskResult, list[Attempt]] | None = None


def mask(
    work: Work,
    asked: Asked,
    ranked: RoSaisResult,
    base: list[Attempt],
    seeds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Mask the top 1, 2, ... routers, random ones outside them, and the lowest; freeze one mask; add noise.

    Args:
        work: The audit.
        asked: What it asks.
        ranked: What the routers are ranked by.
        base: Answers to the tested behaviours as the model is.
        seeds: The section ``seeds`` of the ranking, if it was repeated.

    Returns:
        The sections ``masking``, ``noise`` and, with more method seeds than one, ``seeds``.
    """
    cells = plan(work, ranked.ranking)
    benign = with_targets(asked.benign[: work.audit.utility_prompts])
    done = {cell: Done() for cell in cells}
    attacks = sum(len(cell.sets()) for cell in cells) * len(asked.test)
    with work.stage("masking", "Masking", attacks) as steps:
        for cell in cells:
            for role, layers in cell.sets():
                result = _masking(work, cell.phase).search(work.engine, asked.test, work.judge, layers, steps=steps)
                done[cell].attacked.setdefault(role, []).append(result)
    numbers = len({cell.number for cell in cells})
    with work.stage("dataset_mask", "Frozen masks", numbers * len(asked.discovery) + len(cells) * len(asked.test)) as s:
        _freeze(work, asked, cells, done, s)
    plain: list[Attempt] = []
    if benign:
        roles = sum(2 + bool(cell.lowest) + bool(cell.random) for cell in cells)
        with work.stage("utility", "Utility under masks", (1 + roles) * len(benign)) as steps:
            plain = _harmless(work, benign, cells, done, steps.under("utility"))
    first = masking_entry(MaskingResult((), tuple(base), (), ()), work.audit.phases[0], seed=work.audit.seed)
    entries = [first | _rates_or_none(work, plain)]
    for cell in cells:
        entries.append(_entry(work, cell, done[cell], base) | _kept(work, done[cell].harmless.get("top", ()), plain))
        work.note(f"masking-{cell.number}-{cell.phase}", asked.test, done[cell].attacked["top"][0].attempts)
    sections: dict[str, Any] = {"masking": entries, "noise": _noise(work, asked, benign, base)}
    if seeds:
        tops = [done[c].attacked["top"][0] for c in cells if c.phase == work.audit.phases[0]]
        sections["seeds"] = {"masking": _seeds(work, asked, tops, seeds["rosais"])}
    return sections


def plan(work: Work, order: Sequence[int]) -> list[Cell]:
    """The rows of the table. Phases after the first have one random set each, the first one of the first phase."""
    audit, cells = work.audit, []
    for number in range(1, routers_masked(work) + 1):
        top, rest = tuple(order[:number]), order[number:]
        enough = len(rest) >= number
        draws = _random_sets(audit.seed, rest, number, audit.random_draws) if enough else []
        lowest = tuple(order[-number:]) if enough else ()
        for phase in audit.phases:
            random = draws if phase == audit.phases[0] else draws[:1]
            cells.append(Cell(phase, number, top, lowest, tuple(random)))
    return cells


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


def _masking(work: Work, phase: Phase) -> Masking:
    return Masking(work.audit.samples, phase, max_new_tokens=work.answer_tokens, seed=work.audit.seed)


def _freeze(work: Work, asked: Asked, cells: Sequence[Cell], done: Mapping[Cell, Done], steps: Steps) -> None:
    """Choose a mask for each number of routers on the discovery split, and attack with it."""
    method = DatasetMask(work.audit.samples, seed=work.audit.seed)
    chosen: dict[Layers, DatasetMaskResult] = {}
    for cell in cells:
        if cell.top not in chosen:
            chosen[cell.top] = method.search(work.engine, asked.discovery, cell.top, steps=steps)
        frozen = chosen[cell.top]
        attempts = ask_in_steps(
            work.engine, asked.test, work.judge, key=_frozen_key(cell), steps=steps,
            routing=frozen.routing(cell.phase), max_new_tokens=work.answer_tokens,
        )  # fmt: skip
        done[cell].dataset = frozen, attempts


def _harmless(
    work: Work, benign: Sequence[Behaviour], cells: Sequence[Cell], done: Mapping[Cell, Done], steps: Steps
) -> list[Attempt]:
    """Benign requests as the model is (returned) and under every cell's masks, drawn and chosen as for restricted."""
    engine, judge = work.engine, work.judge
    for cell in cells:
        here, method = done[cell], _masking(work, cell.phase)
        for role, layers in cell.sets():
            if role not in here.harmless:
                here.harmless[role] = method.search(engine, benign, judge, layers, steps=steps).attempts
        if here.dataset:
            here.harmless["dataset"] = ask_in_steps(
                engine, benign, judge, key=_frozen_key(cell), steps=steps,
                routing=here.dataset[0].routing(cell.phase), max_new_tokens=work.answer_tokens,
            )  # fmt: skip
    return list(_masking(work, work.audit.phases[0]).search(engine, benign, judge, (), steps=steps).attempts)


def _frozen_key(cell: Cell) -> str:
    return f"frozen/{cell.phase}/{'-'.join(map(str, sorted(cell.top)))}"


def _entry(work: Work, cell: Cell, done: Done, base: Sequence[Attempt]) -> dict[str, Any]:
    seed, attacked = work.audit.seed, done.attacked
    lowest = attacked.get("lowest", [None])[0]
    top = attacked["top"][0]
    entry = masking_entry(top, cell.phase, attacked.get("random", []), lowest, base=base, seed=seed)
    if done.dataset:
        frozen, attempts = done.dataset
        entry["controls"]["dataset"] = {
            "layers": list(frozen.layers),
            "mask": {str(n): list(experts) for n, experts in zip(frozen.layers, frozen.experts, strict=True)},
            "discovery_score": frozen.score,
            **attempt_rates(attempts, seed=seed),
            "vs_base": difference(attempts, base, seed=seed),
        }
    for role, control in entry["controls"].items():
        control |= _rates_or_none(work, done.harmless.get(role, ()))
    return entry | _rates_or_none(work, done.harmless.get("top", ()))


def _kept(work: Work, under: Sequence[Attempt], plain: Sequence[Attempt]) -> dict[str, Any]:
    """What benign answers lose under the masks, paired by request."""
    if not under or not plain:
        return {"utility_vs_base": None}
    grades = work.judge.grades_content
    lost = compare(useful(under, grades), useful(plain, grades), [a.source for a in plain], work.audit.seed)
    return {"utility_vs_base": asdict(lost)}


def _rates_or_none(work: Work, attempts: Sequence[Attempt]) -> dict[str, Any]:
    if not attempts:
        return {"utility": None, "over_refusal": None}
    return harmless_rates(attempts, work.judge.grades_content, seed=work.audit.seed)


def _noise(work: Work, asked: Asked, benign: Sequence[Behaviour], base: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Every behaviour asked once at every level of noise."""
    audit, rows = work.audit, []
    if not audit.noise:
        return []
    total = len(asked.discovery) + len(audit.noise) * (len(asked.test) + len(benign))
    with work.stage("noise", "Noise", total) as steps:
        sigma = spread(work.engine, asked.discovery, steps=steps)
        for level in audit.noise:
            method = Noise(level, max_new_tokens=work.answer_tokens, seed=audit.seed)
            attempts = method.ask(work.engine, asked.test, work.judge, sigma, steps=steps)
            answered = method.ask(work.engine, benign, work.judge, sigma, steps=steps.under("utility"))
            work.note(f"noise-{level}", asked.test, attempts)
            rows.append(
                {
                    "sigma": level,
                    "phase": method.phase,
                    "std": [level * s for s in sigma],
                    **attempt_rates(attempts, seed=audit.seed),
                    "vs_base": difference(attempts, base, seed=audit.seed),
                    **_rates_or_none(work, answered),
                }
            )
    return rows


def _seeds(work: Work, asked: Asked, tops: Sequence[MaskingResult], ranking: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attack once more with each of the other seeds, on the routers that its own ranking puts on top."""
    seeds: list[int] = ranking["seeds"]
    rankings: list[list[int]] = ranking["rankings"]
    method = _masking(work, work.audit.phases[0])
    rows = []
    with work.stage("masking_seeds", "Masking, other seeds", len(tops) * (len(seeds) - 1) * len(asked.test)) as steps:
        for first in tops:
            number, results = len(first.layers), [first]
            for seed, order in zip(seeds[1:], rankings[1:], strict=True):
                again = replace(method, seed=seed)
                named = steps.under(f"seed-{seed}")
                results.append(again.search(work.engine, asked.test, work.judge, order[:number], steps=named))
            asr = [sum(a.verdict.success for a in r.attempts) / len(r.attempts) for r in results]
            rows.append(
                {
                    "routers": number,
                    "phase": method.phase,
                    "seeds": seeds,
                    "layers": [list(r.layers) for r in results],
                    "asr": asr,
                    "mean": float(np.mean(asr)),
                    "min": min(asr),
                    "max": max(asr),
                }
            )
    return rows
