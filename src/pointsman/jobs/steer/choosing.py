"""`Choosing`: the grid of a steering run, coarse to fine, on the validation split; the same for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pointsman.data.scenario import REFINEMENTS
from pointsman.errors import DataError
from pointsman.jobs.steer.candidates import Candidate, Screen, Tried, screened_loss
from pointsman.jobs.steer.contexts import Context
from pointsman.jobs.steer.matrices import Found, Material, mask_of
from pointsman.jobs.steer.outcome import Asked, Outcome, measure
from pointsman.jobs.steer.scene import Scene
from pointsman.jobs.steer.strengths import Search, Strengths
from pointsman.jobs.steer.traces import activations
from pointsman.methods.mascing import circuit
from pointsman.methods.steermoe import Activations, SteerMoE, sizes
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Phase

SCREENED = 24  # contexts of label 1 in the screen, and half as many of each group that is held
TOLERATED = 0.1  # loss of the screen that does not count against a finalist: a row of twelve; `Search` weakens it


class Choosing:
    """Screens, tries and chooses among masks and pins.

    Args:
        scene: The scenario on the model.
        sigma: Standard deviation of each layer's logits. Shape: [L].
        seed: Of the random masks.
        finalists: Candidates per method, and per refinement of MASCing, that are generated with.
        random_draws: Random masks.
    """

    def __init__(self, scene: Scene, sigma: tuple[float, ...], *, seed: int, finalists: int, random_draws: int) -> None:
        self.scene, self.sigma = scene, sigma
        self.seed, self.finalists, self.draws = seed, finalists, random_draws
        self.limits = asdict(scene.scenario.limits)
        self._sets: list[Activations] = []
        self._strengths = Strengths(scene.scenario.grid.alphas, sigma, sum(scene.experts), self._pin)

    def screen(self, asked: Asked, base: Outcome, contexts: Sequence[Context], refusal: str) -> Screen:
        turning = [c for c in contexts if self.scene.turns(c)][:SCREENED]
        forks = self.scene.forks(turning, asked, refusal, "validation")
        held = {name: lessons[: SCREENED // 2] for name, lessons in self.scene.held(asked, base).items()}
        return Screen(forks, held)

    def screened(
        self, founds: Sequence[Found], material: Material, screen: Screen
    ) -> tuple[dict[str, tuple[Candidate, dict[str, Any]]], dict[str, Any]]:
        """Every point of the coarse grid by what the model would say; and the unsteered model by the same."""
        candidates = [c for f in founds for c in self._of_matrix(f, self._coarse())]
        turning = [c for c in material.contexts if self.scene.turns(c)]
        others = [c for c in material.contexts if not c.label]
        candidates += self._pins(turning, others)
        base, rates = self._screen_all(candidates, screen)
        return {c.id: (c, r) for c, r in zip(candidates, rates, strict=True)}, base

    def _screen_all(
        self, candidates: Sequence[Candidate], screen: Screen
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with self.scene.bench.stage("screen", "Screening candidates", len(candidates) + 1) as steps:
            base, totals = screen.rates(self.scene.engine, None, key="screen/none", steps=steps, base=None)
            rates = [
                screen.rates(self.scene.engine, c.routing, key=f"screen/{c.key}", steps=steps, base=totals)[0]
                for c in candidates
            ]
        return base, rates

    def _coarse(self) -> tuple[float, ...]:
        """Every second strength, where there are many, and 1."""
        alphas = tuple(sorted(self.scene.scenario.grid.alphas))
        return alphas if len(alphas) <= 4 else tuple(a for n, a in enumerate(alphas) if n % 2 or a == 1)

    def _of_matrix(self, found: Found, alphas: Sequence[float]) -> list[Candidate]:
        if not any(row.any() for row in found.values):
            return []
        phases = (found.phase,) if found.phase else self.scene.scenario.grid.phases
        return [
            Candidate(
                f"mascing/{found.name}/alpha={alpha:g}" + ("" if found.phase else f"/{phase}"),
                "mascing", found.routing(self.sigma, alpha, phase), alpha, phase, len(circuit(found.values)),
                alpha * float(sum(np.abs(row).sum() for row in found.values)), found.refinement, found.lambda_,
                found.start, found.hold, matrix=found.values,
            )
            for phase in phases
            for alpha in alphas
        ]  # fmt: skip

    def _pins(self, turning: Sequence[Context], others: Sequence[Context]) -> list[Candidate]:
        """SteerMoE: experts that the wanted behaviour uses pinned on, those of the unwanted pinned off."""

        def counted(contexts: Sequence[Context]) -> dict[str, Any]:
            found = activations(self.scene.engine, contexts, system=self.scene.system)
            return {"tokens": found.tokens, "counts": [row.tolist() for row in found.counts]}

        self._sets = []
        with self.scene.bench.stage("activations", "Activation rates", 2) as steps:
            for name, contexts in (("wanted", others), ("unwanted", turning)):
                unit = steps.unit(
                    f"activations/{name}",
                    self.scene.engine,
                    lambda contexts=contexts: counted(contexts),  # type: ignore[misc]
                )
                self._sets.append(Activations(unit["tokens"], tuple(np.array(row) for row in unit["counts"])))
        pins = [
            self._pin(on, off, phase)
            for on, off in sizes(sum(self.scene.experts))
            for phase in self.scene.scenario.grid.phases
        ]
        return [pin for pin in pins if pin is not None]

    def _pin(self, on: int, off: int, phase: Phase) -> Candidate | None:
        """So many experts pinned, by the rates that `_pins` counted."""
        wanted, unwanted = self._sets
        pin = SteerMoE(on, off, phase).pin(wanted, unwanted, [router.top_k for router in self.scene.engine.routers])
        if pin is None:
            return None
        shape = "both" if on and off else "on" if on else "off"
        return Candidate(f"steermoe/on={on}/off={off}/{phase}", "steermoe", pin, None, phase, on + off, shape=shape)

    def tried(
        self,
        asked: Asked,
        screened: Mapping[str, tuple[Candidate, dict[str, Any]]],
        unscreened: Mapping[str, Any],
        base: Mapping[str, Any],
    ) -> tuple[list[Tried], dict[str, float]]:
        """The finalists of every method and refinement, generated with on validation, and how strong they may be."""
        seconds: dict[str, float] = {}
        every = list(screened.values())
        groups = [[e for e in every if e[0].refinement == r] for r in REFINEMENTS]  # the paper's own first
        if not any(groups):
            raise DataError(
                "Every steering matrix was zero after the cut: nothing was learnt",
                "Give smaller lambdas in the grid, or more contexts",
            )
        masks, pins = (self._search(asked, base, seconds) for _ in range(2))
        for group in groups:
            masks.settle(self._best(group, unscreened, self.finalists))
        pins.settle(self._best([e for e in every if e[0].method == "steermoe"], unscreened, self.finalists))
        for search in (masks, pins):
            search.sharpen()
        return [*masks.tried, *pins.tried], seconds

    def _search(self, asked: Asked, base: Mapping[str, Any], seconds: dict[str, float]) -> Search:
        return Search(self._strengths, lambda candidate: self._try(candidate, asked, base, seconds))

    def again(self, found: Found, like: Candidate, asked: Asked, base: Mapping[str, Any]) -> list[Tried]:
        """Another seed's matrix in place of that of a candidate, and how strong it may be."""
        search = self._search(asked, base, {})
        search.settle([c for c in self._of_matrix(found, (like.alpha or 1.0,)) if c.phase == like.phase])
        search.sharpen()
        return search.tried

    def _best(
        self, entries: Sequence[tuple[Candidate, dict[str, Any]]], base: Mapping[str, Any], count: int
    ) -> list[Candidate]:
        """The most promising of one method: what gains most at a tolerable loss, then whatever loses least.

        Of one matrix (or kind of pins) in one phase, one strength only: `Search` finds the others.
        """

        def key(entry: tuple[Candidate, dict[str, Any]]) -> tuple[float, ...]:
            candidate, rates = entry
            loss = screened_loss(rates, base)
            return (
                max(0.0, loss - TOLERATED),
                -float(rates["gain"]["rate"]),
                loss,
                candidate.norm1 or candidate.entries,
            )

        found: dict[tuple[int, str, str], Candidate] = {}
        for candidate, _ in sorted(entries, key=lambda e: (key(e), e[0].id)):
            found.setdefault((id(candidate.matrix), candidate.shape, candidate.phase), candidate)
        return list(found.values())[:count]

    def _try(self, candidate: Candidate, asked: Asked, base: Mapping[str, Any], seconds: dict[str, float]) -> Tried:
        key = f"validation/{candidate.key}"
        with self.scene.bench.stage("validation", f"Validation: {candidate.id}", asked.units) as steps:
            outcome = measure(
                self.scene.engine, asked, self.scene.judge, objective=self.scene.scenario.objective,
                routing=candidate.routing, key=key,
                steps=steps, max_new_tokens=self.scene.tokens, system=self.scene.system,
                hold=self.scene.scenario.hold,
            )  # fmt: skip
            seconds[candidate.id] = round(steps.cost()["seconds"] / max(asked.units, 1), 4)
        return Tried.of(candidate, outcome, base, self.limits)

    def random(
        self, best: Tried, screen: Screen, asked: Asked, base: Mapping[str, Any], seconds: dict[str, float]
    ) -> tuple[list[Tried], dict[str, tuple[Candidate, dict[str, Any]]]]:
        """Masks with the entries of the best one, elsewhere: the same sparsity and norm, through the same choice."""
        matrix = best.candidate.matrix
        if matrix is None or not self.draws:
            return [], {}
        founds = [(n, _shuffled(matrix, stream(self.seed, "random mask", n))) for n in range(self.draws)]
        candidates = [
            Candidate(
                f"random/{n}/alpha={alpha:g}", "random", mask_of(values, self.sigma, alpha, best.candidate.phase),
                alpha, best.candidate.phase, best.candidate.entries,
                alpha * float(sum(np.abs(row).sum() for row in values)), matrix=values,
            )
            for n, values in founds
            for alpha in self._coarse()
        ]  # fmt: skip
        unscreened, rates = self._screen_all(candidates, screen)
        entries = list(zip(candidates, rates, strict=True))
        chosen = self._best(entries, unscreened, self.finalists)
        search = self._search(asked, base, seconds)
        search.settle(chosen)
        search.sharpen()
        return search.tried, {c.id: (c, r) for c, r in entries}

    def section(
        self,
        screened: Mapping[str, tuple[Candidate, dict[str, Any]]],
        tried: Sequence[Tried],
        best: Tried,
        seconds: Mapping[str, float],
    ) -> list[dict[str, Any]]:
        """Fine: generated with. Coarse: by what the model would say; their rates are those of the screen."""
        fine = [
            {**t.candidate.to_json(), **t.rates, "stage": "fine", "admissible": not t.broken, "broken": list(t.broken),
             "chosen": t is best, "seconds_per_answer": seconds.get(t.candidate.id)}
            for t in tried
        ]  # fmt: skip
        coarse = [
            {**c.to_json(), "gain": rates["gain"], "benign": rates.get("benign"), "garbage": None,
             "benign_conversations": rates.get("benign_conversations"), "over_refusal": None,
             "held": rates.get("restricted"), "borderline": rates.get("borderline"), "stage": "coarse",
             "admissible": None, "broken": [], "chosen": False, "seconds_per_answer": None}
            for c, rates in screened.values()
        ]  # fmt: skip
        return fine + coarse


def _shuffled(matrix: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same entries at random places."""
    flat = rng.permutation(np.concatenate(matrix))
    edges = np.cumsum([len(row) for row in matrix])[:-1]
    return tuple(np.split(flat, edges))
