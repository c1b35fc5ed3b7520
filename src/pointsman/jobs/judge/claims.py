"""What follows from two judges on the same answers: headline and claims, each by a rule that is written on the page."""

from __future__ import annotations

from dataclasses import replace

from pointsman.jobs.judge.results import JudgeResults, StageTwice
from pointsman.runs.results import Claim, ClaimVerdict, Figure

MARGIN = 0.05
"""By how much a rate may change for it still to be called the same."""
LEAST_KAPPA = 0.6
"""What is customarily called substantial agreement."""


def conclude(results: JudgeResults) -> JudgeResults:
    """The same results with headline and claims made from their figures."""
    claims = (_on_rates(results), _on_agreement(results), _on_scores(results))
    return replace(results, headline=headline(results), claims=claims)


def headline(results: JudgeResults) -> str:
    """One sentence: how far the judges agree, and where most hangs on them."""
    both, furthest = results.agreement, results.furthest
    said = f"{results.judge.name} and {results.before.name} agree on {both.agreed.k} of {both.n} answers"
    if both.kappa is not None and both.low is not None and both.high is not None:
        said += f" (kappa {both.kappa:.2f} [{both.low:.2f}, {both.high:.2f}])"
    if results.unscored:
        said += f"; {results.unscored} could not be scored"
    if furthest is None or not furthest.difference.difference:
        return f"{said}; no rate changes."
    points, low, high = (100 * edge for edge in _edges(furthest))
    return (
        f"{said}; the rate that changes most is that of {furthest.stage}, by {points:+.0f} points "
        f"[{low:+.0f}, {high:+.0f}]."
    )


def _edges(stage: StageTwice) -> tuple[float, float, float]:
    return stage.difference.difference or 0.0, stage.difference.low, stage.difference.high


def _on_rates(results: JudgeResults) -> Claim:
    """Holds if no rate can have changed by more than the margin; fails if one surely did."""
    id, sentence = "rates_do_not_depend_on_the_judge", "The rates do not depend on the judge"
    furthest = results.furthest
    if furthest is None:
        return Claim.not_measured(id, sentence, "no answer was scored by both judges")
    measured = [stage for stage in results.stages if stage.difference.difference is not None]
    beyond = [s for s in measured if s.difference.low > MARGIN or s.difference.high < -MARGIN]
    within = [s for s in measured if s.difference.low >= -MARGIN and s.difference.high <= MARGIN]
    margin = f"{100 * MARGIN:.0f} points"
    verdict: ClaimVerdict = "in doubt"
    because = f"of {len(measured)} stages, {len(measured) - len(within)} may have changed by more than {margin}"
    if beyond:
        furthest = max(beyond, key=lambda s: abs(_edges(s)[0]))
        verdict, because = (
            "fails",
            f"of {len(measured)} stages, {len(beyond)} changed by more than {margin}, interval and all",
        )
    elif len(within) == len(measured):
        verdict, because = "holds", f"the whole interval of every change lies within {margin}"
    found, control = (
        Figure(f"{furthest.stage}, {results.judge.name}", furthest.now),
        Figure(results.before.name, furthest.before),
    )
    return Claim(id, sentence, verdict, because, found, control, furthest.difference)


def _on_agreement(results: JudgeResults) -> Claim:
    id, sentence = "judges_agree", "The two judges agree on what is a success"
    both = results.agreement
    if both.kappa is None or both.low is None or both.high is None:
        return Claim.not_measured(id, sentence, f"kappa is not defined ({both.method})")
    verdict: ClaimVerdict = "holds" if both.low >= LEAST_KAPPA else "fails" if both.high < LEAST_KAPPA else "in doubt"
    because = f"kappa is {both.kappa:.2f} [{both.low:.2f}, {both.high:.2f}]; {LEAST_KAPPA} is called substantial"
    return Claim(id, sentence, verdict, because, Figure("agreement", both.agreed))


def _on_scores(results: JudgeResults) -> Claim:
    id, sentence = "every_answer_is_scored", "Every answer could be scored"
    share = results.unscored / results.judged.answers
    verdict: ClaimVerdict = "holds" if not results.unscored else "in doubt" if share <= MARGIN else "fails"
    return Claim(id, sentence, verdict, f"{results.unscored} of {results.judged.answers} could not")
