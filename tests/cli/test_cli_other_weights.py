"""A model with the same routers in another body is another model, and everything says so."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest_cli import EFFORT, Cli, save_moe

import pointsman
from pointsman.errors import BadLogits, Interrupted
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.runs.run import Run
from pointsman.steering.artefact import Steering


def other_body(model: Any) -> None:
    """Change everything but the routers, a little."""
    for name, tensor in model.named_parameters():
        if "gate.weight" not in name:
            tensor.mul_(1.02)


@pytest.fixture
def stopped(cli: Cli, here: Path, behaviors: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An audit of ``model`` that was stopped half-way."""
    save_moe(here / "model")
    remember, done = Run.remember, []

    def stop(self: Run, key: str, compute: Any) -> Any:
        done.append(key)
        if len(done) == 9:
            raise Interrupted("Interrupted", "Continue")
        return remember(self, key, compute)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "remember", stop)
        assert cli("audit", "model", "--behaviors", behaviors, "--out", "run", *EFFORT).code == 130
    return here


def test_a_run_is_not_continued_with_another_body(cli: Cli, stopped: Path) -> None:
    mine, other = pointsman.load("model"), save_moe(stopped / "other", spoil=other_body)
    assert pointsman.load(str(other)).info.fingerprint == mine.info.fingerprint
    before = (stopped / "run/journal.jsonl").read_bytes()
    (stopped / "model").rename(stopped / "kept")
    other.rename(stopped / "model")
    line = cli("resume", "run").refusal(notes=1)
    assert "has the routers that this run began with, and other weights beside them" in line
    assert (stopped / "run/journal.jsonl").read_bytes() == before
    (stopped / "model").rename(other)
    (stopped / "kept").rename(stopped / "model")
    assert cli("resume", "run").code == 0


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def swap_words(file: Path) -> None:
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    one, other = [word for word in vocabulary if word.isalpha()][10:12]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: edit(model / "config.json", rms_norm_eps=0.1), "configuration"),
        (lambda model: edit(model / "config.json", norm_topk_prob=True), "configuration"),
        (lambda model: edit(model / "config.json", hidden_act="gelu"), "configuration"),
        (
            lambda model: edit(model / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
            "configuration",
        ),
        (lambda model: edit(model / "generation_config.json", eos_token_id=7), "generation settings"),
        (lambda model: swap_words(model / "tokenizer.json"), "tokenizer"),
        (
            lambda model: (model / "chat_template.jinja").write_text(
                (model / "chat_template.jinja").read_text() + "hello"
            ),
            "chat template",
        ),
    ],
)
def test_a_run_is_not_continued_with_other_settings(cli: Cli, stopped: Path, change: Any, what: str) -> None:
    change(stopped / "model")
    line = cli("resume", "run").refusal(notes=1)
    assert f"The {what} of model changed since run began" in line


def test_what_is_written_down_otherwise_by_another_transformers_is_noted(
    cli: Cli, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(stopped / "model/config.json", rms_norm_eps=1e-4)
    monkeypatch.setattr(Run, "version_changes", lambda self: ["transformers 5.23.0 -> 5.24.0"])
    done = cli("resume", "run")
    assert done.code == 0, done.err
    assert "the configuration of the model may have changed (transformers 5.23.0 -> 5.24.0)" in done.err


def test_another_body_in_another_dtype_is_refused_too(cli: Cli, stopped: Path) -> None:
    other = save_moe(stopped / "other", spoil=other_body)
    edit(other / "config.json", dtype="bfloat16")
    (stopped / "model").rename(stopped / "kept")
    other.rename(stopped / "model")
    line = cli("resume", "run").refusal(notes=2)
    assert "other weights beside them" in line


def test_another_dtype_of_the_same_weights_is_the_same_model(here: Path) -> None:
    half = pointsman.load(str(save_moe(here / "model")), dtype="bfloat16")
    assert half.weights == pointsman.load("model", dtype="float32").weights


@pytest.fixture
def steered(here: Path) -> tuple[Path, Path, Path]:
    """A model, one with other weights beside the same routers, and a steering of the first."""
    first, second = save_moe(here / "first"), save_moe(here / "second", spoil=other_body)
    engine = pointsman.load(str(first))
    steering = Steering(
        tuple(np.ones(r.experts) * np.arange(r.experts) for r in engine.routers), (0.1,) * 3, 1.0, "both",
        engine.info.fingerprint, "first", weights=engine.weights,
    )  # fmt: skip
    return first, second, steering.save_pretrained(here / "steering")


def ways(path: Path, steering: Steering) -> list[Callable[[], Any]]:
    """Every way in which a model is put under a steering."""
    engine = pointsman.load(str(path))
    prompt, target = engine.encode(["hello"]), engine.encode_target("Sure")
    return [
        lambda: engine.generate([prompt], routing=steering, max_new_tokens=1),
        lambda: engine.score([prompt], [target], routing=[steering]),
        lambda: engine.trace([prompt], routing=steering),
        lambda: engine.scorer([prompt], [target], routing=steering).__enter__(),
        lambda: control(pointsman.load(str(path)).model, steering).__enter__(),
    ]


def test_a_steering_on_another_body_says_so(steered: tuple[Path, Path, Path]) -> None:
    first, second, folder = steered
    steering = Steering.from_pretrained(folder)
    assert steering.weights == pointsman.load(str(first)).weights
    for path, told in ((first, False), (second, True)):
        calls = ways(path, steering)
        for call in calls:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            said = [str(w.message) for w in caught if "this steering was made" in str(w.message)]
            assert len(said) == int(told)
            assert all(sentence.startswith("The routers are those of first") for sentence in said)


def test_chat_says_so_too(cli: Cli, steered: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, folder = steered
    for path, told in ((first, False), (second, True)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
        done = cli("chat", path, "--steering", folder, "--max-new-tokens", "2")
        assert done.code == 0
        assert ("the rest of the model is not" in done.err) == told


def test_a_steering_of_an_older_version_has_no_weights(steered: tuple[Path, Path, Path]) -> None:
    _, _, folder = steered
    old = Steering.from_pretrained(folder)
    data = old.to_json()
    assert data.pop("weights") == old.weights
    (folder / "steering.json").write_text(json.dumps(data))
    again = Steering.from_pretrained(folder)
    assert again.weights is None
    assert "weights" not in again.to_json()
    assert again.on_other_weights("anything") == ""


def test_nan_under_a_routing_is_named(here: Path) -> None:
    """Experts that were never used in the proof, or whose sum overflows, give NaN only where they are chosen."""
    engine = pointsman.load(str(save_moe(here / "model")))
    model = engine.model
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[5] = torch.nan
    ids = torch.tensor([[3, 4, 5, 6]])
    with control(model, Intervention.force({1: [0, 1]})):
        assert torch.isfinite(model(input_ids=ids).logits).all()
    for call in (lambda: model(input_ids=ids), lambda: model.generate(input_ids=ids, max_new_tokens=2)):
        with control(model, Intervention.force({1: [0, 5]})), pytest.raises(BadLogits, match="under this routing"):
            call()
