"""Training: a killed run continues to the identical weights; bad input is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pointsman.errors import RunError, UsageError
from pointsman.testbed.recipe import RECIPES, Recipe
from pointsman.testbed.train import Progress, digest, train

TINY = Recipe(layers=2, hidden=16, heads=2, experts=8, top_k=2, expert_width=16)
TINY = dataclasses.replace(TINY, phases=tuple(dataclasses.replace(p, steps=4, batch=4) for p in TINY.phases))


class Killed(Exception):
    pass


def tiny(family: str) -> Recipe:
    """The tiny recipe of a family: with its own way of balancing the load."""
    own = RECIPES[family]
    return dataclasses.replace(TINY, aux=own.aux, bias_step=own.bias_step)


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v3"])
def test_an_interrupted_training_ends_in_the_identical_weights(family: str, tmp_path: Path) -> None:
    whole = train(family, tmp_path / "whole", recipe=tiny(family), seed=3)

    parts = tmp_path / "parts"
    for kill_at in (2, 6, 10):  # once in each phase

        def die(progress: Progress, at: int = kill_at) -> None:
            if progress.step == at:
                raise Killed

        with pytest.raises(Killed):
            train(family, parts, recipe=tiny(family), seed=3, on_progress=die, save_every=1)
    train(family, parts, recipe=tiny(family), seed=3)

    assert digest(whole) == digest(parts)
    assert digest(whole) != digest(train(family, tmp_path / "other", recipe=tiny(family), seed=4))


def test_a_seed_that_has_converged_skips_catching_up(tmp_path: Path) -> None:
    first, extra, last = TINY.phases
    assert extra.only_above > 0
    plain = train("olmoe", tmp_path / "plain", recipe=dataclasses.replace(TINY, phases=(first, last)))
    needless = dataclasses.replace(extra, only_above=1e9)
    skipped = train("olmoe", tmp_path / "skipped", recipe=dataclasses.replace(TINY, phases=(first, needless, last)))
    needed = train("olmoe", tmp_path / "needed", recipe=TINY)
    assert digest(skipped) == digest(plain) != digest(needed)


def test_a_training_survives_kill_9(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests_testbed_tiny import TINY
from pointsman.testbed.train import train
def die(progress):
    if progress.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
train("olmoe", Path(sys.argv[1]), recipe=TINY, seed=3, on_progress=die, save_every=2)
"""
    (tmp_path / "tests_testbed_tiny.py").write_text(
        "import dataclasses\n"
        "from pointsman.testbed.recipe import Recipe\n"
        "TINY = Recipe(layers=2, hidden=16, heads=2, experts=8, top_k=2, expert_width=16)\n"
        "phases = tuple(dataclasses.replace(p, steps=4, batch=4) for p in TINY.phases)\n"
        "TINY = dataclasses.replace(TINY, phases=phases)\n"
    )
    out = tmp_path / "killed"
    died = subprocess.run([sys.executable, "-c", script, str(out)], cwd=tmp_path, check=False)
    assert died.returncode == -signal.SIGKILL
    assert digest(train("olmoe", out, recipe=TINY, seed=3)) == digest(
        train("olmoe", tmp_path / "w", recipe=TINY, seed=3)
    )


def test_a_trained_folder_is_a_standard_checkpoint(tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = train("olmoe", tmp_path / "m", recipe=TINY, on_progress=seen.append)
    assert [p.step for p in seen] == list(range(1, 13))
    assert seen[-1].eta == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert json.loads((folder / "testbed.json").read_text())["seed"] == 0
    assert not list(folder.glob("*state*"))
    with pytest.raises(RunError, match="already holds"):
        train("olmoe", folder, recipe=TINY)


def test_another_training_is_not_continued(tmp_path: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train("olmoe", tmp_path, recipe=TINY, on_progress=die, save_every=1)
    with pytest.raises(RunError, match="another training"):
        train("olmoe", tmp_path, recipe=TINY, seed=1)


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dense"):
        train("dense", tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "thesis.tex", ".unfinished/config.json"])
def test_a_folder_of_something_else_is_refused_before_training(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    seen: list[Progress] = []
    with pytest.raises(RunError, match="is not empty and holds no unfinished training"):
        train("olmoe", tmp_path, recipe=TINY, on_progress=seen.append)
    assert not seen
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [name]


def test_a_damaged_state_is_one_line_and_runs_nothing(tmp_path: Path) -> None:
    state, marker = tmp_path / "training-state.pt", tmp_path / "it-ran"
    hostile = b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    for raw in (b"", b"mine", hostile):
        state.write_bytes(raw)
        with pytest.raises(RunError) as caught:
            train("olmoe", tmp_path, recipe=TINY)
        assert str(caught.value).startswith(f"{state} is damaged. ")
        assert state.read_bytes() == raw
    assert not marker.exists()


def test_selection_biases_move_towards_an_even_load_and_others_are_rounded_to_bfloat16(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny("deepseek_v3"), bias_step=0.25)
    folder = train("deepseek_v3", tmp_path / "m", recipe=recipe)
    weights = load_file(folder / "model.safetensors")
    biases = {name: value for name, value in weights.items() if name.endswith("e_score_correction_bias")}
    assert len(biases) == TINY.layers - 1  # the first layer is dense
    for bias in biases.values():
        steps = bias / 0.25
        assert torch.equal(steps, steps.round())
        assert steps.abs().max() > 1
    assert {value.dtype for name, value in weights.items() if name not in biases} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.float32
