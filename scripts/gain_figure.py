"""docs/guided-gain.svg: what a route gradient estimates that a forced set gains, against what it gains.

    python scripts/gain_figure.py

Discovery requests of the testbed's three families; at every (layer, prompt token) three sets drawn at random and the
one that the estimate thinks best, each forced alone, in an exact forward. Spearman's rho is over all of them; the
figure shows a random sample, the best sets darker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import pointsman
from pointsman.methods.best_sets import best_sets
from pointsman.routing.intervention import Intervention
from pointsman.stats.rank_agreement import spearman
from pointsman.testbed.plugin import load_suite

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ("olmoe", "qwen2_moe", "deepseek_v3")
PROMPTS, DRAWN, SHOWN, SEED = 8, 3, 500, 0
SIDE, GAP, LEFT, TOP = 250, 60, 56, 50
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.head{font-weight:600}line{stroke:#bbb;stroke-width:1}"
    ".drawn{fill:#8fb0d6;fill-opacity:.55}.best{fill:#b3421f;fill-opacity:.75}"
)


@dataclass(frozen=True)
class Gains:
    """Estimated and true gains of forced pairs, in nats of log p(target).

    Attributes:
        estimated, true: Shape: [pairs].
        best: Which are of the best set of their layer and token. Shape: [pairs].
    """

    checkpoint: str
    estimated: np.ndarray
    true: np.ndarray
    best: np.ndarray


def measure(checkpoint: str) -> Gains:
    """Force every pair alone, on prompts that no test asks."""
    engine, rng = pointsman.load(f"testbed:{checkpoint}"), np.random.default_rng(SEED)
    behaviours = [b for b in load_suite().restricted if b.split == "discovery"][:PROMPTS]
    prompts = [engine.encode(b.turns) for b in behaviours]
    targets = [engine.encode_target(b.target) for b in behaviours]
    natural = engine.score(prompts, targets)
    found: list[tuple[float, float, bool]] = []
    for prompt, target, before, gradient in zip(
        prompts, targets, natural, engine.route_gradients(prompts, targets), strict=True
    ):
        rows: list[Intervention] = []
        estimated: list[tuple[float, bool]] = []
        for router, layer in zip(engine.routers, gradient.layers, strict=True):
            best, _ = best_sets(layer, router)
            for token in range(len(prompt)):
                sets = [(drawn, False) for drawn in np.asarray(router.draw(rng, DRAWN))] + [(best[token], True)]
                for experts, is_best in sets:
                    rows.append(Intervention.force({(router.layer, token): experts.tolist()}, phase="prefill"))
                    estimated.append((float(layer.gain(experts)[token]), is_best))
        scores = engine.score([prompt] * len(rows), [target] * len(rows), routing=rows)
        found += [(e, s.total - before.total, b) for (e, b), s in zip(estimated, scores, strict=True)]
    table = np.array(found)
    return Gains(checkpoint, table[:, 0], table[:, 1], table[:, 2] > 0)


def figure(panels: Sequence[Gains]) -> str:
    """One panel of points for each checkpoint, as SVG; the dashed line is where the estimate is the truth."""
    parts = [part for number, gains in enumerate(panels) for part in panel(gains, LEFT + number * (SIDE + GAP))]
    width, height = LEFT + len(panels) * (SIDE + GAP), TOP + SIDE + 54
    label = "Estimated against true gains of single forced pairs, in nats, on three tiny models"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{label}"><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def panel(gains: Gains, left: float) -> list[str]:
    """Points, axes and rho of one checkpoint; `left` in pixels."""
    shown = np.random.default_rng(SEED).permutation(len(gains.true))[:SHOWN]
    both = np.concatenate([gains.estimated[shown], gains.true[shown]])
    low, high = float(both.min()), float(both.max())

    def x(value: float) -> float:
        return round(left + SIDE * (value - low) / (high - low), 1)

    def y(value: float) -> float:
        return round(TOP + SIDE * (high - value) / (high - low), 1)

    rho, rho_best = (spearman(gains.estimated[of], gains.true[of]) for of in (~gains.best, gains.best))
    said = f"rho {rho:.2f} drawn ({(~gains.best).sum():,}), {rho_best:.2f} best ({gains.best.sum():,})"
    parts = [
        f'<text x="{left}" y="{TOP - 26}" class="head">{gains.checkpoint}</text>',
        f'<text x="{left}" y="{TOP - 10}">{said}</text>',
        f'<line x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}" stroke-dasharray="4 3"/>',
        f'<line x1="{x(0)}" y1="{TOP}" x2="{x(0)}" y2="{TOP + SIDE}"/>',
        f'<line x1="{left}" y1="{y(0)}" x2="{left + SIDE}" y2="{y(0)}"/>',
    ]
    for tick in (low, 0.0, high):
        parts += [
            f'<text x="{x(tick)}" y="{TOP + SIDE + 18}" text-anchor="middle">{tick:.1f}</text>',
            f'<text x="{left - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:.1f}</text>',
        ]
    parts.append(f'<text x="{left + SIDE / 2}" y="{TOP + SIDE + 40}" text-anchor="middle">estimated gain (nats)</text>')
    for index in sorted(shown, key=lambda i: bool(gains.best[i])):
        kind = "best" if gains.best[index] else "drawn"
        parts.append(f'<circle class="{kind}" cx="{x(gains.estimated[index])}" cy="{y(gains.true[index])}" r="2.2"/>')
    return parts


if __name__ == "__main__":
    target = ROOT / "docs" / "guided-gain.svg"
    target.write_text(figure([measure(checkpoint) for checkpoint in CHECKPOINTS]), encoding="utf-8")
    print(target)
