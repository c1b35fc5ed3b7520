"""`Card`: the model card of a steering, which the Hugging Face hub shows. What it says, and how it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointsman.errors import InterventionError
from pointsman.routing.intervention import Phase
from pointsman.steering.maps import Maps, described
from pointsman.steering.values import number, one_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_TAGS = ("mixture-of-experts", "steering", "routing", "pointsman")
_SHOWN = 20  # entries of the circuit
_CONSTANT = (
    "At the routers of the model a vector is added to the logits from which experts are chosen: the entries",
    "of the circuit below, times sigma, times alpha. No weight is changed. It fits one model, known by its",
    "fingerprint, and is refused by any other.",
)
_CONDITIONAL = (
    "At the routers of the model something is added to the logits from which experts are chosen, and how much depends",
    "on the token: alpha times B A x, with x what the router reads there, and A and B of a low rank. So tokens that",
    "the model tells apart can be routed in other ways, and others stay as they are. If there is a circuit below, its",
    "entries times sigma times alpha are added as well. No weight is changed. It fits one model, known by its",
    "fingerprint, and is refused by any other.",
)


@dataclass(frozen=True)
class Card:
    """What the card of a steering says.

    Attributes:
        base_model, revision, fingerprint, alpha, phase, per_token, circuit, about, maps: As in `Steering`.
        experts: Of every MoE layer. Shape: [L].
    """

    base_model: str
    revision: str | None
    fingerprint: str
    alpha: float
    phase: Phase
    per_token: bool
    experts: tuple[int, ...]
    circuit: tuple[tuple[int, int, float], ...]
    about: Mapping[str, Any]
    maps: Maps

    def text(self, data: str) -> str:
        """Front matter of the hub, what the steering is, how to use it, what was measured.

        Args:
            data: Name of the file beside the card that holds all of the circuit.
        """
        front = [f"base_model: {json.dumps(self.base_model)}"] if _on_the_hub(self.base_model) else []
        front += ["library_name: pointsman", "tags:", *(f"- {tag}" for tag in _TAGS)]
        possible, layers = sum(self.experts), len({layer for layer, _, _ in self.circuit})
        unit = "of each token's own logits" if self.per_token else "of the layer's logits, measured once and kept here"
        facts: dict[str, Any] = {
            "base model": self.base_model,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "alpha": f"{self.alpha:g}",
            "tokens": {"prefill": "of the prompt", "decode": "of the answer", "both": "all"}[self.phase],
            "circuit": f"{len(self.circuit)} of {possible} experts, in {layers} of {len(self.experts)} layers",
            "unit (sigma)": f"standard deviation {unit}",
        }
        if self.maps and not self.circuit:
            del facts["circuit"], facts["unit (sigma)"]
        if self.maps:
            facts["conditional part"] = f"{len(self.maps)} of {len(self.experts)} layers"
        if isinstance(added := self.about.get("sum"), tuple):
            facts["sum of"] = "; ".join(map(_summand, added))
        told = ("measured", "sum")
        lists = {k: ", ".join(map(str, v)) for k, v in self.about.items() if isinstance(v, tuple) and k not in told}
        facts |= {k: v for k, v in self.about.items() if isinstance(v, str | int | float)} | lists
        name = _cell(self.base_model)
        lines = [
            *("---", *front, "---", "", f"# A steering of {name}", ""),
            *(_CONDITIONAL if self.maps else _CONSTANT),
            *("", "| | |", "|---|---|"),
            *(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if value is not None),
            *("", "## Use", "", "```python", "import pointsman", ""),
            f"engine = pointsman.load({json.dumps(self.base_model)})",
            'steering = pointsman.Steering.from_pretrained("this repository or folder")',
            'engine.generate([engine.encode(["Hello"])], routing=steering)',
            *("```", "", "## Measured", ""),
            *measured(self.about),
        ]
        if self.maps:
            lines += self._conditional()
        if self.circuit or not self.maps:
            lines += [
                *("", "## Circuit", "", "| layer | expert | value (sigma) |", "|---:|---:|---:|"),
                *(f"| {layer} | {expert} | {value:+.3f} |" for layer, expert, value in self.circuit[:_SHOWN]),
            ]
        if len(self.circuit) > _SHOWN:
            lines += ["", f"The {_SHOWN} largest of {len(self.circuit)}; all are in `{data}`."]
        lines += [
            *("", "## Limits", ""),
            "It acts for as long as whoever runs the model applies it; who owns the weights can leave it out. What was",
            "measured was measured on the prompts and with the judge named above, and says nothing of others.",
        ]
        return "\n".join(lines) + "\n"

    def _conditional(self) -> list[str]:
        """What the conditional part is, costs, and can be folded into."""
        parts = described(self.maps)
        numbers = sum(p["rank"] * (p["width"] + self.experts[p["layer"]] + p["threshold"]) for p in parts)
        if any(part["threshold"] for part in parts):
            folds = "It cannot be folded into the weights: what has a threshold is no product with a matrix."
        elif self.phase != "both":
            folds = "It cannot be folded into the weights, which act on all tokens."
        else:
            where = " where the router has a bias on its logits, which the circuit needs" if self.circuit else ""
            folds = (
                f"It can be folded{where}: the weight of a router becomes W + alpha B A, in an ordinary checkpoint "
                "that costs nothing more (`pointsman fold`)."
            )
        return [
            *("", "## Conditional part", ""),
            f"{numbers} numbers in {len(parts)} {'layer' if len(parts) == 1 else 'layers'}.",
            f"While it is applied, it costs two thin matrix products at each of these routers. {folds}",
            *("", "| layer | rank | threshold | norm of B A (logits) |", "|---:|---:|---|---:|"),
            *(
                f"| {part['layer']} | {part['rank']} | {'yes' if part['threshold'] else 'no'} | {part['norm']:.3g} |"
                for part in parts
            ),
        ]


def _summand(one: Any) -> str:
    """One of those that a steering is the sum of."""
    if not isinstance(one, Mapping):
        return str(one)
    said = [str(one[key]) for key in ("scenario", "method") if isinstance(one.get(key), str)]
    return f"{', '.join(said) or 'a steering'} at alpha {one.get('alpha', 1)}"


def measured(about: Mapping[str, Any]) -> list[str]:
    """The table of what was measured, line by line.

    Raises:
        InterventionError: `measured` is not of the form that is wanted.
    """
    rows = about.get("measured")
    if rows is None:
        return ["Nothing was measured with this steering at this strength."]
    lines = ["| | without | with |", "|---|---:|---:|"]
    try:
        for row in rows:
            lines.append(f"| {_cell(row['what'])} | {_rate(row['before'])} | {_rate(row['after'])} |")
    except (KeyError, TypeError, ValueError) as error:
        raise InterventionError(
            f"What was measured is not a list of rates ({type(error).__name__}: {error})",
            'Give rows of {"what": text, "before": rate, "after": rate}',
        ) from error
    return [*lines, "", "In brackets the 95 % interval; n rows, the same ones with and without."]


def _on_the_hub(name: str) -> bool:
    """Whether a base model can be a hub id: the hub refuses a card with anything else."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def _rate(rate: Mapping[str, Any]) -> str:
    n = rate["n"]
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError("n is not a number of rows")
    if rate["rate"] is None:
        return "not measured"
    share, low, high = (number(rate[key], key) for key in ("rate", "low", "high"))
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}], n = {n}"


def _cell(value: Any) -> str:
    """Text of others in a table of the card."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", one_line(text))
