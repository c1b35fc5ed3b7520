"""``fold``: one command from a steering to a checkpoint, or one line on why not."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest_cli import Cli
from transformers import AutoModelForCausalLM

import pointsman
from engines import small_engine
from pointsman.routing.low_rank import LowRank
from pointsman.steering.artefact import Steering


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gpt-oss on disk."""
    engine = small_engine("gpt_oss", dtype=torch.float32)
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt-oss"
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    return folder


def save_steering(model: Path, folder: Path, **changes: Any) -> Steering:
    engine = pointsman.load(str(model))
    rng = np.random.default_rng(0)
    given: dict[str, Any] = dict(
        matrix=tuple(rng.normal(0, 1, r.experts) for r in engine.routers),
        sigma=(1.0,) * len(engine.routers),
        alpha=1.0,
        phase="both",
        fingerprint=engine.info.fingerprint,
        base_model="tiny",
    )
    steering = Steering(**{**given, **changes})
    steering.save_pretrained(folder)
    return steering


def test_it_writes_a_checkpoint_that_says_what_the_steered_model_says(cli: Cli, here: Path, biased: Path) -> None:
    steering = save_steering(biased, here / "mask")
    done = cli("fold", biased, "--steering", "mask", "--out", "out")
    assert done.code == 0, done.err
    assert done.out == "out\n"
    first, second, third = done.err.splitlines()
    assert first == "Folded 24 entries at alpha 1 into `bias` of 3 routers."
    assert second.startswith("On 4 prompts the folded and the steered model generate the same 64 tokens")
    engine, folded = pointsman.load(str(biased)), pointsman.load("out")
    assert third == f"Fingerprint of the folded model: {folded.info.fingerprint}"
    prompts = [engine.encode([text]) for text in ("how do you do", "?")]
    steered = engine.generate(prompts, routing=steering, max_new_tokens=12)
    assert [c.ids for c in folded.generate(prompts, max_new_tokens=12)] == [c.ids for c in steered]
    assert [c.ids for c in engine.generate(prompts, max_new_tokens=12)] != [c.ids for c in steered]
    assert AutoModelForCausalLM.from_pretrained("out").config.model_type == "gpt_oss"
    again = cli("fold", biased, "--steering", "mask", "--out", "out").refusal()
    assert "out exists already" in again


def test_json_is_all_of_stdout(cli: Cli, here: Path, biased: Path) -> None:
    save_steering(biased, here / "run" / "artefacts" / "steering")
    done = cli("fold", biased, "--steering", "run", "--out", "deep/out", "--json")
    assert done.code == 0, done.err
    assert done.json["schema"] == "pointsman.fold/1"
    assert done.json["layers"] == [0, 1, 2]
    assert done.json["entries"] == 24
    assert (here / done.json["out"] / "model.safetensors").is_file()


def test_what_cannot_be_folded_exactly_writes_nothing(cli: Cli, here: Path, biased: Path, model: Path) -> None:
    save_steering(model, here / "of-olmoe")
    save_steering(biased, here / "prefill", phase="prefill")
    save_steering(biased, here / "per-token", per_token=True)
    save_steering(biased, here / "mask")

    def refused(folder: str, of: Path, *more: str) -> str:
        line = cli("fold", of, "--steering", folder, "--out", "out", *more).refusal()
        assert not list(here.glob("out*"))
        return line

    assert "has no bias on its logits" in refused("of-olmoe", model)
    assert "tokens of the prompt only" in refused("prefill", biased)
    assert "per_token" in refused("per-token", biased)
    assert "torch.bfloat16, which rounds" in refused("mask", biased, "--dtype", "bfloat16")
    assert "This steering is for tiny" in refused("of-olmoe", biased)
    assert "There is no folder nowhere" in refused("nowhere", biased)


def test_a_folded_checkpoint_can_be_talked_to_but_not_steered_again(
    cli: Cli, here: Path, biased: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steering(biased, here / "mask")
    assert cli("fold", biased, "--steering", "mask", "--out", "out").code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert cli("chat", "out", "--max-new-tokens", "3").code == 0
    assert "This steering is for tiny" in cli("chat", "out", "--steering", "mask").refusal()
    assert "folded into the checkpoint" in cli("chat", "out", "--steering", "out").refusal()


def conditional(model: Path | str, folder: Path, **changes: Any) -> Steering:
    """A small random one of rank 2, without a constant part."""
    routers, rng = pointsman.load(str(model)).routers, np.random.default_rng(1)
    maps = {r.layer: LowRank(rng.normal(0, 1, (2, r.width or 0)), rng.normal(0, 0.3, (r.experts, 2))) for r in routers}
    zero = tuple(np.zeros(r.experts) for r in routers)
    return save_steering(Path(model), folder, **{"matrix": zero, "maps": maps, **changes})


def test_a_conditional_steering_goes_into_the_weights_of_the_testbed(cli: Cli, here: Path) -> None:
    steering = conditional("testbed", here / "mask")
    done = cli("fold", "testbed", "--dtype", "float32", "--steering", "mask", "--out", "out", "--json")
    assert done.code == 0, done.err
    layers = len(steering.matrix)
    assert done.json["layers"] == list(range(layers))
    assert (done.json["tensor"], done.json["weight"], done.json["rank"]) == (None, "weight", 2)
    engine, folded = pointsman.load("testbed", dtype="float32"), pointsman.load("out", dtype="float32")
    prompts = [engine.encode([text]) for text in ("how do you do", "?")]
    steered = engine.generate(prompts, routing=steering, max_new_tokens=12)
    assert [c.ids for c in folded.generate(prompts, max_new_tokens=12)] == [c.ids for c in steered]
    assert [c.ids for c in engine.generate(prompts, max_new_tokens=12)] != [c.ids for c in steered]
    assert done.json["fingerprint"] == folded.info.fingerprint


def test_what_was_folded_is_said_and_what_cannot_be_is_not_written(cli: Cli, here: Path, model: Path) -> None:
    steering = conditional(model, here / "mask")
    done = cli("fold", model, "--steering", "mask", "--out", "out")
    assert done.err.splitlines()[0] == "Folded maps of rank 2 at alpha 1 into `weight` of 3 routers."
    bent = {n: LowRank(one.down, one.up, [0.0] * one.rank) for n, one in steering.maps.items()}
    conditional(model, here / "bent", maps=bent)
    conditional(model, here / "constant-too", matrix=tuple(np.ones(len(row)) for row in steering.matrix))
    for name, why in (("bent", "has a threshold"), ("constant-too", "has no bias on its logits")):
        assert why in cli("fold", model, "--steering", name, "--out", "other").refusal()
        assert not list(here.glob("other*"))
