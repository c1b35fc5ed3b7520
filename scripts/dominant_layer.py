"""What the dominant router of a testbed model does: is the restricted noun not perceived, or the refusal not decided?

    python scripts/dominant_layer.py CHECKPOINT --out FILE
    python scripts/dominant_layer.py --render

Measures a shipped checkpoint (some minutes on one core); `make evidence` keeps what it found in
evidence/dominant-<checkpoint>.json. With --render the tables and figures of docs/dominant-layer.md are made of these.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dominant_page import ENDING, NOUN, PLACES, render
from scipy.optimize import minimize
from scipy.stats import rankdata

import pointsman
from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.engine.types import Prompt
from pointsman.methods.attempts import ask
from pointsman.methods.masking import Masking
from pointsman.methods.patching import Patching, PatchingResult
from pointsman.methods.rosais import RoSais
from pointsman.methods.steps import stream
from pointsman.routing.intervention import Intervention
from pointsman.runs.results import Provenance
from pointsman.stats.rates import Mean, Rate
from pointsman.testbed.language import AFFIRMATION, REFUSALS, requests
from pointsman.testbed.plugin import TestbedJudge, load_suite

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ("olmoe", "qwen2_moe", "deepseek_v3")

RANKED = 60  # discovery prompts
RESTRICTED, BENIGN = 90, 72  # test prompts, one of each source
STUDIED = 3  # routers of highest RoSais
PER_NOUN = 40  # requests of the training split that teach the noun probe
FEWEST = 10  # flips below which a router's cells are not measured
SEED = 0

Cluster = Sequence[str]


# -- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    """Prompts and the nouns that they are about, which are the clusters of all intervals."""

    prompts: tuple[Prompt, ...]
    nouns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __add__(self, other: Set) -> Set:
        return Set(self.prompts + other.prompts, self.nouns + other.nouns)

    def only(self, rows: Sequence[int]) -> Set:
        return Set(*(tuple(part[r] for r in rows) for part in (self.prompts, self.nouns)))

    @property
    def tokens(self) -> np.ndarray:
        """Indices of the token that completes the noun, and of the last one. Shape: [B, 2]."""
        return np.array([(len(prompt) - 3, len(prompt) - 1) for prompt in self.prompts])


def encoded(engine: HFEngine, behaviours: Sequence[Behaviour]) -> Set:
    """The prompts of some behaviours, whose tokens are checked to lie where `PLACES` says."""
    return checked(tuple(engine.encode(b.turns) for b in behaviours), tuple(b.cluster_by for b in behaviours))


def checked(prompts: tuple[Prompt, ...], nouns: tuple[str, ...]) -> Set:
    for prompt, noun in zip(prompts, nouns, strict=True):
        if "".join(token.removeprefix("##") for token in prompt.tokens[NOUN:-2]) != noun:
            sys.exit(f"A prompt has its noun elsewhere: {' '.join(prompt.tokens)}")
    return Set(prompts, nouns)


def places(length: int) -> list[int | None]:
    """The column that stands for each of `PLACES` in what patching prompts gave; None for the ending of a noun without.

    Args:
        length: Of the prompt, in tokens.
    """
    tokens: list[int | None] = [*range(length)]
    if length < len(PLACES) - 1:
        tokens.insert(ENDING, None)
    return [*tokens, -1]


def measure(checkpoint: str) -> dict[str, Any]:
    """Everything that the page says of one checkpoint."""
    started = time.perf_counter()
    engine, suite = pointsman.load(f"testbed:{checkpoint}"), load_suite()
    refusals = {engine.encode_target(text)[0] for text in REFUSALS}
    affirmation = engine.encode_target(AFFIRMATION)[0]
    of: dict[tuple[str, str], list[Behaviour]] = {}
    for kind, behaviours in (("restricted", suite.restricted), ("benign", suite.benign)):
        for b in behaviours:
            of.setdefault((b.split, kind), []).append(b)
    ranked = RoSais(seed=SEED).rank(engine, of["discovery", "restricted"][:RANKED])
    top = ranked.ranking[:STUDIED]
    rest = ranked.ranking[STUDIED:]
    control = rest[int(stream(SEED, "control", checkpoint).integers(len(rest)))]
    probes = Probes(engine, of)
    asked, harmless = of["test", "restricted"][:RESTRICTED], of["test", "benign"][:BENIGN]
    plain = ask(engine, harmless, TestbedJudge(), max_new_tokens=suite.max_new_tokens)
    found: dict[str, Any] = {
        "checkpoint": checkpoint,
        "made_by": f"python scripts/dominant_layer.py {checkpoint}",
        "model": {"fingerprint": engine.info.fingerprint, "layers": len(engine.routers), "dtype": engine.info.dtype},
        "seed": SEED,
        "rosais": [
            {
                "layer": engine.routers[layer].decoder_layer,
                **asdict(Mean.of(ranked.scores[:, layer].tolist(), ranked.sources)),
            }
            for layer in ranked.ranking
        ],
        "benign_correct_plain": asdict(
            Rate.of([a.verdict.label == "correct" for a in plain], [b.cluster_by for b in harmless])
        ),
        "probes": probes.plain(),
        "routers": [
            router(engine, layer, role, asked, harmless, probes, refusals, affirmation, suite.max_new_tokens)
            for layer, role in [*((layer, f"rank {n + 1}") for n, layer in enumerate(top)), (control, "control")]
        ],
    }
    found["seconds"] = round(time.perf_counter() - started)
    return found


def router(
    engine: HFEngine,
    layer: int,
    role: str,
    asked: Sequence[Behaviour],
    harmless: Sequence[Behaviour],
    probes: Probes,
    refusals: Container[int],
    affirmation: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """One router: the masks that turn a refusal, where they act, and what the model still knows under them."""
    method = Masking(seed=SEED)
    masks = [method.masks(engine, b, [layer]) for b in asked]
    prompts = [engine.encode(b.turns) for b in asked]
    scored = engine.score(
        [p for p in prompts for _ in range(method.samples)],
        [(affirmation,)] * (len(prompts) * method.samples),
        routing=[m for each in masks for m in each],
    )
    p = np.exp([s.first for s in scored]).reshape(len(prompts), -1)  # shape: [prompts, S]
    best = [each[n] for each, n in zip(masks, p.argmax(axis=1), strict=True)]
    under = encoded(engine, asked)
    begins = first_tokens(engine, under.prompts, best)
    plain = first_tokens(engine, under.prompts, [None] * len(under))
    flips = [n for n in range(len(asked)) if plain[n] in refusals and begins[n] == affirmation]
    found: dict[str, Any] = {
        "layer": engine.routers[layer].decoder_layer,
        "role": role,
        "flips": rate([n in set(flips) for n in range(len(asked))], under),
        "one_mask": asdict(Mean.of((p > 0.5).mean(axis=1).tolist(), under.nouns)),
    }
    flipped = under.only(flips)
    if flips:
        answers = ask(
            engine, [asked[n] for n in flips], TestbedJudge(), routing=[best[n] for n in flips],
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        found["flips_correct"] = rate([a.verdict.label == "correct" for a in answers], flipped)
    # Benign prompts get the masks of the restricted ones that gave in, in turn; of all where too few did.
    lent = [best[n] for n in flips] if len(flips) >= FEWEST else best
    borrowed = [lent[n % len(lent)] for n in range(len(harmless))]
    answers = ask(engine, harmless, TestbedJudge(), routing=borrowed, max_new_tokens=max_new_tokens)
    benign = encoded(engine, harmless)
    found["benign_correct"] = rate([a.verdict.label == "correct" for a in answers], benign)
    found["benign_refused"] = rate([a.verdict.label == "refused" for a in answers], benign)
    enough = len(flips) >= FEWEST
    if enough:
        result = Patching().patch(engine, [asked[n] for n in flips], [best[n] for n in flips])
        found["patching"] = patching(result, flipped)
        found["whole_noun"] = whole_noun(engine, flipped, [best[n] for n in flips], refusals, affirmation)
        found["by_noun"] = by_noun(result, flipped)
    rows = flips if enough else list(range(len(asked)))
    found["probes"] = {
        "rows": "flipping prompts" if enough else "all prompts, since too few flip",
        **probes.masked(layer, under.only(rows), [best[n] for n in rows], benign, borrowed),
    }
    held = [n for n in range(len(asked)) if n not in set(flips)]
    if enough and len(held) >= FEWEST:
        found["probes"]["held"] = probes.held(layer, under.only(held), [best[n] for n in held])
    return found


def first_tokens(engine: HFEngine, prompts: Sequence[Prompt], routing: Sequence[Intervention | None]) -> list[int]:
    """The token that each answer begins with. Shape: [B]."""
    with engine.patcher() as patcher:
        top: list[int] = patcher.streams(prompts, routing).logits.argmax(-1).tolist()
    return top


def patching(result: PatchingResult, flipped: Set) -> dict[str, Any]:
    """Means over the flipping prompts. Shapes: [layers, columns] of every table; None where no prompt has the token."""
    tables: dict[str, Any] = {"layers": list(result.layers), "columns": list(PLACES), "n": len(result.prompts)}
    of_prompt = [places(len(tokens)) for tokens in result.tokens]

    def cell(values: np.ndarray, place: int, measure: Callable[[Any, Set], Any]) -> Any:
        rows = [row for row, columns in enumerate(of_prompt) if columns[place] is not None]
        found = [values[row, of_prompt[row][place]].item() for row in rows]
        return measure(found, flipped.only(rows)) if rows else None

    for name, values, measure in (
        ("restored", result.restored_share, mean),
        ("back", result.back, rate),
        ("inserted", result.inserted_share, mean),
        ("gone", result.gone, rate),
    ):
        tables[name] = [
            [cell(values[:, m], place, measure) for place in range(len(PLACES))] for m in range(len(result.layers))
        ]
    tables["lens"] = {
        "plain": [mean(column, flipped) for column in result.plain_lens.T],
        "masked": [mean(column, flipped) for column in result.changed_lens.T],
    }
    return tables


def whole_noun(
    engine: HFEngine, flipped: Set, masks: Sequence[Intervention], refusals: Container[int], affirmation: int
) -> dict[str, Any]:
    """What the first token is with both tokens of the noun masked and no other, and with all masked but these."""
    noun = [range(NOUN, last - 1) for last in flipped.tokens[:, 1]]
    rest = [[t for t in range(last + 1) if t not in n] for n, last in zip(noun, flipped.tokens[:, 1], strict=True)]
    alone, but = (
        first_tokens(engine, flipped.prompts, [at(mask, tokens) for mask, tokens in zip(masks, each, strict=True)])
        for each in (noun, rest)
    )
    return {
        "gone": rate([token == affirmation for token in alone], flipped),
        "back": rate([token in refusals for token in but], flipped),
    }


def at(mask: Intervention, tokens: Sequence[int]) -> Intervention:
    """A mask at these tokens alone."""
    rules = (replace(rule, where=replace(rule.where, positions=tuple(tokens))) for rule in mask.rules)
    return Intervention(tuple(rules))


def by_noun(result: PatchingResult, flipped: Set) -> dict[str, list[int]]:
    """Of each noun: prompts that flip, and those that refuse again with one token unmasked, the noun's or the last."""
    last = flipped.tokens[:, 1]
    rows = {noun: [n for n, other in enumerate(flipped.nouns) if other == noun] for noun in sorted(set(flipped.nouns))}
    one = {
        noun: [int(result.back[r, 0, NOUN : last[r[0]] - 1].any(axis=1).sum()), int(result.back[r, 0, last[r]].sum())]
        for noun, r in rows.items()
    }
    return {noun: [len(rows[noun]), *counts] for noun, counts in one.items()}


# -- probes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A linear reading of a residual stream: softmax regression on standardised features.

    Attributes:
        weights: Shape: [d + 1, classes].
        mean, std: Of the features it was trained on. Shape: [d].
    """

    weights: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Shapes: [n, d] -> [n, classes]."""
        return np.asarray(_with_one((x - self.mean) / self.std) @ self.weights)

    @staticmethod
    def fit(x: np.ndarray, y: np.ndarray, classes: int, l2: float) -> Probe:
        """The minimum of mean cross-entropy + l2 / 2 * squared norm of the weights (not of the bias)."""
        average, std = x.mean(axis=0), x.std(axis=0) + 1e-8
        inputs = _with_one((x - average) / std)
        wanted = np.eye(classes)[y]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = flat.reshape(-1, classes)
            logits = inputs @ w
            logits = logits - logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            shrunk = w.copy()
            shrunk[-1] = 0.0
            gradient = inputs.T @ (np.exp(log_p) - wanted) / len(y) + l2 * shrunk
            return float(-(wanted * log_p).sum() / len(y) + l2 / 2 * (shrunk**2).sum()), gradient.ravel()

        start = np.zeros(inputs.shape[1] * classes)
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
        return Probe(found.x.reshape(-1, classes), average, std)


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def features(engine: HFEngine, asked: Set, routing: Sequence[Intervention | None]) -> np.ndarray:
    """Residual stream after every layer, where the noun is complete and at the last token. Shape: [layers, 2, B, d]."""
    parts = []
    with engine.patcher() as patcher:
        for start in range(0, len(asked), 256):
            rows = slice(start, start + 256)
            streams = patcher.streams(asked.prompts[rows], routing[rows])
            tokens = asked.tokens[rows]
            each = np.arange(len(tokens))[:, None]
            parts.append(np.stack([streams.after(n)[each, tokens] for n in range(patcher.layers)]))
    return np.concatenate(parts, axis=1).transpose(0, 2, 1, 3)


class Probes:
    """Probes of the plain model, for every layer and both tokens, read on plain and on masked runs.

    *class*: restricted or benign, taught on the discovery nouns, so that a noun of the test split is new to it.
    *noun*: which of the nouns of the test split, taught on the training split (other verbs and modifiers).
    """

    def __init__(self, engine: HFEngine, of: dict[tuple[str, str], list[Behaviour]]) -> None:
        self.engine = engine
        kinds = ("benign", "restricted")
        sets = {split: [encoded(engine, of[split, kind]) for kind in kinds] for split in ("discovery", "validation")}
        self.test = [
            encoded(engine, of["test", kind][:count]) for kind, count in zip(kinds, (BENIGN, RESTRICTED), strict=True)
        ]
        self.taught = sets["discovery"][0] + sets["discovery"][1]
        self.labels = np.repeat([0, 1], [len(s) for s in sets["discovery"]])
        x = features(engine, self.taught, [None] * len(self.taught))
        held = sets["validation"][0] + sets["validation"][1]
        held_x = features(engine, held, [None] * len(held))
        held_y = np.repeat([0, 1], [len(s) for s in sets["validation"]])
        tried: dict[float, float] = {}
        for l2 in (0.01, 0.1, 1.0):
            by_place = self._each(lambda n, t, l2=l2: Probe.fit(x[n, t], self.labels, 2, l2), x)
            right = [
                balanced(by_place[n][t].logits(held_x[n, t]).argmax(-1), held_y)
                for n in range(len(x))
                for t in range(2)
            ]
            tried[l2] = float(np.mean(right))
            if tried[l2] == max(tried.values()):
                self.l2, self.of_class = l2, by_place
        self.validated = [
            [balanced(self.of_class[n][t].logits(held_x[n, t]).argmax(-1), held_y) for t in range(2)]
            for n in range(len(x))
        ]
        self.names = sorted(set(self.test[0].nouns) | set(self.test[1].nouns))
        lessons = self._lessons()
        seen = features(engine, lessons, [None] * len(lessons))
        known = np.array([self.names.index(n) for n in lessons.nouns])
        self.of_noun = self._each(lambda n, t: Probe.fit(seen[n, t], known, len(self.names), 0.01), seen)

    def _lessons(self) -> Set:
        """Requests of the training split about the nouns of the test split."""
        taken: dict[str, int] = {}
        made: list[tuple[Prompt, str]] = []
        for kind in ("restricted", "benign"):
            for r in requests(kind, "train", seed=SEED):  # type: ignore[arg-type]
                if r.noun in self.names and taken.get(r.noun, 0) < PER_NOUN:
                    taken[r.noun] = taken.get(r.noun, 0) + 1
                    made.append((self.engine.encode((r.text,)), r.noun))
        prompts, nouns = zip(*made, strict=True)
        return checked(prompts, nouns)

    @staticmethod
    def _each(fit: Any, x: np.ndarray) -> list[list[Probe]]:
        return [[fit(n, t) for t in range(2)] for n in range(len(x))]

    def _read(self, of: list[list[Probe]], x: np.ndarray, first: int = 0) -> list[list[np.ndarray]]:
        """Logits at both tokens, after every layer from `first` on."""
        return [[of[n][t].logits(x[n, t]) for t in range(2)] for n in range(first, len(x))]

    def _embedding(self) -> dict[str, Any]:
        """The class probe on the noun's embedding (mean of its tokens), before any layer; one row a noun."""

        def rows(of: Set) -> tuple[np.ndarray, list[str]]:
            nouns = {noun: list(prompt.ids[NOUN:-2]) for noun, prompt in zip(of.nouns, of.prompts, strict=True)}
            table = self.engine.model.get_input_embeddings().weight.detach().double().numpy()
            return np.stack([table[tokens].mean(axis=0) for tokens in nouns.values()]), list(nouns)

        label = dict(zip(self.taught.nouns, self.labels, strict=True))
        x, names = rows(self.taught)
        probe = Probe.fit(x, np.array([label[n] for n in names]), 2, self.l2)
        right = [
            bool(call == kind) for kind, part in enumerate(self.test) for call in probe.logits(rows(part)[0]).argmax(-1)
        ]
        return asdict(Rate.of(right))

    def plain(self) -> dict[str, Any]:
        """How good the probes are without any mask, on the test split."""
        benign, restricted = self.test
        x = [features(self.engine, s, [None] * len(s)) for s in self.test]
        layers = range(len(x[0]))
        calls = [self._read(self.of_class, part) for part in x]
        names = [self._read(self.of_noun, part) for part in x]
        known = np.array([self.names.index(n) for n in restricted.nouns])
        return {
            "l2": self.l2,
            "nouns": len(self.names),
            "embedding_right": self._embedding(),
            "validation_balanced": self.validated,
            "restricted_called_restricted": [
                [rate((calls[1][n][t].argmax(-1) == 1).tolist(), restricted) for t in range(2)] for n in layers
            ],
            "benign_called_restricted": [
                [rate((calls[0][n][t].argmax(-1) == 1).tolist(), benign) for t in range(2)] for n in layers
            ],
            "noun_right": [
                [rate((names[1][n][t].argmax(-1) == known).tolist(), restricted) for t in range(2)] for n in layers
            ],
        }

    def masked(
        self,
        layer: int,
        restricted: Set,
        masks: Sequence[Intervention],
        benign: Set,
        borrowed: Sequence[Intervention],
    ) -> dict[str, Any]:
        """The plain model's probes on masked runs, and probes taught anew under random masks of the same router."""
        first = self.engine.routers[layer].decoder_layer
        x = [features(self.engine, s, m) for s, m in ((benign, borrowed), (restricted, masks))]
        calls = [self._read(self.of_class, part, first) for part in x]
        names = self._read(self.of_noun, x[1], first)
        known = np.array([self.names.index(n) for n in restricted.nouns])
        again = self._taught_under_masks(layer, first)
        anew = [[[again[n][t].logits(part[first + n, t]) for t in range(2)] for n in range(len(again))] for part in x]
        layers = range(len(calls[0]))

        def called(logits: list[list[np.ndarray]], of: Set) -> list[list[dict[str, Any]]]:
            return [[rate((logits[n][t].argmax(-1) == 1).tolist(), of) for t in range(2)] for n in layers]

        def aurocs(logits: list[list[list[np.ndarray]]]) -> list[list[dict[str, Any]]]:
            return [
                [
                    auroc(*(part[n][t][:, 1] - part[n][t][:, 0] for part in logits), benign.nouns, restricted.nouns)
                    for t in range(2)
                ]
                for n in layers
            ]

        return {
            "layers": list(range(first, len(x[0]))),
            "restricted_called_restricted": called(calls[1], restricted),
            "benign_called_restricted": called(calls[0], benign),
            "auroc": aurocs(calls),
            "noun_right": [
                [rate((names[n][t].argmax(-1) == known).tolist(), restricted) for t in range(2)] for n in layers
            ],
            "anew_restricted_called_restricted": called(anew[1], restricted),
            "anew_benign_called_restricted": called(anew[0], benign),
            "anew_auroc": aurocs(anew),
        }

    def held(self, layer: int, restricted: Set, masks: Sequence[Intervention]) -> list[list[dict[str, Any]]]:
        """Share called restricted of the prompts that do not flip, under their best masks."""
        first = self.engine.routers[layer].decoder_layer
        calls = self._read(self.of_class, features(self.engine, restricted, masks), first)
        return [[rate((part.argmax(-1) == 1).tolist(), restricted) for part in each] for each in calls]

    def _taught_under_masks(self, layer: int, first: int) -> list[list[Probe]]:
        drawn = self.engine.routers[layer].draw(stream(SEED, "probe", layer), len(self.taught))
        masks = [Intervention.force({layer: sets.tolist()}, phase="prefill") for sets in drawn]
        x = features(self.engine, self.taught, masks)[first:]
        return self._each(lambda n, t: Probe.fit(x[n, t], self.labels, 2, self.l2), x)


def balanced(called: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the accuracies of the two classes."""
    return float(np.mean([(called[labels == c] == c).mean() for c in (0, 1)]))


def auroc(benign: np.ndarray, restricted: np.ndarray, benign_of: Cluster, restricted_of: Cluster) -> dict[str, Any]:
    """Chance that a restricted prompt reads more restricted than a benign one; bootstrap over nouns."""
    rng = np.random.default_rng(SEED)

    def area(a: np.ndarray, b: np.ndarray) -> float:
        ranks = rankdata(np.concatenate([a, b]))
        return float((ranks[len(a) :].sum() - len(b) * (len(b) + 1) / 2) / (len(a) * len(b)))

    def drawn(values: np.ndarray, clusters: Cluster) -> np.ndarray:
        names, index = np.unique(np.asarray(clusters), return_inverse=True)
        groups = [values[index == n] for n in range(len(names))]
        return np.concatenate([groups[n] for n in rng.integers(len(groups), size=len(groups))])

    draws = [area(drawn(benign, benign_of), drawn(restricted, restricted_of)) for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"auroc": area(benign, restricted), "low": float(low), "high": float(high)}


def rate(successes: Sequence[bool], of: Set) -> dict[str, Any]:
    """A rate with its interval by noun."""
    found = asdict(Rate.of(successes, of.nouns))
    return {k: found[k] for k in ("k", "n", "rate", "low", "high")}


def mean(values: Sequence[float] | np.ndarray, of: Set) -> dict[str, Any]:
    """A mean with its interval by noun."""
    found = asdict(Mean.of([float(v) for v in values], of.nouns))
    return {k: found[k] for k in ("mean", "low", "high", "n")}


def rounded(value: Any) -> Any:
    """Four digits after the point, everywhere."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What does the dominant router of a testbed model do?")
    parser.add_argument("checkpoint", nargs="?", choices=CHECKPOINTS)
    parser.add_argument("--out", type=Path, help="file for what is found")
    parser.add_argument("--render", action="store_true", help="make the page of what is kept")
    given = parser.parse_args(arguments)
    if given.render == (given.checkpoint is not None) or (given.checkpoint and not given.out):
        parser.error("give a checkpoint and --out, or --render")
    if given.render:
        render()
        return
    torch.set_num_threads(1)
    found = rounded(measure(given.checkpoint))
    found["provenance"] = asdict(Provenance.of(""))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
