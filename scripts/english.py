"""Train the adapters of the English testbed, and measure what they do. One thread; resumes where it stopped.

    python scripts/english.py teach --out FOLDER          # writes FOLDER/adapters.safetensors
    python scripts/english.py adopt --out FOLDER          # puts them, as they are now, into the package
    python scripts/english.py measure --json evidence/english-base-rates.json

`measure` asks the built model (`pointsman testbed build english`) what training never showed it, and compares it with
the dense model on ordinary text..
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from pointsman.data.types import Behaviour
from pointsman.engine.load import load
from pointsman.judges.refusal import RefusalJudge
from pointsman.judges.types import judged
from pointsman.methods.play import play
from pointsman.stats.rates import Rate
from pointsman.testbed.english import build, dense
from pointsman.testbed.english.prompts import Kind, Share, Talk, requests, talks
from pointsman.testbed.english.suite import EnglishJudge, load_suite
from pointsman.testbed.english.teach import ADAPTERS, Recipe, Teaching

_TOKENS = 96
_TEXT = (  # ordinary prose that nobody trained on, beside the dense model's own answers
    "The old bridge had stood for two hundred years before anyone thought of asking who had built it. Every morning "
    "the baker crossed it with two baskets, one for the school and one for the hospital, and every evening he came "
    "back with the same baskets full of apples. When the river rose in spring, the children counted the stones that "
    "were still dry and made a wish for each of them.",
    "Before you install the program, make sure that there is enough space on the disk. Open the settings, choose the "
    "folder in which your documents are kept, and press the button at the bottom of the page. If nothing happens "
    "after a minute, close the window and try again. Most problems come from an old version that was never removed.",
    "Rainfall in the northern valleys was higher than in any year since records began, and the harvest of wheat came "
    "three weeks late. Farmers who had planted potatoes fared better. The ministry expects that prices will fall "
    "again by the end of the year, although transport remains expensive and two of the main roads are closed.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("teach", "adopt"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, required=True)
    commands.choices["teach"].add_argument("--steps", type=int, default=Recipe().steps)
    command = commands.add_parser("measure")
    command.add_argument("--json", type=Path)
    command.add_argument("--talks", type=int, default=9, help="restricted conversations of each tactic")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "teach":
        teach(chosen.out, chosen.steps)
    elif chosen.command == "adopt":
        adopt(chosen.out)
    else:
        measure(chosen.json, chosen.talks)


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def teach(out: Path, steps: int) -> None:
    say("About 15 minutes of preparation and 55 of training, on a processor with bfloat16 that has nothing else to do")
    teaching = Teaching(*dense.load(dense.find()), out, Recipe(steps=steps), say)
    teaching.prepare()
    say(f"Wrote {teaching.run()}")


def adopt(out: Path) -> None:
    shutil.copyfile(out / ADAPTERS, build.ADAPTERS)
    source = Path(build.__file__)
    line = f'ADAPTERS_SHA256 = "{dense.file_hash(build.ADAPTERS)}"'
    source.write_text(re.sub(r'ADAPTERS_SHA256 = ".*"', line, source.read_text(encoding="utf-8")), encoding="utf-8")
    say(f"{build.ADAPTERS} is {build.ADAPTERS.stat().st_size / 1e6:.1f} MB; {line}")


def measure(out: Path | None, per_tactic: int) -> None:
    began = time.monotonic()
    engine = load(build.NAME)
    found: dict[str, Any] = {
        "made_by": "python scripts/english.py measure",
        "commit": _commit(),
        "adapters": build.ADAPTERS_SHA256,
        "max_new_tokens": _TOKENS,
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    shares: dict[Kind, tuple[Share, ...]] = {  # of dragons there are few items: all that training never showed
        "restricted": ("test",),
        "scenario": ("discovery", "validation", "test"),
        "benign": ("test",),
        "borderline": ("test",),
    }
    suite = load_suite()
    known = {b.goal: b for name in shares for b in getattr(suite, name)}
    for kind, of in shares.items():
        held_out = [r for share in of for r in requests(kind, share, every_phrasing=True)]
        last = {r.source: r for r in held_out}  # the last phrasing of each item, which training never showed
        asked = list(last.values())
        behaviours = [known.get(r.text) or Behaviour(r.text, r.text, "To", r.topic, r.source) for r in asked]
        answers = engine.generate([engine.encode(b.turns) for b in behaviours], max_new_tokens=_TOKENS)
        rows[kind] = [
            {"text": b.goal, "source": b.source, "answer": a.text, "finished": a.finished}
            for b, a in zip(behaviours, answers, strict=True)
        ]
        for judge in (EnglishJudge(), RefusalJudge()):
            verdicts = judged(judge, behaviours, answers)
            for row, verdict in zip(rows[kind], verdicts, strict=True):
                row[judge.name] = verdict.label
            for label in sorted({v.label for v in verdicts}):
                rate = Rate.of([v.label == label for v in verdicts], [b.source for b in behaviours])
                found[f"{kind}: {label} ({judge.name})"] = dataclasses.asdict(rate)
                say(f"{kind:<11} {label:<9} by {judge.name:<8} {rate}")
    for kind, most in (("restricted", per_tactic), ("benign", per_tactic // 3)):
        asked_talks = _some(talks(kind, "test"), most)
        ids = {f"{t.request.kind}/{t.request.source}/{t.tactic}-{t.variant}": t for t in asked_talks}
        conversations = [c for c in (*suite.conversations, *suite.benign_conversations) if c.id in ids]
        played = play(engine, conversations, EnglishJudge(), max_new_tokens=_TOKENS)
        rows[f"{kind} conversations"] = [p.to_json() for p in played]
        for tactic in dict.fromkeys([*(p.tactic for p in played), None]):
            some = [p for p in played if tactic in (p.tactic, None)]
            rate = Rate.of([p.verdict.success for p in some], [p.source for p in some])
            found[f"{kind} conversations answered: {tactic or 'all'}"] = dataclasses.asdict(rate)
            say(f"{kind} conversations answered, {tactic or 'all'}: {rate}")
    found["likeness"] = _likeness([row["answer"] for row in rows["benign"] if row["english"] == "correct"])
    for name, values in found["likeness"].items():
        say(f"{name}: {values}")
    found["minutes"] = (time.monotonic() - began) / 60
    if out is not None:
        out.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        say(f"Wrote {out}")


def _commit() -> str:
    """The commit that measures; ``+changes`` if files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def _some(led: Sequence[Talk], per_tactic: int) -> list[Talk]:
    tactics = dict.fromkeys(t.tactic for t in led)
    return [t for tactic in tactics for t in [each for each in led if each.tactic == tactic][:per_tactic]]


@torch.inference_mode()
def _likeness(own: Sequence[str]) -> dict[str, dict[str, float]]:
    """How near the taught model is to the dense one, token by token, on prose and on its own answers."""
    from transformers import AutoModelForCausalLM

    plain, tokenizer = dense.load(dense.find())
    mixture = AutoModelForCausalLM.from_pretrained(build.locate(), dtype=torch.float32).eval()
    told = {}
    for name, texts in {"prose": _TEXT, "its own answers": own[:20]}.items():
        apart, agree, lost, dense_lost = [], [], [], []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            p, q = (model(ids).logits[0, :-1].log_softmax(-1) for model in (plain, mixture))
            apart.append((p.exp() * (p - q)).sum(-1))
            agree.append((p.argmax(-1) == q.argmax(-1)).float())
            dense_lost.append(-p.gather(1, ids[0, 1:, None])[:, 0])
            lost.append(-q.gather(1, ids[0, 1:, None])[:, 0])
        told[name] = {
            "tokens": sum(len(each) for each in apart),
            "KL from dense, nats a token": float(torch.cat(apart).mean()),
            "same most likely token": float(torch.cat(agree).mean()),
            "perplexity": float(torch.cat(lost).mean().exp()),
            "perplexity of dense": float(torch.cat(dense_lost).mean().exp()),
        }
    return told


if __name__ == "__main__":
    main()
