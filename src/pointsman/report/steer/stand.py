"""Do the findings stand?  The claims of a steer run against what could refute them, with stated rules."""

from __future__ import annotations

from typing import Any

from pointsman.report.checks import DOUBT, HOLDS, UNKNOWN, Check
from pointsman.report.routers import SIGNIFICANT
from pointsman.report.steer.outcomes import BROKEN, KEPT, OPEN, limited
from pointsman.report.steer.surrogate import aurocs
from pointsman.report.steer.words import Words, many
from pointsman.report.values import MISSING, Node


def claims(results: Node, words: Words) -> dict[str, Any]:
    """All of them, and how many hold."""
    found = [
        _against("The mask does something", "before", "gain", "no mask", results),
        _against("Learnt, not just any mask", "random", "vs_random", "random mask of the same size", results),
        _against("Better than the baseline method", "steermoe", "vs_steermoe", "SteerMoE", results),
        _limits(results, words),
        _split(results),
        _length(results),
        *_seeds(results),
    ]
    held, doubted, unknown = (sum(c.verdict == verdict for c in found) for verdict in (HOLDS, DOUBT, UNKNOWN))
    said = f"Of {len(found)} claims that one would doubt first, {held} hold{'s' if held == 1 else ''}"
    said += f", {doubted} {'is' if doubted == 1 else 'are'} in doubt" if doubted else ""
    said += f", {unknown} {'was' if unknown == 1 else 'were'} not measured" if unknown else ""
    return {"rows": found, "finding": said + "."}


def _unknown(claim: str, why: str) -> Check:
    return Check(claim, MISSING, MISSING, MISSING, UNKNOWN, why)


def _against(claim: str, arm: str, key: str, name: str, results: Node) -> Check:
    """Holds if the interval of the paired difference lies above zero, and its p, if there is one, below 0.05."""
    test, compared = results["test"], results.get("comparisons")
    other, found = test.get(arm), compared.get(key) if compared else None
    if other is None or found is None:
        return _unknown(claim, f"{name} was not measured on the test split")
    change = found.difference()
    sure = change.above and (change.p is None or change.p < SIGNIFICANT)
    chance = f", {change.chance}" if change.chance else ""
    return Check(
        claim,
        f"with the mask {test['after']['gain'].rate().full}",
        f"{name} {other['gain'].rate().full}",
        f"{change.short}{chance}",
        HOLDS if sure else DOUBT,
    )


def _limits(results: Node, words: Words) -> Check:
    """Holds if every limit is kept with its whole interval."""
    claim = "Nothing else was lost"
    rows = [row for row in limited(results, words) if row.verdict != OPEN]
    if not rows:
        return _unknown(claim, "no limit could be checked")
    kept, broken = (sum(row.verdict == verdict for row in rows) for verdict in (KEPT, BROKEN))
    found = f"{kept} of {many(len(rows), 'limit')} kept with the whole interval"
    found += f", {broken} broken" if broken else ""
    names = ", ".join(f"{row.name.lower()} {row.allowed.replace('share ', '')}" for row in rows)
    return Check(claim, found, names, MISSING, HOLDS if kept == len(rows) else DOUBT)


def _split(results: Node) -> Check:
    """Holds unless the interval on test lies wholly below the rate on validation."""
    claim = "It is no luck of the validation split"
    node = results.get("overfit")
    sides = [node.get(key) for key in ("validation", "test")] if node else [None, None]
    if sides[0] is None or sides[1] is None:
        return _unknown(claim, "the gap between validation and test is not in the results")
    chosen, scored = sides[0].rate(), sides[1].rate()
    if chosen.rate is None or scored.high is None:
        return _unknown(claim, "nothing was scored")
    verdict = HOLDS if scored.high >= chosen.rate else DOUBT
    return Check(claim, f"test {scored.full}", f"validation {chosen.full}", MISSING, verdict)


def _length(results: Node) -> Check:
    """Holds if the AUROC on matched pairs lies above chance with its whole interval."""
    claim = "The surrogate reads routing, not length"
    found = aurocs(results)
    matched, length = found.get("matched"), found.get("length")
    if matched is None or matched.low is None:
        trained = results.get("surrogate") is not None
        return _unknown(claim, "there were no matched pairs" if trained else "no surrogate was trained")
    control = f"chance 0.50; length alone on all contexts {length.full}" if length else "chance 0.50"
    return Check(
        claim, f"AUROC on matched pairs {matched.full}", control, MISSING, HOLDS if matched.low > 0.5 else DOUBT
    )


def _seeds(results: Node) -> list[Check]:
    """Holds if the gain under every seed of the method lies above the model without a mask, interval and all."""
    node = results.get("seeds")
    gains = [found.rate() for row in node.rows() if (found := row.get("gain"))] if node else []
    before = results["test"]["before"]["gain"].rate()
    scored = [gain for gain in gains if gain.rate is not None]
    if len(scored) < 2 or before.rate is None:
        return []
    low = min(scored, key=lambda gain: gain.rate or 0.0)
    sure = low.low is not None and low.low > before.rate
    lowest = f"lowest of {many(len(scored), 'seed')} {low.full}"
    return [
        Check(
            "Other seeds of the method do it too", lowest, f"no mask {before.full}", MISSING, HOLDS if sure else DOUBT
        )
    ]
