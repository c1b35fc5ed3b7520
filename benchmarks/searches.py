"""How fast routes are searched and routers ranked: beside the naive loops, beside raw forwards, and as sizes grow."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import naive
import numpy as np
import torch
from clock import Clock, Figure, spread
from sizes import TARGET_TOKENS, Shape, random_prompts, untrained

from pointsman.data.types import Behaviour
from pointsman.engine.hf import HFEngine
from pointsman.methods.fsour import FSour
from pointsman.methods.rosais import RoSais
from pointsman.methods.routes import Step

Say = Callable[[str], None]


@dataclass(frozen=True)
class Searches:
    """How much of F-SOUR is measured.

    Attributes:
        candidates: Candidates (N) of each search, with the ratio that is asked for (None: for information).
        together: Prompts that the fast search takes side by side.
        naive_prompts: Whole prompts that the naive loop searches, for each N.
        naive_pairs: If given, that many (token, layer) pairs of one prompt instead, and the rest extrapolated.
        alone: Whether a prompt is also searched fast by itself.
        share: The share of raw speed that is asked for, in percent.
        raw_rows: Batch sizes of which the fastest is the raw speed.
    """

    candidates: dict[int, float | None]
    together: int = 16
    naive_prompts: dict[int, int] = field(default_factory=dict)
    naive_pairs: dict[int, int] | None = None
    alone: bool = True
    share: float | None = 60.0
    raw_rows: tuple[int, ...] = (64, 256, 1024)

    def with_naive_prompts(self, count: int) -> Searches:
        """The same with so many whole prompts for every N."""
        return replace(self, naive_prompts=dict.fromkeys(self.candidates, count))


def raw_speed(engine: HFEngine, length: int, keep: int, rows: Sequence[int], clock: Clock) -> tuple[float, int]:
    """Token-layers a second of the untouched model, in the best of some batches of `length` tokens.

    Args:
        engine: Its model is called as it is, with logits at the last `keep` positions as in a search.
        length, keep: Tokens of a row, and how many of them need logits.
        rows: Batch sizes to try.

    Returns:
        The best speed, and its number of rows.
    """
    device = engine.model.get_input_embeddings().weight.device
    layers, found = engine.model.config.num_hidden_layers, []
    for count in rows:
        ids = (torch.arange(count * length, device=device).reshape(count, length) * 7 + 3) % 252

        def forward(ids: torch.Tensor = ids) -> None:
            with torch.no_grad():
                engine.model(input_ids=ids, use_cache=False, logits_to_keep=keep)

        forward()
        found.append((count * length * layers / min(clock.seconds(forward) for _ in range(3)), count))
    return max(found)


@dataclass
class _Fast:
    """A fast search of some prompts, timed."""

    seconds: float
    speed: float  # token-layers a second
    token_layers: int
    steps: list[list[Step]]
    raw: list[tuple[float, int]]  # raw speed right before and after, and its rows

    @staticmethod
    def search(
        engine: HFEngine, method: FSour, behaviours: Sequence[Behaviour], clock: Clock,
        raw: Callable[[], list[tuple[float, int]]] = list,
    ) -> _Fast:  # fmt: skip
        around = raw()
        before = engine.cost.copy()
        seconds, found = clock.timed(lambda: method.find_routes(engine, behaviours, 0))
        spent = (engine.cost - before).token_layers
        return _Fast(seconds, spent / seconds, spent, [steps for _, steps, _ in found], around + raw())

    @property
    def share(self) -> float:
        """Of raw speed, in percent: what was measured right before and after, so that other load falls on both."""
        return 100 * self.speed / statistics.mean(speed for speed, _ in self.raw)


def fsour(
    engine: HFEngine, behaviours: Sequence[Behaviour], sizes: Searches, clock: Clock, say: Say
) -> tuple[list[Figure], dict[str, Any]]:
    """F-SOUR fast : naive, and the share of raw speed that the fast search attains."""
    prompt, target = engine.encode(behaviours[0].turns), engine.encode_target(behaviours[0].target)
    length, keep = len(prompt) + len(target) - 1, len(target)
    pairs = len(prompt) * len(engine.routers)
    side_by_side = behaviours[: sizes.together]
    figures: list[Figure] = []
    shares: list[Figure] = []
    details: dict[str, Any] = {"model": engine.info.name, "prompt_tokens": len(prompt), "target_tokens": len(target)}
    _warm(engine, behaviours[:2])
    for n, asked in sizes.candidates.items():
        method = FSour(candidates=n, restarts=1, log_tau=0.0, together=sizes.together)
        say(f"F-SOUR, N = {n}: {len(side_by_side)} prompts side by side")

        def search(method: FSour = method) -> _Fast:
            return _Fast.search(
                engine, method, side_by_side, clock, lambda: [raw_speed(engine, length, keep, sizes.raw_rows, clock)]
            )

        fast = [search()]
        if sizes.naive_pairs is None:
            slow, agree, worst = _naive_prompts(engine, method, side_by_side, sizes, fast, search, clock, say)
            how = f"naive over {len(slow)} whole prompt{'s' * (len(slow) > 1)}"
            same = f"same route at {agree} of {len(slow)} prompts" + (f"; first difference: {worst}" if worst else "")
        else:
            some = min(sizes.naive_pairs[n], pairs)
            slow, agree, worst = _naive_pairs(engine, method, side_by_side[0], some, fast[0].steps[0], clock, say)
            how = f"naive EXTRAPOLATED from {len(slow)} of {pairs} (t, l) pairs"
            same = f"same set accepted at {agree} of {len(slow)} pairs"
            fast.append(search())
            slow = [seconds * pairs for seconds in slow]
        raw = [speed for one in fast for speed in one.raw]
        row = statistics.median(clock.seconds(lambda: engine.score([prompt], [target])) for _ in range(10))
        each = [one.seconds / len(side_by_side) for one in fast]
        plain = statistics.mean(slow) if sizes.naive_pairs is not None else statistics.median(slow)
        forward = plain / (pairs * (n + 1))
        figures.append(
            Figure("fsour", f"F-SOUR fast : naive, N = {n}", plain / statistics.median(each), "x", asked,
                   n=f"{len(each)} fast of {len(side_by_side)} prompts; {how}",
                   low=min(slow) / max(each), high=max(slow) / min(each), note=same)
        )  # fmt: skip
        details[f"N = {n}"] = detail = {
            "fast_seconds_a_prompt": each, "naive_seconds_a_prompt": slow, "how": how, "same": same,
            "first_difference": worst, "accepted_pairs": [len(s) for s in fast[0].steps],
            "token_layers_a_prompt": fast[0].token_layers / len(side_by_side),
            "naive_token_layers_a_prompt": naive_token_layers(len(prompt), len(target), len(engine.routers), n),
            "token_layers_a_second": [one.speed for one in fast], "raw_token_layers_a_second": [s for s, _ in raw],
            "raw_rows": [rows for _, rows in raw], "untouched_forward_of_one_row_seconds": row,
            "naive_forward_seconds": forward,
        }  # fmt: skip
        figures.append(
            Figure("fsour", f"F-SOUR fast : naive, N = {n}, if control cost naive nothing",
                   row * pairs * (n + 1) / statistics.median(each), "x", n="10 untouched forwards of one row",
                   note=f"{1e3 * row:.1f} ms each; {1e3 * forward:.1f} ms as the naive loop does them")
        )  # fmt: skip
        if sizes.alone:
            say(f"F-SOUR, N = {n}: one prompt by itself")
            one = _Fast.search(engine, method, behaviours[:1], clock)
            detail["alone_seconds_a_prompt"] = one.seconds
            figures.append(
                Figure("fsour", f"F-SOUR fast : naive, N = {n}, one prompt by itself", plain / one.seconds, "x",
                       n="1 fast", note="together = 1: only N rows in a forward")
            )  # fmt: skip
        best = max(raw)
        shares.append(
            Figure("fsour", f"share of raw batched speed, N = {n}",
                   unit="%", asked=sizes.share, n=f"{len(fast)} searches, raw before and after each",
                   note=f"raw: up to {best[0]:,.0f} token-layers a second, {best[1]} rows of {length} tokens",
                   **spread([one.share for one in fast]))
        )  # fmt: skip
    return figures + shares, details


def _warm(engine: HFEngine, behaviours: Sequence[Behaviour]) -> None:
    """A small search that nobody times."""
    FSour(candidates=2, log_tau=0.0).find_routes(engine, [replace(b, target="a") for b in behaviours], 0)


def _naive_prompts(
    engine: HFEngine, method: FSour, behaviours: Sequence[Behaviour], sizes: Searches, fast: list[_Fast],
    search: Callable[[], _Fast], clock: Clock, say: Say,
) -> tuple[list[float], int, str]:  # fmt: skip
    """Whole prompts, each followed by another fast search. Seconds of each, how many routes are equal, else where."""
    seconds, agree, worst = [], 0, ""
    for number, behaviour in enumerate(behaviours[: sizes.naive_prompts[method.candidates]]):
        say(f"F-SOUR, N = {method.candidates}: the naive loop, prompt {number + 1}")
        took, steps = clock.timed(lambda b=behaviour: naive.fsour(engine, method, b))
        seconds.append(took)
        difference = first_difference(steps, fast[0].steps[number])
        agree += not difference
        worst = worst or difference
        fast.append(search())
    return seconds, agree, worst


def _naive_pairs(
    engine: HFEngine, method: FSour, behaviour: Behaviour, count: int, steps: list[Step], clock: Clock, say: Say
) -> tuple[list[float], int, str]:
    """Some pairs of a prompt, beside what the fast search had accepted when it came to each."""
    asked = naive.Asked.of(engine, behaviour, behaviour.target)
    every = [(layer, token) for token in range(len(asked.prompt)) for layer in range(len(engine.routers))]
    chosen = random.Random(method.seed).sample(every, count)
    say(f"F-SOUR, N = {method.candidates}: the naive loop at {len(chosen)} of {len(every)} pairs")
    asked.log_p({})  # warm
    fast = {(s.layer, s.position): sorted(s.experts) for s in steps}
    seconds, agree, worst = [], 0, ""
    for layer, token in chosen:
        route = naive.route_before(steps, layer, token)
        took, found = clock.timed(
            lambda r=route, where=(layer, token): naive.fsour_pair(asked, method, behaviour, r, *where)
        )
        seconds.append(took)
        same = (sorted(found[0]) if found else None) == fast.get((layer, token))
        agree += same
        if not same:
            worst = worst or f"(l, t) = ({layer}, {token}): naive {found}, fast {fast.get((layer, token))}"
    return seconds, agree, worst


def first_difference(slow: Sequence[Step], fast: Sequence[Step]) -> str:
    """Where two routes part, in words; empty if they are equal, candidate for candidate."""
    for number in range(max(len(slow), len(fast))):
        ends = [
            (s[number].layer, s[number].position, sorted(s[number].experts)) if number < len(s) else None
            for s in (slow, fast)
        ]
        if ends[0] != ends[1]:
            totals = [f"{s[number].log_prob:.7f}" if number < len(s) else "-" for s in (slow, fast)]
            return (
                f"accepted pair {number}: naive (l, t, experts) = {ends[0]} at {totals[0]} nat, fast {ends[1]} at "
                f"{totals[1]}"
            )
    return ""


def rosais(
    engine: HFEngine, behaviours: Sequence[Behaviour], naive_prompts: int, asked: float | None, clock: Clock, say: Say,
    samples: int = 20,
) -> tuple[list[Figure], dict[str, Any]]:  # fmt: skip
    """RoSais fast : naive, first-token scores."""
    method = RoSais(samples=samples)
    method.rank(engine, behaviours[:2])  # warm
    say(f"RoSais: {len(behaviours)} prompts side by side")
    fast, slow, off = [], [], 0.0
    took, ranked = clock.timed(lambda: method.rank(engine, behaviours))
    fast.append(took)
    for number, behaviour in enumerate(behaviours[:naive_prompts]):
        say(f"RoSais: the naive loop, prompt {number + 1}")
        took, scores = clock.timed(lambda b=behaviour: naive.rosais(engine, method, b))
        slow.append(took)
        off = max(off, float(np.abs(scores - ranked.scores[number]).max()))
        fast.append(clock.seconds(lambda: method.rank(engine, behaviours)))
    each = [seconds / len(behaviours) for seconds in fast]
    figure = Figure(
        "rosais", f"RoSais fast : naive, S = {samples}", statistics.median(slow) / statistics.median(each), "x", asked,
        n=f"{len(fast)} fast of {len(behaviours)} prompts; naive over {len(slow)}",
        low=min(slow) / max(each), high=max(slow) / min(each), note=f"scores differ by at most {off:.1g}",
    )  # fmt: skip
    return [figure], {"fast_seconds_a_prompt": each, "naive_seconds_a_prompt": slow, "largest_difference": off}


# -- growth ----------------------------------------------------------------------------------------------------


def naive_token_layers(prompt: int, target: int, layers: int, candidates: int) -> int:
    """Of one prompt: N + 1 rows of all tokens and layers for each of T * L pairs."""
    return prompt * layers * (candidates + 1) * (prompt + target - 1) * layers


def model_token_layers(prompt: int, target: int, layers: int, candidates: int) -> float:
    """What METHODS section 3 expects of one prompt: N rows from (t, l) on for each pair, and one forward before."""
    length = prompt + target - 1
    tokens = sum(length - token for token in range(prompt))
    return candidates * tokens * layers * (layers + 1) / 2 + length * layers


def growth(
    shape: Shape, points: Sequence[tuple[int, int, int]], together: int, clock: Clock, say: Say, **where: str
) -> list[dict[str, float]]:
    """The cost of a search at some (prompt tokens, layers, N), on untrained models, beside the model of METHODS.

    Returns:
        For each point the seconds and token-layers of one prompt, those of the model, and both as a share of naive.
    """
    found: list[dict[str, float]] = []
    order = sorted(points, key=lambda point: point[1])  # one model at a time
    engine: HFEngine | None = None
    for tokens, layers, candidates in order:
        if engine is None or len(engine.routers) != layers:
            engine = None  # let go before the next is made
            engine = untrained(replace(shape, layers=layers), **where)
            _warm(engine, random_prompts(engine, tokens, 2))
        say(f"growth: T = {tokens}, L = {layers}, N = {candidates}")
        method = FSour(candidates=candidates, restarts=1, log_tau=0.0, together=together)
        fast = _Fast.search(engine, method, random_prompts(engine, tokens, together), clock)
        plain = naive_token_layers(tokens, TARGET_TOKENS, layers, candidates)
        model = model_token_layers(tokens, TARGET_TOKENS, layers, candidates)
        done = fast.token_layers / together
        found.append({
            "T": tokens, "L": layers, "N": candidates, "prompts": together, "seconds": fast.seconds / together,
            "token_layers": done, "model": model, "of_naive": done / plain, "model_of_naive": model / plain,
            "token_layers_a_second": fast.speed,
        })  # fmt: skip
    return [found[order.index(point)] for point in points]
