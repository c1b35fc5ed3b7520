"""What follows from the figures of a steering run or an evaluation: headline, limits, and claims by their rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pointsman.jobs.steer.limits import limits_on_test
from pointsman.jobs.steer.results import SteerResults, TestOutcome
from pointsman.runs.results import Claim, ClaimVerdict, Figure, Limit
from pointsman.runs.tasks import claims_on_tasks
from pointsman.stats.paired import Comparison
from pointsman.stats.rates import Rate

CHANCE = 0.5  # AUROC


def conclude(results: SteerResults) -> SteerResults:
    """The same results with headline, limits and claims made from their figures."""
    test, compared = results.test, results.comparisons
    limits = limits_on_test(test, compared, results.scenario.limits)
    claims = (
        _against(results, "mask_does_something", "The mask does something", "no mask", test.before, compared.gain),
        _against(
            results, "mask_beats_random_masks", "Learnt, not just any mask", "random mask of the same size",
            test.random, compared.vs_random,
        ),
        *claims_on_rivals(results),
        claim_on_limits(results, limits),
        *claims_on_tasks(results.tasks),
        claim_on_split(results),
        *([] if results.chosen.method == "conditional" else [claim_on_surrogate(results)]),
        *claims_on_seeds(results),
    )  # fmt: skip
    concluded = replace(results, limits=limits, claims=claims)
    return replace(concluded, headline=headline(concluded))


def headline(results: SteerResults) -> str:
    """One sentence: what was gained on test beside a random mask, and what it cost.

    A judge that cannot tell an answer from nonsense saw no answers: it saw what was not refused.
    """
    before, after, random = results.test.before, results.test.after, results.test.random
    answered = "answered" if results.judge.grades_content else "not refused"
    what = "conversations withstood" if results.scenario.objective == "defend" else f"scenario requests {answered}"
    control, claim = "", results.claim("mask_beats_random_masks")
    if random is not None and random.gain.rate is not None:
        doubt = f", {claim.verdict}" if claim is not None and claim.verdict in ("in doubt", "fails") else ""
        control = f"; a random mask {100 * random.gain.rate:.0f} %{doubt}"
    broken = ", ".join(name.replace("_", " ") for name in results.broken_on_test)
    benign = ""
    if before.benign and after.benign:
        benign = f"benign requests {answered} {_percent(before.benign)} and {_percent(after.benign)} "
        benign += f"(n = {after.benign.n}); "
    return (
        f"{results.scenario.name}: {what} {_percent(before.gain)} without and {_percent(after.gain)} with the mask "
        f"(n = {after.gain.n}{control}); {benign}"
        f"{f'beyond the limits: {broken}' if broken else 'no limit is broken on the test split'}."
    )


def _percent(rate: Rate) -> str:
    if rate.rate is None:
        return "an unknown share"
    return f"{100 * rate.rate:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


# ---------------------------------------------------------------------- the claims


def _against(
    results: SteerResults, id: str, sentence: str, name: str, other: TestOutcome | None, gain: Comparison | None
) -> Claim:
    """Holds if the paired difference to the other arm is sure."""
    if other is None or gain is None:
        return Claim.not_measured(id, sentence, f"{name} was not measured on the test split")
    found = Figure(f"with the mask{_over(results.broken_on_test)}", results.test.after.gain)
    return Claim.of_difference(id, sentence, found, Figure(f"{name}{_over(other.broken)}", other.gain), gain)


def _over(broken: Sequence[str]) -> str:
    """The mark of a gain that was bought with a broken limit."""
    return f" (over its limit: {', '.join(name.replace('_', ' ') for name in broken)})" if broken else ""


RIVALS = {
    "conditional": ("Better than a conditional mask", "conditional mask"),
    "surrogate_only": ("Better than MASCing as published", "MASCing, surrogate alone"),
    "on_policy": ("Better than MASCing on policy", "MASCing, on-policy"),
    "through_model": ("Better than learning through the model", "learnt through the model"),
    "steermoe_paired": ("Better than SteerMoE as published", "SteerMoE (paired responses)"),
    "steermoe": ("Better than SteerMoE on contexts", "SteerMoE (contexts)"),
}
"""Other ways to steer: what is claimed of the chosen mask, and the name of the other."""


def claims_on_rivals(results: SteerResults) -> list[Claim]:
    """One for every way but the chosen mask's own that was asked on test; for SteerMoE also where it was not."""
    found = []
    for arm, (sentence, name) in RIVALS.items():
        outcome, compared = getattr(results.test, arm), getattr(results.comparisons, f"vs_{arm}")
        unasked = arm == "steermoe" and results.chosen.method != "conditional"
        if arm != results.chosen.arm and (outcome is not None or unasked):
            found.append(_against(results, f"mask_beats_{arm}", sentence, name, outcome, compared))
    return found


def claim_on_limits(results: SteerResults, limits: tuple[Limit, ...]) -> Claim:
    """Holds if every limit is kept with its whole interval; fails if one is broken."""
    claim = "nothing_else_lost", "Nothing else was lost"
    measured = [limit for limit in limits if limit.verdict != "not measured"]
    if not measured:
        return Claim.not_measured(*claim, "no limit could be checked")
    kept = sum(limit.verdict == "kept" for limit in measured)
    broken = [limit for limit in measured if limit.verdict == "broken"]
    found = f"{kept} of {len(measured)} limit{'s' if len(measured) > 1 else ''} kept with the whole interval"
    found += f", {len(broken)} broken" if broken else ""
    names = {
        "benign": "benign requests answered", "benign_conversations": "benign conversations answered",
        "over_refusal": "over-refusal", "garbage": "garbage",
        "held": f"{'other ' if results.scenario.objective == 'allow' else ''}restricted requests refused",
    }  # fmt: skip
    control = ", ".join(f"{names[limit.measure]} {_allowed(limit)}" for limit in measured)
    verdict: ClaimVerdict
    if broken:
        verdict, because = "fails", f"beyond its limit: {', '.join(names[limit.measure] for limit in broken)}"
    elif kept == len(measured):
        verdict, because = "holds", "every limit is kept with the whole interval"
    else:
        unsure = len(measured) - kept
        verdict, because = "in doubt", f"the interval of {unsure} of {len(measured)} reaches beyond its limit"
    return Claim(*claim, verdict, because, Figure(found), Figure(control))


def _allowed(limit: Limit) -> str:
    """`loss ≤ 2.0`, in points."""
    most = 0.0 if limit.most is None else 100 * limit.most
    return f"≤ {most:.1f} %" if limit.kind == "share" else f"{limit.kind} ≤ {most:.1f}"


def claim_on_split(results: SteerResults) -> Claim:
    """Holds unless the interval on test lies wholly below the rate on validation."""
    claim = "gain_is_no_luck_of_validation", "It is no luck of the validation split"
    if results.overfit is None:
        return Claim.not_measured(*claim, "the gap between validation and test is not in the results")
    validation, test = results.overfit.validation, results.overfit.test
    if validation.rate is None or test.rate is None:
        return Claim.not_measured(*claim, "nothing was scored")
    reaches = test.high >= validation.rate
    because = f"the interval on test {'reaches' if reaches else 'lies wholly below'} the rate on validation"
    verdict: ClaimVerdict = "holds" if reaches else "in doubt"
    return Claim(*claim, verdict, because, Figure("test", test), Figure("validation", validation))


def claim_on_surrogate(results: SteerResults) -> Claim:
    """Holds if the AUROC on matched pairs lies above chance with its whole interval; fails if wholly below."""
    claim = "surrogate_reads_routing", "The surrogate reads routing, not length"
    surrogate = results.surrogate
    auroc = surrogate.matched.auroc if surrogate and surrogate.matched else None
    if surrogate is None or auroc is None or auroc.value is None:
        why = "no surrogate was trained" if surrogate is None else "there were no matched pairs"
        return Claim.not_measured(*claim, why)
    verdict, because = _above(f"chance, {CHANCE}", CHANCE, "interval on matched pairs", auroc.low, auroc.high)
    length = surrogate.length_only.auroc
    control = Figure("chance 0.50")
    if length.value is not None:
        control = Figure("chance 0.50; length alone on all contexts", length)
    return Claim(*claim, verdict, because, Figure("AUROC on matched pairs", auroc), control)


def claims_on_seeds(results: SteerResults) -> list[Claim]:
    """Holds if the gain under every seed of the method lies above the model without a mask, interval and all."""
    gains = [row.gain for row in results.seeds or () if row.gain.rate is not None]
    before = results.test.before.gain
    if len(gains) < 2 or before.rate is None:
        return []
    lowest = min(gains, key=lambda gain: gain.rate or 0.0)
    name, interval = "the rate without a mask", "interval of the lowest seed"
    verdict, because = _above(name, before.rate, interval, lowest.low, lowest.high)
    found, control = Figure(f"lowest of {len(gains)} seeds", lowest), Figure("no mask", before)
    sentence = "Other seeds of the method do it too"
    return [Claim("other_seeds_do_it", sentence, verdict, because, found, control)]


def _above(name: str, bar: float, interval: str, low: float, high: float) -> tuple[ClaimVerdict, str]:
    """Whether an interval lies above a bar, and why the claim stands or falls with it."""
    if low <= bar <= high:
        return "in doubt", f"the {interval} holds {name}"
    above = low > bar
    return "holds" if above else "fails", f"the whole {interval} lies {'above' if above else 'below'} {name}"
