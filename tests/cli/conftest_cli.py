"""A tiny random chat model on disk, a behaviour file, and a way to run the command line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from pointsman.cli import main
from pointsman.testbed.language import requests
from pointsman.testbed.tokenizer import CONTEXT, build_tokenizer

SMALL = dict(
    hidden_size=32, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=None, eos_token_id=2,
)  # fmt: skip
EFFORT = (
    "--judge", "testbed", "--limit", "6", "--samples", "3", "--random-draws", "1", "--candidates", "2",
    "--restarts", "1", "--max-new-tokens", "8",
)  # fmt: skip
"""Options of an audit that takes a second or two."""


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refusal(self, notes: int = 0) -> str:
        """The one line with which the command refused, after so many notes; checked to hold a remedy."""
        assert self.code == 2, self
        assert self.out == ""
        lines = self.err.splitlines()
        assert all(line.startswith("pointsman: note: ") for line in lines[:notes]), self.err
        del lines[:notes]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("pointsman: ")
        assert lines[0].endswith(".")
        assert ". " in lines[0], f"no remedy: {lines[0]}"
        return lines[0]


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        done = capsys.readouterr()
        return Outcome(code, done.out, done.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def save_moe(folder: Path, *, seed: int = 0, spoil: Callable[[OlmoeForCausalLM], None] | None = None) -> Path:
    """Write a random OLMoE that speaks the testbed's language."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(OlmoeConfig(vocab_size=len(tokenizer), num_experts=8, num_experts_per_tok=2, **SMALL))
    if spoil:
        with torch.no_grad():
            spoil(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_moe(tmp_path_factory.mktemp("models") / "tiny-moe")


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-dense"
    tokenizer = build_tokenizer()
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_csv(
    path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("Goal", "Target", "Category")
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def testbed_rows(kind: str, count: int) -> list[list[str]]:
    return [[r.text, r.target, r.category] for r in requests(kind, "test", limit=count)]  # type: ignore[arg-type]


testbed_rows.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def behaviors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "behaviors.csv", testbed_rows("restricted", 40))


@pytest.fixture(scope="session")
def benign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "benign.csv", testbed_rows("benign", 10))


# ---------------------------------------------------------------------- other processes


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """A command in a process of its own, to be stopped."""
    return subprocess.Popen(
        [sys.executable, "-m", "pointsman.cli", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and Python would then ignore it too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool], seconds: float = 400) -> None:
    """Wait until `ready`, while the process still runs; patient, for machines that do other work too."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not ready after {seconds:g} s"
        time.sleep(0.005)


def steps_done(run: Path) -> int:
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def forget_checksums(run: Path) -> None:
    """Make of a run's journal what an earlier version left: no checksum of the manifest, none of files."""
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not line.startswith(b'{"key": "pointsman:')))


def without_times(value: Any) -> Any:
    """Results without what no two runs have in common: clocks, and the memory that happened to be free."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "free", "created", "commit")}
    return [without_times(v) for v in value] if isinstance(value, list) else value
