"""What the pages and summaries of steering call things: by the objective, and of masks and measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pointsman.jobs.steer.results import Gap, MaskFacts, SteerResults
from pointsman.report import text
from pointsman.runs.results import Limit

COSTS = {
    "benign": "Benign requests answered",
    "benign_conversations": "Benign conversations answered",
    "over_refusal": "Over-refusal",
    "garbage": "Garbage",
}
"""The measures of what a mask costs, by their key; `held` is called as the objective calls it."""
ARMS = {
    "after": "chosen mask",
    "conditional": "conditional mask",
    "surrogate_only": "MASCing, surrogate alone",
    "on_policy": "MASCing, on-policy",
    "through_model": "learnt through the model",
    "steermoe_paired": "SteerMoE (paired responses, as published)",
    "steermoe": "SteerMoE (contexts)",
    "random": "random mask",
    "before": "without the mask",
}
"""Names of what is asked on test. MASCing (arXiv 2604.27818) is what was learnt on a surrogate, and nothing else."""
SHORT_ARMS = {
    **ARMS,
    "surrogate_only": "MASCing surrogate",
    "on_policy": "MASCing on-policy",
    "through_model": "through the model",
    "steermoe_paired": "SteerMoE paired",
    "steermoe": "SteerMoE contexts",
}
"""The same, as the terminal has room for them."""
REFINEMENTS = {"surrogate": "surrogate alone", "on_policy": "on-policy", "through_model": "through the model"}
LABEL0 = {
    "topic": "requests of the scenario that the model answered",
    "target": "the same requests, each read with the beginning of its own target, as the refused ones are with the "
    "beginning of the refusal",
    "benign": "requests that the model answered, benign ones among them",
}
"""What the contexts of label 0 are, by the contrast of a scenario that allows something."""
PHASES = {
    "prefill": "in force while the prompt is read",
    "decode": "in force while the answer is written",
    "both": "in force while the prompt is read and the answer written",
}


@dataclass(frozen=True)
class Wording:
    """What an objective calls things.

    Attributes:
        gain: The head of a column of gains.
        gained: What the gain counts, as in "the share of …".
        definition: The gain's name in the literature.
        unit: What the gain's n counts.
        fallen: The head of a column of those that did not do as wanted, when the surrogate's contexts were made.
        label1: What the contexts of label 1 are.
        held: What must not move.
    """

    objective: Literal["defend", "allow"]
    gain: str
    gained: str
    definition: str
    unit: str
    fallen: str
    label1: str
    held: str

    def measure(self, key: str) -> str:
        """The name of a measure, at the beginning of a sentence."""
        return {"gain": self.gain, "held": self.held}.get(key) or COSTS.get(key, text.readable(key))

    def within(self, key: str) -> str:
        """The name of a measure within a sentence."""
        name = self.measure(key)
        return name[:1].lower() + name[1:]


DEFEND = Wording(
    objective="defend",
    gain="Defended",
    gained="conversations in which no answer is unsafe and the request itself is not given in to, rightly or wrongly",
    definition="DSR, the whole conversation played again",
    unit="conversations",
    fallen="Fallen",
    label1="conversations that fell",
    held="Restricted requests refused",
)
GAINED_BEFORE = "conversations in which the model gives no unsafe answer at any turn"
"""What was counted while a wrong answer to the request counted as withstood."""
WRONG_WITHSTANDS = "A wrong answer to the request counts as withstood here, as it did in all older runs."
ALLOW = Wording(
    objective="allow",
    gain="Answered",
    gained="requests of the scenario that the model answers",
    definition="GSR",
    unit="requests",
    fallen="Refused",
    label1="requests of the scenario that were refused",
    held="Other restricted requests refused",
)


def wording_for(results: SteerResults) -> Wording:
    """What the objective of these results calls things; a judge of refusals alone saw no answers."""
    if results.scenario.objective == "defend":
        return replace(DEFEND, gained=GAINED_BEFORE) if results.wrong_withstands else DEFEND
    if results.judge.grades_content:
        return ALLOW
    return replace(ALLOW, gain="Not refused", gained="requests of the scenario that the model does not refuse")


def counts_wrong(results: SteerResults) -> bool:
    """Whether wrong answers count as withstood, and there can be any."""
    return results.wrong_withstands and results.scenario.objective == "defend" and results.judge.grades_content


def known_limits(results: SteerResults) -> list[Limit]:
    """Those on measures that this version knows."""
    return [limit for limit in results.limits if limit.measure in COSTS or limit.measure == "held"]


def refinement_name(key: str) -> str:
    """A refinement as people say it; one that this version does not know stays as it is."""
    return REFINEMENTS.get(key, text.readable(key))


def mask_name(mask: MaskFacts) -> str:
    """Such as ``MASCing, on-policy``, ``learnt through the model`` or ``SteerMoE (contexts)``."""
    if mask.method == "conditional":
        return "conditional, learnt through the model"
    if mask.refinement == "through_model":
        return ARMS["through_model"]
    if mask.refinement:
        return f"MASCing, {refinement_name(mask.refinement)}"
    return ARMS.get(mask.method, "mask")


def mask_settings(mask: MaskFacts | Gap) -> str:
    """Such as ``λ 0.001, α 1.5, prefill`` or ``6 experts on, 2 experts off, both``."""
    said = [f"λ {text.show(mask.lambda_)}"] if mask.lambda_ is not None else []
    said += [f"hold {text.show(mask.hold)}"] if mask.hold is not None else []
    if isinstance(mask, MaskFacts):
        said += [f"rank {mask.rank}"] if mask.rank is not None else []
        said += [f"decay {text.show(mask.decay)}"] if mask.decay is not None else []
        said += [f"step {mask.step}"] if mask.step is not None else []
        said += [f"{n} experts {way}" for way, n in (("on", mask.on), ("off", mask.off)) if n]
    said += [f"α {text.show(mask.alpha)}"] if mask.alpha is not None else []
    return ", ".join([*said, mask.phase])
