"""Memory of traces and of what is trained on them: 10,000 contexts of 48 layers x 128 experts, made up as they go.

    python benchmarks/trace_memory.py [--contexts 10000] [--layers 48] [--experts 128] [--tokens 20] [--epochs 15]
                                      [--matrix-epochs 1] [--folder DIR] [--out FILE]

Writes the traces (2.4 GB, in a temporary folder unless --folder names one), reads sigma, trains a surrogate, then
learns steering matrices on it, and prints the peak resident memory after each step. Nothing else is kept, unless
--out names a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointsman.methods.mascing import SteeringMatrix
from pointsman.methods.surrogate import Surrogate
from pointsman.routing.store import TraceStore, TraceWriter

ASKED_GB = 2.0


def peak_gb() -> float:
    """Largest resident memory of this process so far, mapped files included, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def contexts(n: int, layers: int, experts: int, tokens: int, seed: int = 0) -> Iterator[tuple[str, int, list[Any]]]:
    """Names, labels and logits: Gaussian, those of label 1 shifted in a few entries. Lengths from T/2 to 3T/2."""
    rng = np.random.default_rng(seed)
    shift = np.zeros((layers, experts), dtype=np.float32)
    shift.reshape(-1)[rng.choice(shift.size, size=shift.size // 50, replace=False)] = 1.0
    for number in range(n):
        length = int(rng.integers(tokens - tokens // 2, tokens + tokens // 2 + 1))
        label = number % 2
        logits = rng.standard_normal((length, layers, experts), dtype=np.float32) * 1.5 + label * shift
        yield f"c{number}", label, [logits[:, layer] for layer in range(layers)]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    parser = argparse.ArgumentParser(description="Peak memory of traces, surrogate and steering matrices.")
    for name, default in (("contexts", 10_000), ("layers", 48), ("experts", 128), ("tokens", 20), ("epochs", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--matrix-epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where the traces are written, and left")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows: list[dict[str, Any]] = [{"step": "torch and Pointsman imported", "seconds": 0.0, "peak_gb": peak_gb()}]

    def timed(step: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        value = work()
        rows.append({"step": step, "seconds": time.perf_counter() - began, "peak_gb": peak_gb()})
        print(f"  {step}: {rows[-1]['seconds']:.0f} s", file=sys.stderr)
        return value

    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        labels: list[int] = []

        def write() -> None:
            with TraceWriter(folder, experts=[asked.experts] * asked.layers) as writer:
                for name, label, logits in contexts(asked.contexts, asked.layers, asked.experts, asked.tokens):
                    labels.append(label)
                    if name not in writer.ids:
                        writer.add(name, logits)

        timed("written", write)
        store = TraceStore.open(folder)
        size = sum(path.stat().st_size for path in folder.glob("traces-*.safetensors")) / 1e9
        sigma = timed("sigma", store.stds)
        groups = [str(number // 4) for number in range(len(store))]
        fitted = timed(
            f"surrogate, {asked.epochs} epochs",
            lambda: Surrogate(epochs=asked.epochs).fit(store, labels, groups=groups),
        )
        ones = [number for number, label in enumerate(labels) if label]
        method = SteeringMatrix(epochs=asked.matrix_epochs)
        timed(
            f"{len(method.lambdas)} matrices of {len(ones):,} contexts, {asked.matrix_epochs} epoch(s)",
            lambda: method.learn(fitted, store, ones, 0, sigma),
        )
    result = {
        "contexts": asked.contexts, "layers": asked.layers, "experts": asked.experts,
        "tokens": int(store.lengths.sum()), "disk_gb": size, "accuracy": fitted.report.accuracy,
        "steps": rows, "peak_gb": peak_gb(), "asked_gb": ASKED_GB,
    }  # fmt: skip
    print(
        f"{asked.contexts:,} contexts, {asked.layers} layers x {asked.experts} experts, {result['tokens']:,} tokens, "
        f"{size:.2f} GB on disk; held-out accuracy {fitted.report.accuracy:.3f}\n"
    )
    print(f"{'step':<48} {'seconds':>9} {'peak GB':>9}")
    for row in rows:
        print(f"{row['step']:<48} {row['seconds']:>9.1f} {row['peak_gb']:>9.2f}")
    print(f"\npeak resident memory {result['peak_gb']:.2f} GB, asked: below {ASKED_GB:g} GB")
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
