"""The chosen mask on the test split, beside no mask and the best of every other kind (METHODS section 5.6)."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.data.scenario import Limits
from pointsman.jobs.steer.candidates import Candidate, digest_of
from pointsman.jobs.steer.choosing import Choice
from pointsman.jobs.steer.limits import broken_limits
from pointsman.jobs.steer.outcome import Outcome, ask_in_stage, compare_gains, compare_measures, keep_outcome
from pointsman.jobs.steer.played import PlayedSplit, with_last_turns
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import Comparisons, TestArms, TestOutcome
from pointsman.runs.bench import Bench
from pointsman.stats.paired import Comparison


@dataclass(frozen=True)
class Arms:
    """The outcomes on the test split; None where there is no such mask."""

    before: Outcome
    after: Outcome
    steermoe: Outcome | None = None
    random: Outcome | None = None
    surrogate_only: Outcome | None = None

    def tested(self, limits: Limits) -> TestArms:
        """The rates of each, and the limits that it breaks."""

        def arm(outcome: Outcome) -> TestOutcome:
            return outcome.tested(broken_limits(outcome.rates, self.before.rates, limits))

        return TestArms(
            before=arm(self.before),
            after=arm(self.after),
            steermoe=arm(self.steermoe) if self.steermoe else None,
            random=arm(self.random) if self.random else None,
            surrogate_only=arm(self.surrogate_only) if self.surrogate_only else None,
        )

    def comparisons(self) -> Comparisons:
        """The chosen mask against each of the others."""

        def against(other: Outcome | None) -> Comparison | None:
            return compare_gains(self.after, other) if other else None

        return Comparisons(
            **compare_measures(self.after, self.before),
            vs_steermoe=against(self.steermoe),
            vs_random=against(self.random),
            vs_surrogate_only=against(self.surrogate_only),
        )


def ask_arms(bench: Bench[SteerQuestion], test: PlayedSplit, choice: Choice) -> Arms:
    """Ask the test split of the unsteered model's last turns, of the chosen mask and of its rivals."""

    def ask(arm: str, candidate: Candidate) -> Outcome:
        key, title = f"test/{arm}/{digest_of(candidate.routing)}", f"Test: {arm.replace('_', ' ')}"
        return ask_in_stage(bench, test.prompts, candidate.routing, key, title, stage="test", fallen=test.fallen)

    best = choice.best.candidate
    before = with_last_turns(bench, test, "Test: before")
    after = ask("after", best)
    rivals = {
        "steermoe": choice.best_of("steermoe"),
        "random": choice.best_of("random"),
        "surrogate_only": choice.best_of("mascing", "surrogate") if best.refinement != "surrogate" else None,
    }
    others = {arm: ask(arm, candidate) for arm, candidate in rivals.items() if candidate is not None}
    keep_outcome(bench, "test/before", test.prompts, before)
    keep_outcome(bench, "test/after", test.prompts, after)
    return Arms(before, after, **others)
