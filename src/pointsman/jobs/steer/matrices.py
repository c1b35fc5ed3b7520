"""How steering matrices are found, stage by stage: surrogate, on policy, through the model (METHODS section 5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pointsman.engine.abilities import that_learns
from pointsman.engine.learning import Lesson
from pointsman.engine.types import Engine
from pointsman.jobs.audit.work import Bench
from pointsman.jobs.steer.candidates import Fork, Screen
from pointsman.jobs.steer.contexts import Context, matched_pairs
from pointsman.jobs.steer.traces import open_traces, write_traces
from pointsman.methods.mascing import Matrix, SteeringMatrix
from pointsman.methods.steps import Steps
from pointsman.methods.surrogate import FittedSurrogate, Surrogate, length_only, matched
from pointsman.methods.through_model import Refined, ThroughModel
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.store import TraceStore, discard_if_damaged
from pointsman.runs.folder import sha256_of


@dataclass(frozen=True)
class Found:
    """A steering matrix and where it comes from.

    Attributes:
        refinement: ``surrogate``, ``on_policy`` or ``through_model``.
        lambda_: Weight of norm1(S).
        values: S after the cut, in units of sigma. Shapes: [E_l].
        phase: That it was learnt for; None: any, since the surrogate reads prompts alone.
        turned: Share of the discovery contexts whose surrogate verdict is turned; None if no surrogate was asked.
        start: What an optimisation through the model started from.
        hold: Weight of what should stay as it is, in an optimisation through the model.
        seed: Of the method, where it is not the run's own.
    """

    refinement: str
    lambda_: float
    values: tuple[np.ndarray, ...]
    phase: Phase | None = None
    turned: float | None = None
    start: str | None = None
    hold: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Short and unique among the matrices of one seed."""
        phase = f"/{self.phase}" if self.phase else ""
        start = f"/from-{self.start}" if self.start else ""
        hold = f"/hold={self.hold:g}" if self.hold is not None else ""
        seed = f"/seed={self.seed}" if self.seed is not None else ""
        return f"{self.refinement}/lambda={self.lambda_:g}{hold}{start}{seed}{phase}"

    def routing(self, sigma: Sequence[float], alpha: float, phase: Phase) -> Intervention:
        """``alpha * sigma_l * S[l]`` added to the raw logits; nothing, if S is zero."""
        return mask_of(self.values, sigma, alpha, phase)


def mask_of(values: Sequence[np.ndarray], sigma: Sequence[float], alpha: float, phase: Phase) -> Intervention:
    """``alpha * sigma_l * S[l]`` added to the raw logits; no rule at all, if S is zero."""
    vectors = {n: s * row.astype(np.float64) for n, (row, s) in enumerate(zip(values, sigma, strict=True)) if row.any()}
    return Intervention.bias(vectors, alpha=alpha, phase=phase) if vectors else Intervention()


@dataclass(frozen=True)
class Material:
    """What matrices are learnt from: contexts of the discovery split, traced.

    Attributes:
        contexts: Labelled, in the order of the traces. Shape: [N].
        store: Their traces.
        sigma: Standard deviation of each layer's logits over real tokens. Shape: [L].
        forks: Of the contexts of label 1: the wanted answer, and the one that was given.
        held: Groups of contexts with the unsteered answers that should not move.
        guarded: Contexts of label 1 that must keep their verdict: the other restricted categories (objective allow).
    """

    contexts: tuple[Context, ...]
    store: TraceStore
    sigma: tuple[float, ...]
    forks: tuple[Fork, ...]
    held: Mapping[str, tuple[Lesson, ...]]
    guarded: tuple[int, ...]

    @property
    def labels(self) -> list[int]:
        return [c.label for c in self.contexts]

    @property
    def groups(self) -> list[str]:
        return [c.source for c in self.contexts]

    @property
    def turning(self) -> list[int]:
        """Numbers of the contexts that shall be turned."""
        kept = set(self.guarded)
        return [n for n, c in enumerate(self.contexts) if c.label == 1 and n not in kept]


class Learning:
    """The learning stages of one run, for one method seed at a time.

    Args:
        bench: Where units are remembered.
        engine: The model.
        material: Of the discovery split.
        lambdas: Of the matrices on the surrogate.
        system: Prompt of every request.
        again: Labels of what the model says to contexts under a mask; None for garbage.
    """

    def __init__(
        self,
        bench: Bench,
        engine: Engine,
        material: Material,
        lambdas: tuple[float, ...],
        *,
        system: str | None,
        again: Callable[[Sequence[Context], Intervention, str, Steps], list[int | None]],
    ) -> None:
        self.bench = bench
        self.engine = engine
        self.material = material
        self.lambdas = lambdas
        self._system = system
        self._again = again

    # -- the surrogate -------------------------------------------------------------------------------------------

    def fit(self, seed: int, material: Material | None = None, name: str = "surrogate") -> FittedSurrogate:
        """Train (or read back) the surrogate of one seed; its weights are an artefact of the run."""
        material = material or self.material
        method = Surrogate(seed=seed, batch=surrogate_batch(len(material.contexts)))
        file = f"{name}-{seed}.safetensors"
        key = f"{name}/{seed}"
        run = self.bench.run
        path = run.path(f"artefacts/{file}")
        fitted: list[FittedSurrogate] = []

        def fit() -> FittedSurrogate:
            return method.fit(material.store, material.labels, groups=material.groups, progress=stage.advance)

        with self.bench.progress.stage(f"Surrogate, seed {seed}", method.epochs) as stage:

            def compute() -> dict[str, str]:
                fitted.append(fit())
                run.artefact(file, fitted[0].save)
                return {"sha256": sha256_of(path)}

            known = run.remember(key, compute)
            if fitted:
                return fitted[0]
            stage.skip(method.epochs)
        if not path.exists() or sha256_of(path) != known["sha256"]:  # the same again: it is seeded
            with self.bench.progress.stage(f"Surrogate, seed {seed}", method.epochs) as stage:
                run.artefact(file, fit().save)
        return FittedSurrogate.load(path)

    def matrices(
        self,
        surrogate: FittedSurrogate,
        seed: int,
        *,
        material: Material | None = None,
        start: Sequence[np.ndarray] | None = None,
        name: str = "matrix",
    ) -> list[Matrix]:
        """One matrix per lambda (METHODS section 5.4)."""
        material = material or self.material
        method = SteeringMatrix(lambdas=self.lambdas, seed=seed)
        with self.bench.progress.stage(f"Steering matrices, seed {seed}", method.epochs) as stage:
            fresh = f"{name}/{seed}" not in self.bench.run

            def compute() -> list[dict[str, Any]]:
                learnt = method.learn(
                    surrogate, material.store, material.turning, 0, material.sigma, start=start,
                    guarded=material.guarded, progress=stage.advance,
                )  # fmt: skip
                return [matrix.to_json() for matrix in learnt]

            found = self.bench.run.remember(f"{name}/{seed}", compute)
            if not fresh:
                stage.skip(method.epochs)
        return [Matrix.from_json(data) for data in found]

    def on_surrogate(self, seed: int) -> tuple[FittedSurrogate, list[Found]]:
        """The paper's matrices: on the surrogate alone."""
        surrogate = self.fit(seed)
        return surrogate, [_found(m, "surrogate") for m in self.matrices(surrogate, seed)]

    # -- refinements ---------------------------------------------------------------------------------------------

    def on_policy(self, seed: int, founds: Sequence[Found], phase: Phase, rounds: int) -> list[Found]:
        """Collect traces under the mask, label them by what the model then does, retrain, repeat.

        The surrogate of a round has seen the contexts of all rounds before it, each as the routers saw them.
        """
        begin = self.strongest(founds, phase)
        under, experts = list(self.material.contexts), [router.experts for router in self.engine.routers]
        rounds_seen: list[tuple[list[Context], Intervention, list[np.ndarray]]] = []
        current = begin.values
        matrices: list[Matrix] = []
        for number in range(1, rounds + 1):
            mask = mask_of(current, self.material.sigma, 1.0, phase)
            scale = 0.0 if phase == "decode" else 1.0  # traces are of prompt tokens
            shift = [scale * row * s for row, s in zip(current, self.material.sigma, strict=True)]
            with self.bench.stage("on_policy", f"On policy, round {number}, seed {seed}", 2 * len(under)) as steps:
                labels = self._again(under, mask, f"on_policy/{seed}/{number}", steps)
                seen = [
                    replace(c, id=f"{c.id} @{number}", label=label)
                    for c, label in zip(under, labels, strict=True)
                    if label is not None
                ]
                rounds_seen.append((seen, mask, shift))
                folder = self.bench.run.path(f"artefacts/traces-on-policy-{seed}-{number}")
                raw = self.bench.run.path(f"artefacts/traces-under-{seed}-{number}")
                for place in (folder, raw):
                    discard_if_damaged(place)
                write_traces(self.engine, under, folder, system=self._system)
                for then, routing, moved in rounds_seen:
                    write_traces(self.engine, then, folder, system=self._system, routing=routing, shift=moved)
                write_traces(self.engine, under, raw, system=self._system, routing=mask, advance=steps.advance)
            for place in (folder, raw):
                self.bench.run.note_files(f"artefacts/{place.name}")
            contexts = [*under, *(c for then, _, _ in rounds_seen for c in then)]
            known = replace(
                self.material, contexts=tuple(contexts), store=open_traces(folder, contexts, experts), guarded=()
            )
            surrogate = self.fit(seed, known, f"surrogate-on-policy-{number}")
            material = replace(self.material, store=open_traces(raw, under, experts))
            matrices = self.matrices(
                surrogate, seed, material=material, start=current, name=f"matrix-on-policy-{number}"
            )
            founds = [_found(m, "on_policy") for m in matrices]
            current = self.strongest(founds, phase).values
        return [_found(m, "on_policy") for m in matrices]

    def through_model(
        self,
        seed: int,
        lambda_: float,
        hold: float,
        phase: Phase,
        steps: int,
        start: Found | None,
        *,
        key: str = "through_model",
    ) -> Found:
        """Optimise S through the model, from another matrix or (None) from zero (METHODS section 5)."""
        method = ThroughModel(lambda_=lambda_, phase=phase, steps=steps, hold=hold, seed=seed)
        begin = "zero" if start is None else "surrogate"
        with self.bench.stage(key, f"Through the model from {begin} ({phase}), seed {seed}", steps) as kept:
            refined: Refined = method.learn(
                that_learns(self.engine),
                [fork.wanted for fork in self.material.forks],
                self.material.held,
                self.material.sigma,
                start=None if start is None else start.values,
                key=f"{key}/{seed}/{lambda_:g}/{hold:g}/{phase}/{begin}",
                steps=kept,
            )
        return Found("through_model", lambda_, refined.values, phase, start=begin, hold=hold)

    def strongest(self, founds: Sequence[Found], phase: Phase) -> Found:
        """The matrix that turns most discovery contexts of the model itself at alpha = 1; ties to the smaller norm."""
        screen = Screen(self.material.forks, {})
        with self.bench.stage("screen", "Which matrix turns the model", len(founds)) as steps:
            turned = [
                screen.rates(
                    self.engine,
                    found.routing(self.material.sigma, 1.0, phase),
                    key=f"discovery/{_mark(found)}/{phase}",
                    steps=steps,
                    base=None,
                )[0]["gain"]["rate"]
                for found in founds
            ]
        norms = [float(sum(np.abs(row).sum() for row in found.values)) for found in founds]
        return founds[min(range(len(founds)), key=lambda n: (-turned[n], norms[n]))]


def surrogate_batch(contexts: int) -> int:
    """The paper's batch of 512, smaller where an epoch would have fewer than 16 steps."""
    return max(16, min(Surrogate().batch, contexts // 16))


def surrogate_section(
    surrogates: Mapping[int, FittedSurrogate],
    material: Material,
    tested: Sequence[Context],
    store: TraceStore | None,
) -> dict[str, Any]:
    """How well the surrogate knows, on held-out contexts of discovery and on matched pairs of another split.

    Args:
        surrogates: By seed; the first is the one in use.
        tested: Contexts that no surrogate was trained on, of other source questions; `store` has their traces.
    """
    pairs = matched_pairs(tested)
    groups = [c.source for c in tested]
    seed, first = next(iter(surrogates.items()))
    turns = [[len(c.turns), int(n)] for c, n in zip(material.contexts, material.store.lengths, strict=True)]
    on_pairs: dict[int, dict[str, Any]] = {}
    if store is not None and pairs:
        on_pairs = {s: asdict(matched(f, store, pairs, groups=groups, seed=seed)) for s, f in surrogates.items()}
    return {
        **asdict(first.report),
        "contexts": len(material.contexts),
        "batch": first.parameters.batch,
        "matched": on_pairs.get(seed),
        "length_only": asdict(length_only(turns, material.labels, material.groups, seed)),
        "seeds": [
            {"seed": s, "accuracy": f.report.accuracy, "auroc": f.report.auroc.value,
             "matched": on_pairs[s]["auroc"]["value"] if on_pairs else None}
            for s, f in surrogates.items()
        ],
    }  # fmt: skip


def _found(matrix: Matrix, refinement: str) -> Found:
    values = tuple(row.astype(np.float32) for row in matrix.values)
    return Found(refinement, matrix.lambda_, values, turned=matrix.turned)


def _mark(found: Found) -> str:
    """A name that two matrices share only if they are equal."""
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(row).tobytes() for row in found.values)).hexdigest()
    return f"{found.name}/{digest[:12]}"
