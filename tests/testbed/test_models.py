"""The shipped checkpoints: present, small, exactly the measured files, and named in errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from pointsman.errors import ModelError, UnknownName
from pointsman.testbed import models
from pointsman.testbed.models import FAMILIES, locate, shipped


def test_every_family_ships() -> None:
    assert set(FAMILIES) <= set(shipped())
    assert locate("testbed") == locate("testbed:olmoe")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_checkpoint_is_the_measured_one(name: str) -> None:
    folder = locate(f"testbed:{name}")
    config = AutoConfig.from_pretrained(folder)
    assert config.num_hidden_layers >= 12
    assert getattr(config, "num_experts", None) or config.n_routed_experts >= 32
    assert str(config.dtype).endswith("float32")  # what it computes in, whatever its files are rounded to
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 25e6


def test_all_checkpoints_together_fit_a_wheel() -> None:
    files = [f for f in models.CHECKPOINTS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6


def test_an_unknown_checkpoint_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean testbed:olmoe"):
        locate("testbed:olmo")
    with pytest.raises(UnknownName, match="not a testbed model"):
        locate("gpt2")


def test_a_changed_or_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "checkpoints"
    shutil.copytree(models.CHECKPOINTS, copy)
    monkeypatch.setattr(models, "CHECKPOINTS", copy)
    (copy / "olmoe" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="not the file that was measured"):
        locate("testbed:olmoe")
    assert locate("testbed:olmoe", verify=False) == copy / "olmoe"
    (copy / "olmoe" / "config.json").unlink()
    with pytest.raises(ModelError, match="is missing"):
        locate("testbed:olmoe")


def test_a_folder_beside_an_installed_package_is_not_taken_for_the_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install --target libs` puts the package beside whatever the user has there."""
    strange = tmp_path / "evidence" / "checkpoints"
    shutil.copytree(models.CHECKPOINTS / "olmoe", strange / "strange")
    table = {"strange": models.hash_files(strange / "strange")}
    (strange / models.HASHES).write_text(json.dumps(table), encoding="utf-8")
    monkeypatch.setattr(models, "KEPT", strange)
    assert "strange" in models.kept()  # in a source tree
    monkeypatch.setattr(models, "SOURCES", tmp_path / "libs")
    assert models.kept() == ()
    with pytest.raises(UnknownName, match="strange"):
        locate("testbed:strange")
