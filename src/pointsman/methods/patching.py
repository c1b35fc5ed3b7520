"""Activation patching between a plain run and one under an intervention: where does it change the answer's beginning?

A prompt runs twice, plainly and under its intervention (*changed*). Then, for every cell, a decoder layer l and a
token t, the residual stream after l at t is exchanged:

- *restored*: the changed run with the plain run's cell. Does the plain beginning come back?
- *inserted*: the plain run with the changed run's cell. Does the beginning change?

Both are measured by the logit difference between the token that the plain answer begins with and the one that the
changed answer begins with, and normalised: 0 is the run patched into, 1 the run taken from. At the layer of an
intervention that masks one router, to insert token t is to mask at t alone, and to restore it is to mask at all
tokens but t: that row of the table is the trace by tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pointsman.data.types import Behaviour
from pointsman.engine.abilities import that_patches
from pointsman.engine.patching import Cell, Patcher, Streams
from pointsman.engine.types import Engine, Prompt
from pointsman.errors import UsageError
from pointsman.routing.intervention import Intervention

TOGETHER = 32  # prompts whose residual streams are held side by side


@dataclass(frozen=True)
class PatchingResult:
    """What patching showed, of the prompts whose answers begin otherwise under their intervention (Q).

    Differences are logits of the token that the plain answer begins with less that of the changed answer, so that
    `plain` is positive and `changed` negative. In all arrays of cells the last column is not a token, but all tokens
    except the last together; what lies beyond the end of a prompt is NaN (or False).

    Attributes:
        prompts: Behaviour ids. Shape: [Q].
        sources: Their clusters. Shape: [Q].
        tokens: Of each prompt, as text. Shapes: [T].
        begins: Token ids that the plain and the changed answer begin with. Shape: [Q, 2].
        unmoved: Behaviour ids of the prompts that were left out: their answers begin the same.
        layers: Decoder layers after which was patched, from the first that the interventions touch. Shape: [M].
        plain, changed: Difference in either run. Shape: [Q].
        restored, inserted: Difference after patching. Shape: [Q, M, T + 1].
        back: The restored run begins as the plain one. Shape: [Q, M, T + 1].
        gone: The inserted run begins as the changed one. Shape: [Q, M, T + 1].
        plain_lens, changed_lens: Difference if the stream after a layer were read at once by the final norm and head.
            Shape: [Q, decoder layers].
    """

    prompts: tuple[str, ...]
    sources: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    begins: np.ndarray
    unmoved: tuple[str, ...]
    layers: tuple[int, ...]
    plain: np.ndarray
    changed: np.ndarray
    restored: np.ndarray
    inserted: np.ndarray
    back: np.ndarray
    gone: np.ndarray
    plain_lens: np.ndarray
    changed_lens: np.ndarray

    @property
    def restored_share(self) -> np.ndarray:
        """How far each cell brings the plain beginning back: 0 not at all, 1 wholly. Shape: [Q, M, T + 1]."""
        return np.asarray((self.restored - self._column(self.changed)) / self._column(self.plain - self.changed))

    @property
    def inserted_share(self) -> np.ndarray:
        """How far each cell changes the beginning: 0 not at all, 1 as the intervention. Shape: [Q, M, T + 1]."""
        return np.asarray((self._column(self.plain) - self.inserted) / self._column(self.plain - self.changed))

    @staticmethod
    def _column(values: np.ndarray) -> np.ndarray:
        return values[:, None, None]


@dataclass(frozen=True)
class Patching:
    """Exchange residual streams, cell by cell, between the plain and the changed run of each prompt.

    Attributes:
        layers: Decoder layers after which to patch; None for all from the first that the interventions touch.
    """

    layers: tuple[int, ...] | None = None

    def patch(self, engine: Engine, behaviours: Sequence[Behaviour], routing: Sequence[Intervention]) -> PatchingResult:
        """Patch every behaviour between its plain run and the one under its intervention.

        Args:
            engine: One that patches, of a model whose forwards can be resumed from a layer.
            behaviours: Shape: [B].
            routing: Of each behaviour, in force during prefill or both phases. Shape: [B].

        Raises:
            UsageError: There is nothing to patch, or the engine cannot.
        """
        if not behaviours or len(behaviours) != len(routing):
            raise UsageError(
                f"{len(behaviours)} prompts with {len(routing)} interventions", "Give one intervention for each prompt"
            )
        patches = that_patches(engine)
        prompts = [engine.encode(b.turns) for b in behaviours]
        first = _first_touched(engine, routing) if self.layers is None else 0
        width = max(map(len, prompts))
        moved: list[int] = []
        parts: list[_Part] = []
        with patches.patcher() as patcher:
            layers = self.layers if self.layers is not None else tuple(range(first, patcher.layers))
            for start in range(0, len(prompts), TOGETHER):
                numbers = range(start, min(start + TOGETHER, len(prompts)))
                part = _patch(patcher, [prompts[n] for n in numbers], [routing[n] for n in numbers], layers, width)
                moved += [start + row for row in part.rows]
                parts.append(part)
        if not moved:
            raise UsageError(
                "No answer begins otherwise under its intervention, so that there is nothing to patch",
                "Give interventions that change the first token",
            )

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])

        kept = set(moved)
        return PatchingResult(
            prompts=tuple(behaviours[n].id for n in moved),
            sources=tuple(behaviours[n].row_cluster for n in moved),
            tokens=tuple(prompts[n].tokens for n in moved),
            begins=joined("begins"),
            unmoved=tuple(b.id for n, b in enumerate(behaviours) if n not in kept),
            layers=layers,
            plain=joined("plain"),
            changed=joined("changed"),
            restored=joined("restored"),
            inserted=joined("inserted"),
            back=joined("back"),
            gone=joined("gone"),
            plain_lens=joined("plain_lens"),
            changed_lens=joined("changed_lens"),
        )


@dataclass(frozen=True)
class _Part:
    """The arrays of a `PatchingResult` for some prompts, and which of them begin otherwise (`rows`)."""

    rows: tuple[int, ...]
    begins: np.ndarray
    plain: np.ndarray
    changed: np.ndarray
    restored: np.ndarray
    inserted: np.ndarray
    back: np.ndarray
    gone: np.ndarray
    plain_lens: np.ndarray
    changed_lens: np.ndarray


def _patch(
    patcher: Patcher, prompts: Sequence[Prompt], routing: Sequence[Intervention], layers: Sequence[int], width: int
) -> _Part:
    plain, changed = patcher.streams(prompts, [None] * len(prompts)), patcher.streams(prompts, routing)
    begins = np.stack([plain.logits.argmax(-1), changed.logits.argmax(-1)], axis=1)  # shape: [B, 2]
    rows: list[int] = np.flatnonzero(begins[:, 0] != begins[:, 1]).tolist()
    places = [(row, *cell) for row in rows for cell in _cells(len(prompts[row]), layers, width)]

    def patched(into: Streams, donor: Streams, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        difference = np.full((len(prompts), len(layers), width + 1), np.nan)
        reached = np.zeros(difference.shape, dtype=bool)
        cells = [Cell(row, layers[m], tokens) for row, m, _, tokens in places]
        first = patcher.patched(into, donor, cells, begins)
        for n, (row, m, column, _) in enumerate(places):
            difference[row, m, column] = first.logits[n, 0] - first.logits[n, 1]
            reached[row, m, column] = first.top[n] == begins[row, wanted]
        return difference[rows], reached[rows]

    def lens(streams: Streams) -> np.ndarray:
        read = [patcher.lens(streams, layer, begins).logits for layer in range(patcher.layers)]
        return np.stack([logits[rows, 0] - logits[rows, 1] for logits in read], axis=1)

    def difference(streams: Streams) -> np.ndarray:
        return np.asarray(streams.logits[rows, begins[rows, 0]] - streams.logits[rows, begins[rows, 1]])

    restored, back = patched(changed, plain, 0)
    inserted, gone = patched(plain, changed, 1)
    return _Part(
        tuple(rows), begins[rows], difference(plain), difference(changed), restored, inserted, back, gone,
        lens(plain), lens(changed),
    )  # fmt: skip


def _cells(length: int, layers: Sequence[int], width: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Index of the layer, column, and tokens of every cell of a prompt of `length` tokens."""
    for m in range(len(layers)):
        yield from ((m, token, (token,)) for token in range(length))
        yield m, width, tuple(range(length - 1))


def _first_touched(engine: Engine, routing: Sequence[Intervention]) -> int:
    """The first decoder layer that an intervention touches."""
    touched = [rule.layers[0] for each in routing for rule in each.rules if rule.layers]
    if not touched:
        raise UsageError("These interventions touch no layer", "Give interventions that mask or bias a router")
    return engine.routers[min(touched)].decoder_layer
