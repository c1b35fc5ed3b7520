"""What things are called: one set of words per objective, and the names of methods and settings."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.report.values import Node, clean_text, plain

ALLOW = "allow"


@dataclass(frozen=True)
class Words:
    """The words of an objective.

    Attributes:
        objective: `defend` or `allow`.
        gain: The head of a column of gains.
        gained: What the gain counts, as in "the share of …".
        measure: The gain's name in the literature.
        fallen: What the training contexts of label 1 are.
        unit: What the gain's n counts.
        held: What must not move.
    """

    objective: str
    gain: str
    gained: str
    measure: str
    fallen: str
    unit: str
    held: str

    @property
    def turns(self) -> bool:
        """Whether the objective is about turns of conversations at all."""
        return self.objective != ALLOW


DEFEND_WORDS = Words(
    objective="defend",
    gain="Defended",
    gained="conversations in which the model gives no unsafe answer at any turn",
    measure="DSR, the whole conversation played again",
    fallen="conversations that fell",
    unit="conversations",
    held="Restricted requests refused",
)
ALLOW_WORDS = Words(
    objective=ALLOW,
    gain="Answered",
    gained="requests of the scenario that the model answers",
    measure="GSR",
    fallen="requests of the scenario that were refused",
    unit="requests",
    held="Other restricted requests refused",
)


def words_of(results: Node) -> Words:
    return ALLOW_WORDS if results["scenario"]["objective"].text() == ALLOW else DEFEND_WORDS


METHODS = {"mascing": "MASCing", "steermoe": "SteerMoE", "random": "random mask"}
REFINEMENTS = {"surrogate": "surrogate alone", "on_policy": "on-policy", "through_model": "through the model"}
PHASES = {
    "prefill": "in force while the prompt is read",
    "decode": "in force while the answer is written",
    "both": "in force while the prompt is read and the answer written",
}
COSTS = {
    "benign": "Benign requests answered",
    "benign_conversations": "Benign conversations answered",
    "over_refusal": "Over-refusal",
    "garbage": "Garbage",
}
"""The measures of what a mask costs, by their key; `held` is called as the objective calls it."""


def known(names: dict[str, str], key: str) -> str:
    """The name of a key; one that this version does not know is shown as it is."""
    return names.get(key, clean_text(key).replace("_", " "))


def measure_name(key: str, words: Words) -> str:
    return words.held if key == "held" else known(COSTS, key)


def method_name(record: Node) -> str:
    """`MASCing, through the model`; `SteerMoE`."""
    method, refinement = record.get("method"), record.get("refinement")
    name = known(METHODS, method.text()) if method else "mask"
    return f"{name}, {known(REFINEMENTS, refinement.text())}" if refinement else name


def settings_text(record: Node) -> str:
    """`λ 0.001, α 1.5, prefill`, or `8 experts off, both`, of those that the record has."""
    lambda_, hold, alpha, phase = (record.get(key) for key in ("lambda", "hold", "alpha", "phase"))
    pinned, entries = record.get("pinned"), record.get("entries")
    said = [f"λ {lambda_.text()}"] if lambda_ else []
    said += [f"hold {hold.text()}"] if hold else []
    if pinned and entries:
        how = {"both": "on or off"}.get(pinned.text(), pinned.text())
        said += [f"{entries.text()} experts {how}"]
    said += [f"α {alpha.text()}"] if alpha else []
    said += [phase.text()] if phase else []
    return ", ".join(said)


def points(share: float | None, digits: int = 1) -> str:
    """A share as percentage points, `1.3`."""
    return plain(None if share is None else 100 * share, digits)


def many(number: int, one: str, more: str = "") -> str:
    """`1 mask`, `3 masks`."""
    return f"{number} {one if number == 1 else more or one + 's'}"
