"""How good the surrogate is, and whether what turns it turns the model (METHODS section 5: the surrogate gap)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pointsman.jobs.steer.contexts import Context, labels_under, matched_pairs
from pointsman.jobs.steer.learning import Material
from pointsman.jobs.steer.matrices import TrainedMatrix
from pointsman.jobs.steer.played import PlayedSplit
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.results import Gap, SurrogateFacts, SurrogateSeed
from pointsman.methods.mascing import circuit
from pointsman.methods.surrogate import FittedSurrogate, length_only, matched
from pointsman.routing.store import TraceStore
from pointsman.runs.bench import Bench
from pointsman.stats.rates import Rate

ALPHA = 1.0  # of the gap
GAP = 80  # contexts that it is measured on, at most


def surrogate_facts(
    surrogates: Mapping[int, FittedSurrogate], material: Material, unseen: Sequence[Context], store: TraceStore
) -> SurrogateFacts:
    """How well the surrogate knows, on held-out contexts of discovery and on matched pairs of the other splits.

    Args:
        surrogates: By seed; the first is the one in use.
        unseen: Contexts that no surrogate was trained on, of other source questions; `store` has their traces.
    """
    pairs = matched_pairs(unseen)
    groups = [c.source for c in unseen]
    seed, first = next(iter(surrogates.items()))
    turns = [[len(c.turns), int(n)] for c, n in zip(material.contexts, material.traces.lengths, strict=True)]
    on_pairs = {s: matched(f, store, pairs, groups=groups, seed=seed) if pairs else None for s, f in surrogates.items()}
    return SurrogateFacts(
        **vars(first.report),
        contexts=len(material.contexts),
        batch=first.parameters.batch,
        matched=on_pairs[seed],
        length_only=length_only(turns, material.labels, material.groups, seed),
        seeds=tuple(
            SurrogateSeed(
                s,
                f.report.accuracy,
                f.report.auroc.value,
                pair.auroc.value if (pair := on_pairs[s]) and pair.auroc else None,
            )
            for s, f in surrogates.items()
        ),
    )


def measure_gap(
    bench: Bench[SteerQuestion], matrices: Sequence[TrainedMatrix], sigma: Sequence[float], validation: PlayedSplit
) -> tuple[Gap, ...]:
    """Surrogate turned (on discovery, where it was optimised), model turned (on validation), at alpha 1."""
    contexts, rows = validation.to_turn[:GAP], []
    if not matrices:
        return ()
    clusters = {item.id: item.source for item in validation.outcome.of_scenario}
    with bench.stage("gap", "Surrogate and model", len(matrices) * len(contexts)) as steps:
        for matrix in matrices:
            phase = matrix.phase or bench.question.scenario.grid.phases[0]
            mask = matrix.mask(sigma, ALPHA, phase)
            labels = labels_under(bench, contexts, mask, f"gap/{matrix.name}", steps)
            turned = Rate.of([label == 0 for label in labels], [clusters[c.id] for c in contexts])
            rows.append(
                Gap(
                    refinement=matrix.refinement, lambda_=matrix.lambda_, alpha=ALPHA, phase=phase,
                    surrogate_turned=matrix.turned, model_turned=turned, entries=len(circuit(matrix.values)),
                    start=matrix.start, hold=matrix.hold,
                )
            )  # fmt: skip
    return tuple(rows)
