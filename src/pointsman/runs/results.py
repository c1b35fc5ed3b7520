"""Results as they are written to ``results.json``: typed in memory and on disk, with the claims that follow from them.

Every job has a dataclass of its own, made of `Results` and of what it measures. `dump` and `read` are the only way to
disk and back; what is not of the class is refused, so a results file says what its schema says, or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pointsman.engine.types import Engine, GradientMemory
from pointsman.errors import RunError
from pointsman.judges.making import innermost
from pointsman.judges.types import Judge
from pointsman.runs.files import shareable_parameters
from pointsman.runs.provenance import provenance, shareable_command
from pointsman.stats.auroc import Auroc
from pointsman.stats.bounds import exceeds
from pointsman.stats.paired import AboveDraws, Comparison
from pointsman.stats.rates import Mean, Rate

SCHEMA = "pointsman.results/1"
ThreatModel = Literal["T1", "T2", "T3"]
"""T1: the adversary owns the weights. T2: the deployment enforces its masks. T3: the adversary controls inputs only."""


SIGNIFICANT = 0.05
"""What a p-value must be below."""

# ---------------------------------------------------------------------- what follows from the figures

ClaimVerdict = Literal["holds", "in doubt", "fails", "not measured"]
LimitVerdict = Literal["kept", "kept, not surely", "broken", "not measured"]


@dataclass(frozen=True)
class Figure:
    """A number with what it is of.

    Attributes:
        name: Such as ``F-SOUR`` or ``router 2``.
        value: None where the name says all.
    """

    name: str
    value: Rate | Mean | Auroc | None = None


@dataclass(frozen=True)
class Claim:
    """A sentence that one would doubt, held against the control that could refute it.

    Attributes:
        id: Of the claim, the same in every run of a job, such as ``found_routes_beat_random``.
        sentence: What is claimed.
        verdict: What the rule of this claim makes of the figures.
        because: The rule's reason, in one sentence without its stop; of ``not measured``, why there are no figures.
        found: The finding; None if it was not measured.
        control: What it is held against.
        difference: Of the two, where they are paired.
    """

    id: str
    sentence: str
    verdict: ClaimVerdict
    because: str
    found: Figure | None = None
    control: Figure | None = None
    difference: Comparison | AboveDraws | None = None

    @staticmethod
    def not_measured(id: str, sentence: str, why: str) -> Claim:
        """The claim without figures."""
        return Claim(id, sentence, "not measured", why)

    @staticmethod
    def of_difference(
        id: str, sentence: str, found: Figure, control: Figure, difference: Comparison | AboveDraws
    ) -> Claim:
        """The claim that the finding is more than the control."""
        verdict = verdict_of_difference(difference)
        side = "above" if difference.low > 0 else "below" if difference.high < 0 else ""
        because = "the interval of the paired difference holds zero"
        if side:
            because = f"the whole interval of the paired difference lies {side} zero"
        if isinstance(difference, Comparison):
            below = "is" if difference.p_clustered < SIGNIFICANT else "is not"
            because += f", and p = {difference.p_clustered:.3g} {below} below {SIGNIFICANT}"
        return Claim(id, sentence, verdict, because, found, control, difference)


@dataclass(frozen=True)
class Limit:
    """A measure against the most that it may lose, rise or be (METHODS section 5). All numbers are shares.

    Attributes:
        measure: Such as ``benign``.
        kind: Whether `value` is a ``loss`` or a ``rise`` against no routing, or the ``share`` itself.
        most: The limit; None if there is none.
        value, low, high: With the 95 % interval, worse upwards; None if it was not measured.
        verdict: ``broken`` by the point estimate alone; ``kept`` only with the whole interval.
    """

    measure: str
    kind: Literal["loss", "rise", "share"]
    most: float | None
    value: float | None
    low: float | None
    high: float | None
    verdict: LimitVerdict

    @staticmethod
    def of(
        measure: str,
        kind: Literal["loss", "rise", "share"],
        most: float | None,
        value: float | None,
        interval: tuple[float | None, float | None],
    ) -> Limit:
        """A measure with its verdict."""
        low, high = interval
        verdict: LimitVerdict
        if value is None or most is None:
            verdict = "not measured"
        elif exceeds(value, most):
            verdict = "broken"
        else:
            verdict = "kept, not surely" if high is None or exceeds(high, most) else "kept"
        return Limit(measure, kind, most, value, low, high, verdict)


def verdict_of_difference(difference: Comparison | AboveDraws) -> ClaimVerdict:
    """Whether the first of two does more than the second.

    Returns:
        ``holds`` if the whole interval lies above zero and, of two rates, the p-value of whole clusters is below 0.05;
        ``fails`` if it lies below zero as surely.
    """
    if isinstance(difference, Comparison) and difference.p_clustered >= SIGNIFICANT:
        return "in doubt"
    return "holds" if difference.low > 0 else "fails" if difference.high < 0 else "in doubt"


# ---------------------------------------------------------------------- what every job says


@dataclass(frozen=True)
class JudgeFacts:
    """Who judged.

    Attributes:
        grades_content: Whether it tells correct from wrong content.
        parameters: Those that were given.
        grades_harm: Whether it tells harm, and not whether what was asked for was given.
    """

    name: str
    version: str
    grades_content: bool
    parameters: Mapping[str, str | int | float | bool | None] | None = None
    grades_harm: bool = False

    @property
    def succeeds(self) -> str:
        """What a model does where this judge calls the attack a success: no more than it can tell."""
        return "answers" if self.grades_content else "answers unsafely" if self.grades_harm else "does not refuse"

    @staticmethod
    def of(judge: Judge) -> JudgeFacts:
        """Facts about a judge."""
        grades_harm = bool(getattr(innermost(judge), "grades_harm", False))
        given = shareable_parameters(judge) or None
        return JudgeFacts(judge.name, judge.version, judge.grades_content, given, grades_harm)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which model was asked.

    Attributes:
        context: Tokens that a prompt and its answer may have.
        layers: MoE layers.
        experts, top_k: One number if all layers are alike.
        fingerprint: Of its routers; `weights`: of all its weights.
        revision: Of the checkpoint, if it came from the hub.
        resumes: From where forwards can be resumed, in words.
        thinking: What is judged and whether the model thinks before it answers; None for one that does not, and in
            results of versions that did not say.
    """

    name: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    context: int
    layers: int
    experts: int | tuple[int, ...]
    top_k: int | tuple[int, ...]
    fingerprint: str
    weights: str | None = None
    revision: str | None
    resumes: str | None = None
    thinking: str | None = None

    @staticmethod
    def of(engine: Engine) -> ModelFacts:
        """Facts about the model of an engine."""
        info, routers = engine.info, engine.routers
        experts, top_k = [r.experts for r in routers], [r.top_k for r in routers]
        return ModelFacts(
            name=info.name, architecture=info.architecture, parameters=info.parameters, dtype=info.dtype,
            device=info.device, context=info.context, layers=len(routers), experts=_one_or_all(experts),
            top_k=_one_or_all(top_k), fingerprint=info.fingerprint, revision=info.revision, resumes=engine.resumes,
            weights=engine.weights, thinking=info.channels.sentence or None,
        )  # fmt: skip


def _one_or_all(numbers: Sequence[int]) -> int | tuple[int, ...]:
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def notes_on_model(engine: Engine) -> list[str]:
    """What loading noticed of the model, such as layers of the checkpoint that its configuration does not count."""
    return [str(note) for note in engine.info.extra.get("notes", [])]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What something took: `tokens` are rows x length, padding included."""

    forwards: int
    tokens: int
    token_layers: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageCost(Spent):
    """What a stage took, or was foretold to take."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class Forecast(Spent):
    """What a run was foretold to take.

    Attributes:
        upper: At most.
        assumed: What was not known in advance.
        pace: Seconds of each kind of work.
        pilot: Answers that were generated to see their length, and tokens of the longest; None if all were cut off.
        gpus, gpu_hours: Where the model lies on any.
        gradient_memory: What route gradients need on top of the model; None if there are none, or it cannot be told.
    """

    upper: Spent | None = None
    stages: tuple[StageCost, ...] = ()
    assumed: Mapping[str, float | bool] | None = None
    pace: Mapping[str, Mapping[str, float]] | None = None
    pilot: Mapping[str, int | None] | None = None
    gpus: int | None = None
    gpu_hours: float | None = None
    gradient_memory: GradientMemory | None = None


@dataclass(frozen=True, kw_only=True)
class JudgingCost:
    """What an endpoint took to judge.

    Attributes:
        answers: That were judged there; the same answer to the same request is judged once.
        unscored: Of these, those without a verdict.
        requests: That were sent, with those that failed and were sent again.
        tokens_in, tokens_out: Of requests and replies, as the endpoint counted them.
        uncounted: Answers for which it did not count.
        money: By the prices that were given, if any were.
    """

    answers: int
    unscored: int
    requests: int
    tokens_in: int
    tokens_out: int
    uncounted: int
    money: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunCost(Spent):
    """What a run took, by stage, beside what was foretold; and what judging took, where an endpoint did it."""

    stages: tuple[StageCost, ...]
    predicted: Forecast | None = None
    judging: JudgingCost | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the results were made with: nothing that says who or where."""

    versions: Mapping[str, str]
    notices: tuple[str, ...] = ()
    platform: str
    cpu: str
    gpus: tuple[str, ...]
    threads: int | None
    commit: str | None
    created: str
    command: str = ""

    @staticmethod
    def of(command: str) -> Provenance:
        """Of results that are made now, by a command line that is shown as it may be shared."""
        found = provenance()
        return Provenance(
            **{**found, "notices": tuple(found["notices"]), "gpus": tuple(found["gpus"])},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=shareable_command(command),
        )


@dataclass(frozen=True, kw_only=True)
class Results:
    """What every job says beside what it measures.

    Attributes:
        schema: Of the file.
        job: That made them, such as ``audit``.
        headline: All of it in one sentence.
        suite: Name of what was asked.
        small_n: Fewer than 100 prompts: read the intervals.
        notes: Sentences that a reader should know.
        left_out: Ids of prompts that do not fit into the model's context.
        limits: What may be lost at most, and what was.
        claims: What one would doubt first.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)  # of its parts too

    schema: str = SCHEMA
    job: str
    headline: str = ""
    suite: str
    seed: int
    small_n: bool
    threat_model: ThreatModel
    judge: JudgeFacts
    model: ModelFacts
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    claims: tuple[Claim, ...] = ()
    cost: RunCost
    provenance: Provenance

    def claim(self, id: str) -> Claim | None:
        """The claim with this id; None if the job does not make it."""
        return next((claim for claim in self.claims if claim.id == id), None)

    @property
    def in_vain(self) -> str | None:
        """Why the run found nothing of use, in a sentence; None if it did. Some jobs can fail at what they are for."""
        return None

    @property
    def within_limits(self) -> bool:
        """Whether no limit is broken."""
        return all(limit.verdict != "broken" for limit in self.limits)


# ---------------------------------------------------------------------- to disk and back

R = TypeVar("R")


def dump(results: object) -> dict[str, Any]:
    """Results, or a part of them, as JSON values."""
    found: dict[str, Any] = TypeAdapter(type(results)).dump_python(results, mode="json", by_alias=True)
    return found


def read(data: Mapping[str, Any], kind: type[R]) -> R:
    """The inverse of `dump`.

    Raises:
        RunError: Something is missing, unknown or of another type; the message names it.
    """
    try:
        results: R = TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
        return results
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise RunError(
            f"results.json cannot be read: `{place or 'the file'}`: {first['msg'].lower()}",
            "Read it with the Pointsman version that wrote it, or make the run again",
        ) from error


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON schema of a class of results."""
    return TypeAdapter(kind).json_schema(by_alias=True, mode="serialization")
