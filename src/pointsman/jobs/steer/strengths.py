"""How strong a mask may be: where limits break and where they hold, found by bisection on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pointsman.jobs.steer.candidates import Candidate, Tried, choose
from pointsman.jobs.steer.maps import conditional_of
from pointsman.jobs.steer.matrices import mask_of, norm1
from pointsman.methods.steermoe import sizes
from pointsman.routing.intervention import Phase

FINE = 2  # tries beyond the grid's strength that was best
NEAR = 0.03  # alphas that are nearer than this are not told apart

Pin = Callable[[int, int, Phase], Candidate | None]
Try = Callable[[Candidate], Tried]


def no_pins(on: int, off: int, phase: Phase) -> Candidate | None:
    """Where masks alone are searched."""
    return None


class Strengths:
    """The same mask at other alphas; pins of the same kind with more or fewer experts, in the same proportion.

    Args:
        alphas: Of the grid.
        sigma: Standard deviation of each layer's logits. Shape: [L].
        experts: Of all layers together.
        pin: Gives the pins for (n+, n-, phase); None where nothing differs.
    """

    def __init__(self, alphas: Sequence[float], sigma: tuple[float, ...], experts: int, pin: Pin) -> None:
        self._alphas = tuple(sorted(alphas))
        self._sigma = sigma
        self._counts = sorted({max(pair) for pair in sizes(experts)})
        self._pin = pin

    def of(self, candidate: Candidate) -> float:
        """Alpha of a mask; of pins the experts on or off, whichever are more."""
        if candidate.alpha is not None:
            return candidate.alpha
        return float(max(candidate.on or 0, candidate.off or 0))

    def grid(self, candidate: Candidate) -> tuple[float, ...]:
        """All strengths of the coarse grid, from the weakest."""
        return self._alphas if candidate.alpha is not None else tuple(float(n) for n in self._counts)

    def at(self, candidate: Candidate, strength: float) -> Candidate | None:
        """The same kind at another strength; None where there are no such pins."""
        if candidate.alpha is None:
            share = round(strength) / self.of(candidate)
            on, off = (n and max(1, round(n * share)) for n in (candidate.on or 0, candidate.off or 0))
            return self._pin(on, off, candidate.phase)
        matrix, maps, phase = candidate.matrix, candidate.maps, candidate.phase
        name = candidate.id.replace(f"alpha={candidate.alpha:g}", f"alpha={strength:g}")
        if maps is not None:
            size = (candidate.size or 0.0) * strength / candidate.alpha
            routing = conditional_of(maps, strength, phase)
            return replace(candidate, id=name, routing=routing, alpha=strength, size=size)
        assert matrix is not None
        routing = mask_of(matrix, self._sigma, strength, phase)
        return replace(candidate, id=name, routing=routing, alpha=strength, norm1=strength * norm1(matrix))

    def between(self, candidate: Candidate, other: Candidate) -> Candidate | None:
        """The same kind at half way; None where the two are as near as it is worth telling apart."""
        low, high = self.of(candidate), self.of(other)
        if candidate.alpha is None:
            return self.at(candidate, (low + high) // 2) if abs(high - low) > 1 else None
        return self.at(candidate, round((low + high) / 2, 3)) if abs(high - low) > NEAR else None


class StrengthSearch:
    """Tries masks of one method, or pins, and finds how strong the best of them may be. Limits hold with margin.

    Args:
        strengths: Of these candidates.
        try_on_validation: Generates with a candidate on validation.
    """

    def __init__(self, strengths: Strengths, try_on_validation: Try) -> None:
        self._strengths = strengths
        self._try = try_on_validation
        self._tried: dict[str, Tried] = {}

    @property
    def tried(self) -> list[Tried]:
        """In the order in which they were tried."""
        return list(self._tried.values())

    def settle(self, finalists: Sequence[Candidate]) -> None:
        """Try each as it is; one that breaks a limit is made weaker, by bisection of the grid, until it does not.

        Only while it gains more than whatever keeps all limits: a weaker mask is taken to gain no more.
        """
        for finalist in finalists:
            found = self._go(finalist)
            weaker = [s for s in self._strengths.grid(finalist) if s < self._strengths.of(finalist)]
            low, high = 0, 0 if found.kept else len(weaker)  # below `low` limits hold; from `high` on one breaks
            while low < high and (found.kept or found.gain > self._kept()):
                middle = (low + high) // 2
                candidate = self._strengths.at(finalist, weaker[middle])
                if candidate is None:
                    break
                found = self._go(candidate)
                low, high = (middle + 1, high) if found.kept else (low, middle)

    def settle_boldest(self, candidates: Sequence[Candidate]) -> None:
        """Try all as they are, and settle the one that gains most."""
        tried = [self._go(candidate) for candidate in candidates]
        boldest = min(tried, key=lambda t: (-t.gain, t.excess, t.candidate.id), default=None)
        self.settle([] if boldest is None else [boldest.candidate])

    def sharpen(self) -> None:
        """Make the best stronger until a limit breaks; then halve what lies between, `FINE` tries in all."""
        for _ in range(FINE):
            candidate = self._next() if self._tried else None
            if candidate is None or candidate.id in self._tried:
                return
            self._go(candidate)

    def _next(self) -> Candidate | None:
        """A little stronger than the best, where that may gain."""
        best, _ = choose(self.tried)
        if not best.kept or best.gain >= 1:
            return None
        at = self._strengths.of(best.candidate)
        stronger = [t for t in self.tried if _kind(t) == _kind(best) and self._strengths.of(t.candidate) > at]
        if stronger:
            nearest = min(stronger, key=lambda t: self._strengths.of(t.candidate))
            return self._strengths.between(best.candidate, nearest.candidate) if not nearest.kept else None
        more = [s for s in self._strengths.grid(best.candidate) if s > at]
        return self._strengths.at(best.candidate, more[0]) if more else None

    def _go(self, candidate: Candidate) -> Tried:
        if candidate.id not in self._tried:
            self._tried[candidate.id] = self._try(candidate)
        return self._tried[candidate.id]

    def _kept(self) -> float:
        """The largest gain within all limits so far."""
        return max((t.gain for t in self._tried.values() if t.kept), default=-1.0)


def _kind(tried: Tried) -> tuple[str, int, str | None, int | None, Phase]:
    candidate = tried.candidate
    return candidate.method, candidate.origin, candidate.pinned, candidate.proportion, candidate.phase
