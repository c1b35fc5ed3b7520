"""Measure what must be fast, all ratios in one run, one thread each side.

    python benchmarks/run.py [--quick] [--only PART ...] [--out FILE]    on a CPU: testbed and untrained models
    python benchmarks/run.py --device cuda                               on a GPU: an untrained OLMoE-1B-7B in bfloat16
    python benchmarks/run.py --markdown FILE ...                         the tables of earlier runs
    python benchmarks/run.py --readme README.md FILE ...                 the same, written between markers

Results go to benchmarks/results.json, or benchmarks/results-cuda.json. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from clock import Clock, Figure
from guiding import guided
from overhead import generation, matrix_rate, trace
from searches import Searches, fsour, growth, rosais
from sizes import (
    OLMOE_1B_7B,
    SHRUNK,
    SMALL,
    WIDE,
    Shape,
    random_prompts,
    testbed,
    testbed_prompts,
    untrained,
)

from pointsman.runs.provenance import provenance

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmarks:begin (make bench) -->", "<!-- benchmarks:end -->"
PARTS = ("fsour", "guided", "rosais", "generation", "trace", "growth")


@dataclass(frozen=True)
class Plan:
    """How much is measured, and on what.

    Attributes:
        searches: F-SOUR; see there.
        guided_prompts, guided_rounds: Side by side, and how often.
        rosais_prompts: Side by side in the fast ranking, and those that the naive loop ranks.
        rosais_asked: The ratio asked for.
        rosais_samples: Masks for each prompt and router (S).
        wide: The shape on which control is measured against its bound.
        rows, prompt_tokens, new_tokens, rounds: Of generation.
        trace_prompts: On the model of the searches, and on `wide`.
        growth_of: Shape whose layers are replaced.
        growth: (prompt tokens, layers, N).
        growth_together: Prompts side by side.
        prompt: Prompt tokens of the searches on an untrained model; None: the testbed.
        shape: That untrained model.
        dtype: Of untrained models.
        matrix: Side of the square matrices of the card's own rate; None: not measured.
    """

    searches: Searches
    guided_prompts: int = 64
    guided_rounds: int = 3
    rosais_prompts: tuple[int, int] = (16, 3)
    rosais_asked: float | None = 8.0
    rosais_samples: int = 20
    wide: Shape = WIDE
    rows: int = 8
    prompt_tokens: int = 16
    new_tokens: int = 16
    rounds: int = 9
    trace_prompts: tuple[int, int] = (200, 32)
    trace_rounds: int = 9
    growth_of: Shape = SMALL
    growth: tuple[tuple[int, int, int], ...] = field(default=())
    growth_together: int = 4
    prompt: int | None = None
    shape: Shape = SMALL
    dtype: str = "float32"
    matrix: int | None = None


def _axes(tokens: Sequence[int], layers: Sequence[int], candidates: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """One axis at a time through (20, middle layers, least N), without repeats."""
    t, middle, n = tokens[min(1, len(tokens) - 1)], layers[len(layers) // 2], candidates[0]
    points = [*((x, middle, n) for x in tokens), *((t, x, n) for x in layers), *((t, middle, x) for x in candidates)]
    return tuple(dict.fromkeys(points))


FULL = Plan(
    Searches({10: 15.0, 30: 20.0, 100: 25.0}, naive_prompts={10: 2, 30: 1, 100: 1}),
    growth=_axes((10, 20, 40, 80), (6, 12, 24), (10, 30, 100)),
)
QUICK = Plan(
    Searches({10: 15.0, 30: 20.0}, together=2, naive_pairs={10: 4, 30: 2}, alone=False, raw_rows=(64,)),
    guided_prompts=2,
    guided_rounds=1,
    rosais_prompts=(4, 1),
    rosais_samples=5,
    wide=replace(WIDE, layers=2),
    new_tokens=2,
    rounds=2,
    trace_prompts=(64, 4),
    trace_rounds=3,
    growth=((10, 6, 4), (10, 3, 4)),
    growth_together=2,
)
CARD = Plan(
    Searches({100: 50.0}, together=4, naive_pairs={100: 12}),
    wide=OLMOE_1B_7B,
    trace_prompts=(200, 200),
    growth_of=OLMOE_1B_7B,
    growth=_axes((10, 20, 40), (4, 8, 16), (10, 30, 100)),
    prompt=40,
    guided_prompts=4,
    shape=OLMOE_1B_7B,
    dtype="bfloat16",
    matrix=8192,
)
CARD_QUICK = replace(
    CARD,
    searches=Searches({10: None}, together=2, naive_pairs={10: 2}, alone=False, raw_rows=(64, 256)),
    guided_prompts=2,
    guided_rounds=1,
    rosais_prompts=(2, 1),
    rounds=3,
    trace_prompts=(64, 64),
    trace_rounds=3,
    growth=((10, 4, 4), (20, 4, 4)),
    growth_together=2,
)
_SHRUNK = replace(
    CARD,
    searches=Searches({4: 50.0}, together=2, naive_pairs={4: 3}, raw_rows=(4, 8)),
    guided_prompts=2,
    guided_rounds=1,
    rosais_prompts=(3, 1),
    rosais_samples=4,
    wide=SHRUNK,
    rows=2,
    prompt_tokens=8,
    new_tokens=3,
    rounds=2,
    trace_prompts=(6, 6),
    trace_rounds=2,
    growth_of=SHRUNK,
    growth=_axes((6,), (2, 3), (2,)),
    growth_together=2,
    prompt=8,
    shape=SHRUNK,
    matrix=64,
)


class Bench:
    """One run: its plan, its device, and what it found."""

    def __init__(self, plan: Plan, device: str, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.device = device
        self.clock = Clock(device)
        self.say = say
        self.figures: list[Figure] = []
        self.growth: list[dict[str, float]] = []
        self.details: dict[str, Any] = {}
        self._untrained = lru_cache(maxsize=1)(untrained)

    def model(self, shape: Shape) -> Any:
        """An untrained engine; the last one is kept."""
        return self._untrained(shape, device=self.device, dtype=self.plan.dtype)

    def searched(self, count: int) -> tuple[Any, Any]:
        """The engine of the searches, and prompts for it."""
        if self.plan.prompt is None:
            return _testbed(), testbed_prompts(count)
        engine = self.model(self.plan.shape)
        return engine, random_prompts(engine, self.plan.prompt, count)

    def measure(self, part: str) -> None:
        """One of `PARTS`."""
        found = getattr(self, f"_{part}")()
        if found:
            figures, details = found
            self.figures += figures
            self.details.setdefault(part, []).append(details)

    def _fsour(self) -> tuple[list[Figure], dict[str, Any]]:
        sizes = self.plan.searches
        figures, details = fsour(*self.searched(max(sizes.together, 2)), sizes, self.clock, self.say)
        if self.plan.matrix is not None:
            figures += self._attained(details)
        return figures, details

    def _attained(self, details: dict[str, Any]) -> list[Figure]:
        """Arithmetic attained, beside the device's own matrix rate."""
        plan, dtype = self.plan, torch.bfloat16 if self.plan.dtype == "bfloat16" else torch.float32
        self.say("the device's own matrix rate")
        rate = matrix_rate(self.device, dtype, plan.matrix or 0, self.clock)
        name = f"{plan.dtype} matrix rate, {plan.matrix} x {plan.matrix}"
        figures = [Figure("fsour", name, rate / 1e12, "TFLOP/s", n="best of 10")]
        length = details["prompt_tokens"] + details["target_tokens"] - 1
        for n in plan.searches.candidates:
            found = details[f"N = {n}"]
            naive = found["naive_token_layers_a_prompt"] / (sum(found["naive_seconds_a_prompt"]) / len(
                found["naive_seconds_a_prompt"]))  # fmt: skip
            for who, speed in (
                ("fast", max(found["token_layers_a_second"])),
                ("naive", naive),
                ("raw batched", max(found["raw_token_layers_a_second"])),
            ):
                flops = plan.shape.flops(speed, length)
                figures.append(
                    Figure("fsour", f"attained by {who}, N = {n}", flops / 1e12, "TFLOP/s", n="best",
                           note=f"{100 * flops / rate:.1f} % of the matrix rate; 2 x active weights and attention of "
                           "each token-layer, without the head")
                )  # fmt: skip
        return figures

    def _guided(self) -> tuple[list[Figure], dict[str, Any]]:
        engine, prompts = self.searched(self.plan.guided_prompts)
        return guided(engine, prompts, self.clock, self.say, self.plan.guided_rounds)

    def _rosais(self) -> tuple[list[Figure], dict[str, Any]]:
        together, slow = self.plan.rosais_prompts
        engine, prompts = self.searched(max(together, 2))
        plan = self.plan
        return rosais(engine, prompts, slow, plan.rosais_asked, self.clock, self.say, samples=plan.rosais_samples)

    def _generation(self) -> None:
        plan, where = self.plan, "a GPU" if self.device != "cpu" else "a CPU"
        told = f"{plan.wide}, batch {plan.rows}, {plan.new_tokens} new tokens, {plan.dtype} on {where}"
        self._generate(self.model(plan.wide), told, asked=3.0)
        if plan.wide != plan.shape:
            engine, _ = self.searched(2)
            told = f"the testbed's size ({plan.shape}), batch {plan.rows}, for information"
            self._generate(engine, told, asked=None)

    def _generate(self, engine: Any, told: str, asked: float | None) -> None:
        plan = self.plan
        prompts = [engine.encode(b.turns) for b in random_prompts(engine, plan.prompt_tokens, plan.rows)]
        figures, details = generation(
            engine, prompts, plan.new_tokens, plan.rounds, asked, self.clock, self.say, told
        )  # fmt: skip
        self.figures += figures
        self.details.setdefault("generation", []).append(details)

    def _trace(self) -> None:
        plan = self.plan
        if plan.prompt is None:
            prompts = testbed_prompts(plan.trace_prompts[0])
            self._traced(_testbed(), prompts, "the testbed", asked=80.0)
            told = f"{plan.wide}, for information"
            engine = self.model(plan.wide)
            self._traced(engine, random_prompts(engine, 40, plan.trace_prompts[1]), told, asked=None)
        else:
            engine = self.model(plan.shape)
            prompts = random_prompts(engine, plan.prompt, plan.trace_prompts[0])
            self._traced(engine, prompts, str(plan.shape), asked=80.0)

    def _traced(self, engine: Any, behaviours: Sequence[Any], told: str, asked: float | None) -> None:
        prompts = [engine.encode(b.turns) for b in behaviours]
        figures, details = trace(engine, prompts, self.plan.trace_rounds, asked, self.clock, self.say, told)
        self.figures += figures
        self.details.setdefault("trace", []).append(details)

    def _growth(self) -> None:
        plan = self.plan
        self._untrained.cache_clear()
        gc.collect()
        self.growth = growth(
            plan.growth_of, plan.growth, plan.growth_together, self.clock, self.say,
            device=self.device, dtype=plan.dtype,
        )  # fmt: skip


@lru_cache(maxsize=1)
def _testbed() -> Any:
    return testbed()


# -- what is shown ---------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with columns of equal width; the first row is its head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    number = f"{value:+.1f}" if unit == "+%" else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{number}x" if unit == "x" else f"{number} {unit.removeprefix('+')}"


def markdown(results: dict[str, Any]) -> str:
    """The tables of one run."""
    machine = results["machine"]
    parts = []
    if machine["plan"] != "full":
        parts.append(f"**A {machine['plan']} run: it shows that the benchmark works, not how fast anything is.**")
    rows = [["measured in one run", "figure", "asked", "met", "repeats [least, largest]", "note"]]
    for f in results["figures"]:
        unit = "+%" if f["bound"] == "most" else f["unit"]
        asked = "-" if f["asked"] is None else f"at {f['bound']} {shown(f['asked'], unit)}"
        met = {None: "-", True: "yes", False: "NO"}[f["met"]]
        repeats = f["n"]
        if f["low"] is not None:
            repeats += f" [{shown(f['low'], unit)}, {shown(f['high'], unit)}]"
        rows.append([f["name"], shown(f["value"], unit), asked, met, repeats, f["note"]])
    if len(rows) > 1:
        parts.append(table(rows))
    if results["growth"]:
        head = [
            "T", "L", "N", "seconds a prompt", "token-layers", "METHODS' model", "measured : model",
            "share of naive", "model", "token-layers a second",
        ]  # fmt: skip
        grown = [
            [
                f"{g['T']}", f"{g['L']}", f"{g['N']}", f"{g['seconds']:.2f}", f"{g['token_layers']:,.0f}",
                f"{g['model']:,.0f}", f"{g['token_layers'] / g['model']:.2f}", f"{100 * g['of_naive']:.0f} %",
                f"{100 * g['model_of_naive']:.0f} %", f"{g['token_layers_a_second']:,.0f}",
            ]
            for g in results["growth"]
        ]  # fmt: skip
        told = results["growth_of"]
        parts.append(
            f"How a search grows with prompt tokens (T), layers (L) and candidates (N), {told}; the model of METHODS "
            "section 3 counts N rows from (t, l) on for every pair:"
        )
        parts.append(table([head, *grown]))
    versions = machine["versions"]
    gpus = f"{', '.join(machine['gpus'])}; " if results["device"] != "cpu" and machine["gpus"] else ""
    parts.append(
        f"{gpus}{machine['cpu']}, {machine['threads']} thread{'s' * (machine['threads'] > 1)}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}, Python {versions['python']}; "
        f"load average {machine['load_average'][0]:.1f} at the start, {machine['load_average_after'][0]:.1f} at the "
        f"end; {machine['minutes']:.1f} minutes; {machine['seconds_are']}."
    )
    return "\n\n".join(parts)


def write_readme(readme: Path, text: str) -> None:
    """Put `text` between the markers of a file."""
    before, found, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        sys.exit(f"{readme.name} lacks the lines {BEGIN} and {END}.")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _load_average() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else [0.0]


def run(
    plan: Plan, kind: str, parts: Sequence[str], device: str, say: Callable[[str], None], out: Path | None
) -> dict[str, Any]:
    """Measure these parts; the results as JSON data, written after every part so that an interruption leaves some."""
    torch.set_num_threads(1)
    load, began = _load_average(), time.perf_counter()
    bench = Bench(plan, device, say)
    results: dict[str, Any] = {}
    for part in parts:
        bench.measure(part)
        results = _results(bench, kind, load, (time.perf_counter() - began) / 60)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _results(bench: Bench, kind: str, load: list[float], minutes: float) -> dict[str, Any]:
    plan = bench.plan
    machine = {
        **provenance(),
        "plan": kind,
        "load_average": load,
        "load_average_after": _load_average(),
        "minutes": round(minutes, 2),
        "seconds_are": "processor seconds of one thread" if bench.device == "cpu" else "synchronised wall seconds",
    }
    return {
        "device": bench.device,
        "machine": machine,
        "figures": [{**asdict(f), "met": f.met} for f in bench.figures],
        "growth": bench.growth,
        "growth_of": f"untrained OLMoE like {replace(plan.growth_of, layers=0)}".replace(", 0 layers", ""),
        "details": bench.details,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny numbers, about a minute")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part alone (can be repeated)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--shrunk", action="store_true", help="a tiny model instead of OLMoE-1B-7B, also without a GPU")
    parser.add_argument("--prompts", type=int, metavar="K", help="whole prompts that the naive loop of F-SOUR searches")
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--markdown", nargs="+", type=Path, metavar="FILE", help="print the tables of these results")
    parser.add_argument(
        "--readme", nargs="+", type=Path, metavar="FILE", help="write those of the other files into the first"
    )
    options = parser.parse_args(arguments)
    if options.markdown or options.readme:
        files = options.markdown or options.readme[1:]
        text = "\n\n".join(markdown(json.loads(file.read_text(encoding="utf-8"))) for file in files)
        if options.markdown:
            print(text)
        else:
            write_readme(options.readme[0], text)
        return
    card, device = options.device.startswith("cuda"), options.device
    if not card and device != "cpu":
        parser.error(f"--device {device}: use cpu, cuda or cuda:N")
    if options.shrunk and not card:
        parser.error("--shrunk is for --device cuda: it runs what the GPU would run, tiny")
    if card and not torch.cuda.is_available():
        if not options.shrunk:
            sys.exit(f"There is no GPU for --device {device}. Use --device cpu, or add --shrunk to see that it runs.")
        device = "cpu"
    if options.shrunk:
        plan, kind = _SHRUNK, "shrunk"
    elif options.quick:
        plan, kind = CARD_QUICK if card else QUICK, "quick"
    else:
        plan, kind = CARD if card else FULL, "full"
    if options.prompts is not None:
        if plan.searches.naive_pairs is not None or not 1 <= options.prompts <= plan.searches.together:
            parser.error(
                f"--prompts {options.prompts}: 1 to {plan.searches.together}, and only where whole prompts are searched"
            )
        plan = replace(plan, searches=plan.searches.with_naive_prompts(options.prompts))
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.1f} s] {text}", file=sys.stderr, flush=True)

    out: Path | None = options.out
    if out is None and kind == "full" and not options.only:  # nothing less replaces the project's figures
        out = HERE / ("results-cuda.json" if card else "results.json")
    results = run(plan, kind, options.only or PARTS, device, say, out)
    print(markdown(results))
    print(f"\nWritten to {out.name}." if out else "\nNothing written: give --out FILE to keep such a run.")


if __name__ == "__main__":
    main()
