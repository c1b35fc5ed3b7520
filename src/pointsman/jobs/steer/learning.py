"""How masks are learnt, stage by stage: conditional ones through the model; constant ones on a surrogate, on policy,
and through the model (METHODS sections 5 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pointsman.data.objective import Objective
from pointsman.engine.abilities import that_learns
from pointsman.engine.learning import Lesson
from pointsman.jobs.steer.candidates import Screen
from pointsman.jobs.steer.contexts import Context, answers_under
from pointsman.jobs.steer.lessons import Fork, Lessons
from pointsman.jobs.steer.limits import point
from pointsman.jobs.steer.maps import TrainedMaps
from pointsman.jobs.steer.matrices import TrainedMatrix, mask_of, norm1
from pointsman.jobs.steer.plan import Start, Steer
from pointsman.jobs.steer.played import PlayedSplit, Refusals
from pointsman.jobs.steer.question import SteerQuestion
from pointsman.jobs.steer.traces import collect_traces, open_traces, write_traces
from pointsman.methods.conditional import Conditional
from pointsman.methods.mascing import Matrix, SteeringMatrix
from pointsman.methods.surrogate import FittedSurrogate, Surrogate
from pointsman.methods.through_model import ThroughModel
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.store import TraceStore, discard_if_damaged
from pointsman.runs.bench import Bench
from pointsman.runs.folder import sha256_of


@dataclass(frozen=True)
class Material:
    """What masks are learnt from: contexts of the discovery split.

    Attributes:
        contexts: Labelled, in the order of the traces. Shape: [N].
        store: Their traces; None where no surrogate is trained.
        sigma: Standard deviation of each layer's logits over real tokens; empty without traces. Shape: [L].
        forks: Of the contexts of label 1: the wanted answer, and the one that was given.
        held: Groups of contexts with the unsteered answers that should not move.
        guarded: Contexts of label 1 that must keep their verdict: the other restricted categories (objective allow).
    """

    contexts: tuple[Context, ...]
    store: TraceStore | None
    sigma: tuple[float, ...]
    forks: tuple[Fork, ...]
    held: Mapping[str, tuple[Lesson, ...]]
    guarded: tuple[int, ...]

    @property
    def traces(self) -> TraceStore:
        """The traces."""
        assert self.store is not None, "these contexts were not traced"
        return self.store

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


def gather_material(
    lessons: Lessons, played: PlayedSplit, refusals: Refusals, sigma: Sequence[float] = (), *, traced: bool = True
) -> Material:
    """Make lessons of the contexts of a split, and trace them.

    Args:
        sigma: Of the discovery split; taken from the traces if empty.
        traced: Constant masks are learnt, for which traces are needed.
    """
    store = None
    if traced:
        store = found = collect_traces(lessons.bench, played.contexts, played.split)
        sigma = sigma or lessons.bench.run.remember("sigma", lambda: [float(s) for s in found.stds()])
    guarded = tuple(n for n, c in enumerate(played.contexts) if c.label == 1 and c.id in played.guarded)
    forks = lessons.forks(played.to_turn, played, refusals)
    return Material(played.contexts, store, tuple(sigma), forks, lessons.held(played), guarded)


@dataclass(frozen=True)
class Learnt:
    """What was learnt.

    Attributes:
        surrogates: By seed, the first of which is in use; empty where no constant mask is learnt.
        matrices: Of constant masks.
        maps: Conditional masks, after ever more steps.
    """

    surrogates: Mapping[int, FittedSurrogate]
    matrices: tuple[TrainedMatrix, ...]
    maps: tuple[TrainedMaps, ...]


@dataclass(frozen=True)
class Learning:
    """The learning stages of one run, for one method seed at a time.

    Attributes:
        bench: The run.
        plan: Of the run.
        material: What is learnt from.
    """

    bench: Bench[SteerQuestion]
    plan: Steer
    material: Material

    def learn(self) -> Learnt:
        """All masks that the plan and the scenario's grid ask for."""
        maps = tuple(self.conditional(self.plan.seed)) if self.plan.learns_conditional else ()
        surrogates, matrices = self._constant() if self.plan.learns_constant else ({}, [])
        return Learnt(surrogates, tuple(matrices), maps)

    def _constant(self) -> tuple[dict[int, FittedSurrogate], list[TrainedMatrix]]:
        """The surrogates of all seeds, the first of which is in use, and all matrices that the grid asks for."""
        plan, grid = self.plan, self.bench.question.scenario.grid
        first, matrices = self.on_surrogate(plan.seed)
        seeds = range(plan.seed + 1, plan.seed + plan.surrogate_seeds)
        surrogates = {plan.seed: first, **{seed: self.fit(seed) for seed in seeds}}
        every = list(matrices)
        if "on_policy" in grid.refinements:
            every += self.on_policy(plan.seed, matrices)
        if "through_model" in grid.refinements:
            phases = plan.phases_for(grid.phases)
            begin: dict[Start, TrainedMatrix | None] = {"zero": None}
            if "surrogate" in plan.through_starts:
                begin["surrogate"] = self.strongest(matrices, phases[0])
            every += [
                self.through_model(plan.seed, lambda_, hold, phase, begin[start])
                for lambda_ in plan.lambdas_for(self.objective)
                for hold in plan.holds_for(self.objective)
                for phase in phases
                for start in plan.through_starts
            ]
        return surrogates, [m for m in every if m.refinement in grid.refinements]

    @property
    def objective(self) -> Objective:
        return self.bench.question.scenario.objective

    # -- conditional masks -----------------------------------------------------------------------------------------

    def conditional(self, seed: int, *, key: str = "conditional") -> list[TrainedMaps]:
        """What is learnt after every stored unit of optimisation steps, the last one last.

        Args:
            key: Of the stage and its units.
        """
        plan, engine = self.plan, that_learns(self.bench.engine)
        method = Conditional(
            rank=plan.rank, phase=plan.conditional_phase, steps=plan.conditional_steps, hold=plan.conditional_hold,
            decay=plan.decay, threshold=plan.threshold, seed=seed,
        )  # fmt: skip
        norms = tuple(engine.router_norms())
        title, units = f"Conditional mask, seed {seed}", f"{key}/{seed}/{plan.rank}/{plan.conditional_phase}"
        with self.bench.stage(key, title, method.steps) as steps:
            return [
                TrainedMaps(
                    learnt.maps, learnt.step, plan.rank, plan.conditional_hold, plan.decay, plan.threshold,
                    plan.conditional_phase, norms, None if seed == plan.seed else seed,
                )
                for learnt in method.learn(
                    engine, [fork.wanted for fork in self.material.forks], self.material.held, key=units, steps=steps
                )
            ]  # fmt: skip

    # -- the surrogate -------------------------------------------------------------------------------------------

    def fit(self, seed: int, material: Material | None = None, name: str = "surrogate") -> FittedSurrogate:
        """Train (or read back) the surrogate of one seed; its weights are an artefact of the run."""
        material = material or self.material
        method = Surrogate(seed=seed, batch=surrogate_batch(len(material.contexts)))
        run, file, key = self.bench.run, f"{name}-{seed}.safetensors", f"{name}/{seed}"
        path, known = run.path(f"artefacts/{file}"), key in run
        with self.bench.progress.stage(f"Surrogate, seed {seed}", method.epochs) as stage:

            def compute() -> dict[str, str]:
                fit = method.fit(material.traces, material.labels, groups=material.groups, progress=stage.advance)
                run.artefact(file, fit.save)
                return {"sha256": sha256_of(path)}

            sha256 = run.remember(key, compute)["sha256"]
            if known and path.exists() and sha256_of(path) == sha256:
                stage.skip(method.epochs)
            elif known:  # its weights are lost; the same again: it is seeded
                compute()
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
        method = SteeringMatrix(lambdas=self.bench.question.scenario.grid.lambdas, init=self.plan.init, seed=seed)
        with self.bench.progress.stage(f"Steering matrices, seed {seed}", method.epochs) as stage:
            fresh = f"{name}/{seed}" not in self.bench.run

            def compute() -> list[dict[str, Any]]:
                matrices = method.learn(
                    surrogate, material.traces, material.turning, 0, material.sigma, start=start,
                    guarded=material.guarded, progress=stage.advance,
                )  # fmt: skip
                return [matrix.to_json() for matrix in matrices]

            known = self.bench.run.remember(f"{name}/{seed}", compute)
            if not fresh:
                stage.skip(method.epochs)
        return [Matrix.from_json(data) for data in known]

    def on_surrogate(self, seed: int) -> tuple[FittedSurrogate, list[TrainedMatrix]]:
        """The paper's matrices: on the surrogate alone."""
        surrogate = self.fit(seed)
        return surrogate, [TrainedMatrix.on_surrogate(m, "surrogate") for m in self.matrices(surrogate, seed)]

    # -- refinements ---------------------------------------------------------------------------------------------

    def on_policy(self, seed: int, matrices: Sequence[TrainedMatrix]) -> list[TrainedMatrix]:
        """Collect traces under the mask, label them by what the model then does, retrain, repeat.

        The surrogate of a round has seen the contexts of all rounds before it, each as the routers saw them.
        """
        engine, scenario = self.bench.engine, self.bench.question.scenario
        phase = scenario.grid.phases[0]
        first, experts = self.material.contexts, [router.experts for router in engine.routers]
        under = [c for c in first if c.kind != "affirmed"]  # which come last: the model said nothing of theirs
        rounds_seen: list[tuple[list[Context], Intervention, list[np.ndarray]]] = []
        current = self.strongest(matrices, phase).values
        for number in range(1, self.plan.rounds + 1):
            mask = mask_of(current, self.material.sigma, 1.0, phase)
            scale = 0.0 if phase == "decode" else 1.0  # traces are of prompt tokens
            shift = [scale * row * s for row, s in zip(current, self.material.sigma, strict=True)]
            with self.bench.stage("on_policy", f"On policy, round {number}, seed {seed}", 2 * len(under)) as steps:
                answers = answers_under(self.bench, under, mask, f"on_policy/{seed}/{number}", steps)
                seen = [
                    replace(c, id=f"{c.id} @{number}", label=label, response=c.response if said is None else said)
                    for c, (label, said) in zip(under, answers, strict=True)
                    if label is not None
                ]
                rounds_seen.append((seen, mask, shift))
                folder = self.bench.run.path(f"artefacts/traces-on-policy-{seed}-{number}")
                raw = self.bench.run.path(f"artefacts/traces-under-{seed}-{number}")
                for place in (folder, raw):
                    discard_if_damaged(place)
                write_traces(engine, first, folder, system=scenario.system)
                for then, routing, moved in rounds_seen:
                    write_traces(engine, then, folder, system=scenario.system, routing=routing, shift=moved)
                write_traces(engine, under, raw, system=scenario.system, routing=mask, advance=steps.advance)
            for place in (folder, raw):
                self.bench.run.note_files(f"artefacts/{place.name}")
            contexts = [*first, *(c for then, _, _ in rounds_seen for c in then)]
            known = replace(
                self.material, contexts=tuple(contexts), store=open_traces(folder, contexts, experts), guarded=()
            )
            surrogate = self.fit(seed, known, f"surrogate-on-policy-{number}")
            material = replace(self.material, contexts=tuple(under), store=open_traces(raw, under, experts))
            name = f"matrix-on-policy-{number}"
            found = self.matrices(surrogate, seed, material=material, start=current, name=name)
            matrices = [TrainedMatrix.on_surrogate(matrix, "on_policy") for matrix in found]
            current = self.strongest(matrices, phase).values
        return list(matrices)

    def through_model(
        self,
        seed: int,
        lambda_: float,
        hold: float,
        phase: Phase,
        start: TrainedMatrix | None,
        *,
        key: str = "through_model",
    ) -> TrainedMatrix:
        """Optimise S through the model, from another matrix or (None) from zero (METHODS section 5)."""
        steps = self.plan.steps_for(self.objective)
        method = ThroughModel(lambda_=lambda_, phase=phase, steps=steps, hold=hold, seed=seed)
        begin = "zero" if start is None else "surrogate"
        with self.bench.stage(key, f"Through the model from {begin} ({phase}), seed {seed}", steps) as kept:
            refined = method.learn(
                that_learns(self.bench.engine),
                [fork.wanted for fork in self.material.forks],
                self.material.held,
                self.material.sigma,
                start=None if start is None else start.values,
                key=f"{key}/{seed}/{lambda_:g}/{hold:g}/{phase}/{begin}",
                steps=kept,
            )
        return TrainedMatrix("through_model", lambda_, refined.values, phase, start=begin, hold=hold)

    def strongest(self, matrices: Sequence[TrainedMatrix], phase: Phase) -> TrainedMatrix:
        """The matrix that turns most discovery contexts of the model itself at alpha = 1; ties to the smaller norm."""
        screen = Screen(self.material.forks, {})

        def turned(matrix: TrainedMatrix) -> float:
            mask = matrix.mask(self.material.sigma, 1.0, phase)
            key = f"discovery/{matrix.key}/{phase}"
            return point(screen.rates(self.bench.engine, mask, key=key, steps=steps, base=None)[0]["gain"])

        with self.bench.stage("screen", "Which matrix turns the model", len(matrices)) as steps:
            ranked = [(-turned(matrix), norm1(matrix.values), n) for n, matrix in enumerate(matrices)]
        return matrices[min(ranked)[2]]


def surrogate_batch(contexts: int) -> int:
    """The paper's batch of 512, smaller where an epoch would have fewer than 16 steps."""
    return max(16, min(Surrogate().batch, contexts // 16))
