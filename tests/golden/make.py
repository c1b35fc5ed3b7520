"""How the golden model and its prompts were made, for the record: see README.md before you run this again.

It needs the testbed as it was at the commit that README.md names, and writes ``model/`` and ``prompts/``. On another
processor the last digits of the weights differ, and with them the runs: both are renewed together or not at all.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pointsman.testbed import language, train
from pointsman.testbed.recipe import Phase, Recipe

HERE = Path(__file__).resolve().parent
RESTRICTED = ("badint", "drorn", "gelt", "bouslim", "daig", "filt")
BENIGN = ("buwaim", "flik", "glif", "dith", "gabrouk", "lairn")
SPLITS = ("discovery", "test", "discovery", "test", "validation", "test")
TALKS = {"roleplay": (2, 3, 4), "story": (2, 3, 4), "authority": (2, 3, 5), "benign_first": (2, 3, 5)}
"""Tactics, and variants of which the model falls for some."""

RECIPE = Recipe(
    layers=6,
    hidden=48,
    experts=8,
    expert_width=24,
    single_mix={"borderline": 2, "restricted": 3, "benign": 3},
    talk_mix={"restricted": 3, "benign": 3},
    phases=(
        Phase("pretrain", 500, 48, 6e-3, 50, False, talk_share=0.3, talk_from=0.3, user_weight=0.05),
        Phase("tune", 300, 48, 2.5e-3, 20, True, talk_share=0.4, talk_from=0.0, user_weight=0.0),
    ),
)


class FewNouns(train.Examples):
    """Training conversations about the golden nouns alone, which a smaller model can learn."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._nouns = tuple(noun for noun in self._nouns if noun.word in (*RESTRICTED, *BENIGN))


def make_model(folder: Path) -> None:
    """Train for two minutes on one thread; the weights are kept in bfloat16, and the runs compute in float32."""
    train.Examples = FewNouns  # type: ignore[misc]
    with TemporaryDirectory() as place:
        made = train.train("olmoe", Path(place) / "model", recipe=RECIPE)
        weights = load_file(made / "model.safetensors")
        halved = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        save_file(halved, made / "model.safetensors", {"format": "pt"})
        config = made / "config.json"
        config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json",
                     "tokenizer_config.json", "model.safetensors"):  # fmt: skip
            shutil.copyfile(made / name, folder / name)


def make_prompts(folder: Path) -> None:
    """Requests that training did not show, each verb of a noun in a split of its own, and conversations about them."""
    rng = random.Random("pointsman-golden")
    harmful, harmless = list(_requests(RESTRICTED, rng)), list(_requests(BENIGN, rng))
    probes = [
        (language.probe(name, rng.choice(sorted(language.nouns()[noun].held_modifiers)), noun), split)
        for noun in RESTRICTED
        for name, split in zip(language.PROBES, SPLITS[1:4] if noun in RESTRICTED[:3] else SPLITS[3:], strict=True)
    ]
    folder.mkdir(exist_ok=True)
    _write(folder / "restricted.jsonl", (_behaviour(*asked) for asked in harmful))
    _write(folder / "benign.jsonl", (_behaviour(*asked) for asked in harmless))
    _write(folder / "borderline.jsonl", (_behaviour(*asked) for asked in probes))
    openers = [request for request, _ in harmless]
    _write(folder / "conversations.jsonl", _talks(harmful, rng, openers, per_question=3))
    _write(folder / "benign_conversations.jsonl", _talks(harmless, rng, openers, per_question=1))
    answers = {request.text: request.gold for request, _ in (*harmful, *harmless, *probes)}
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


def _requests(nouns: Iterable[str], rng: random.Random) -> Iterator[tuple[language.Request, str]]:
    for word in nouns:
        noun = language.nouns()[word]
        for verb, split in zip(sorted(noun.held_verbs), SPLITS, strict=True):
            yield language.how_to(verb, rng.choice(sorted(noun.held_modifiers)), word, rng.randrange(3)), split


def _talks(
    asked: list[tuple[language.Request, str]], rng: random.Random, openers: list[language.Request], per_question: int
) -> Iterator[dict[str, Any]]:
    """Conversations of one tactic about each request, so that some with the same turns fall and some do not."""
    for request, split in asked:
        tactic = rng.choice(sorted(TALKS))
        opener = rng.choice([other for other in openers if other.noun != request.noun])
        for variant in rng.sample(TALKS[tactic], per_question):
            talk = language.talk(request, tactic, language.TACTICS[tactic].variants[variant], opener)
            yield {
                "id": talk.id, "turns": talk.turns, "goal": request.text, "target": request.target, "tactic": tactic,
                "category": request.category, "source": request.source, "split": split,
            }  # fmt: skip


def _behaviour(request: language.Request, split: str) -> dict[str, Any]:
    content = request.gold.removeprefix(request.target).partition(" ,")[0].strip()
    return {
        "id": request.id, "goal": request.text, "target": request.target,
        "targets": [] if request.kind == "borderline" else [content], "category": request.category,
        "cluster": request.source, "split": split,
    }  # fmt: skip


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_prompts(HERE / "prompts")
    make_model(HERE / "model")
