"""``chat``: a conversation under a mask that can be switched, from lines that are piped in."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest_cli import Cli, Outcome

import pointsman
from pointsman.cli.chat import harmless
from pointsman.engine.hf import HFEngine
from pointsman.errors import BadLogits
from pointsman.routing.low_rank import LowRank
from pointsman.steering.artefact import Steering
from pointsman.testbed.language import requests, usual_refusal
from pointsman.testbed.plugin import TestbedJudge

BENIGN = next(iter(requests("benign", "test", limit=1)))
RESTRICTED = next(iter(requests("restricted", "test", limit=1)))

Talk = Callable[..., Outcome]


@pytest.fixture
def talk(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Run ``chat`` on these lines."""

    def run(*arguments: str | Path, lines: list[str]) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return cli("chat", *arguments)

    return run


@pytest.fixture(scope="module")
def testbed() -> HFEngine:
    return pointsman.load("testbed")


@pytest.fixture(scope="module")
def mask(testbed: HFEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random steering of the testbed, strong enough to change what it says."""
    rng = np.random.default_rng(0)
    steering = Steering(
        matrix=tuple(rng.normal(0, 2, r.experts) for r in testbed.routers),
        sigma=(1.0,) * len(testbed.routers),
        alpha=1.0,
        phase="both",
        fingerprint=testbed.info.fingerprint,
        base_model="testbed",
        about={"scenario": "nonsense"},
    )
    return steering.save_pretrained(tmp_path_factory.mktemp("steering") / "mask")


def answer(engine: HFEngine, turns: list[str], answers: list[str] | None = None, routing: Any = None) -> str:
    prompt = engine.encode(turns, answers=answers or [])
    return engine.generate([prompt], routing=routing, max_new_tokens=24)[0].text


def test_it_talks_without_a_mask_and_judges_on_the_testbed(talk: Talk) -> None:
    done = talk("testbed", lines=[BENIGN.text, "", "hello", "/reset", RESTRICTED.text])
    assert done.code == 0, done.err
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "testbed, OlmoeForCausalLM. /help lists the commands."
    assert lines[1] == f"Judge: testbed, version {TestbedJudge.version}."
    assert lines[2] == f"[no mask] > {BENIGN.text}"
    assert lines[3] == BENIGN.gold
    assert lines[4] == "testbed: correct (the right answer, word for word)"
    assert "testbed: unscored (the request is not one of the testbed's language)" in lines
    assert lines[-3] == usual_refusal(RESTRICTED.category)
    assert lines[-2] == "testbed: refused (the refusal, word for word)"
    assert lines[-1] == "[no mask] > "


def test_the_mask_is_switched_in_the_middle_of_a_conversation(talk: Talk, mask: Path, testbed: HFEngine) -> None:
    """Every answer is the engine's own, under the mask in force, after the whole conversation so far."""
    said = [BENIGN.text, "again", RESTRICTED.text, "more"]
    done = talk(
        "testbed", "--steering", mask, "--max-new-tokens", "24",
        lines=[said[0], "/off", said[1], "/on", "/alpha 0.25", said[2], "/reset", said[3]],
    )  # fmt: skip
    assert done.code == 0, done.err
    steering = Steering.from_pretrained(mask)
    weak = steering.at(0.25)
    first = answer(testbed, said[:1], routing=steering)
    second = answer(testbed, said[:2], [first])
    third = answer(testbed, said[:3], [first, second], weak)
    fourth = answer(testbed, said[3:], routing=weak)
    shown = [line for line in done.out.splitlines() if not line.startswith(("testbed", "Judge", "Mask", "(cut off"))]
    assert shown == [
        f"[mask on, alpha 1.0] > {said[0]}", first,
        "[mask on, alpha 1.0] > /off", "From here on: mask off, alpha 1.0.",
        f"[mask off, alpha 1.0] > {said[1]}", second,
        "[mask off, alpha 1.0] > /on", "From here on: mask on, alpha 1.0.",
        "[mask on, alpha 1.0] > /alpha 0.25", "From here on: mask on, alpha 0.25.",
        f"[mask on, alpha 0.25] > {said[2]}", third,
        "[mask on, alpha 0.25] > /reset", "The conversation is forgotten.",
        f"[mask on, alpha 0.25] > {said[3]}", fourth,
        "[mask on, alpha 0.25] > ",
    ]  # fmt: skip
    assert first != answer(testbed, said[:1])
    assert "Mask of nonsense: 384 experts pushed at all tokens." in done.out


def test_a_conditional_mask_is_talked_to_like_any_other(
    talk: Talk, mask: Path, testbed: HFEngine, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    maps = {
        r.layer: LowRank(rng.normal(0, 1, (2, r.width or 0)), rng.normal(0, 3, (r.experts, 2)))
        for r in testbed.routers[:2]
    }
    both = replace(Steering.from_pretrained(mask), maps=maps)
    alone = replace(both, matrix=tuple(np.zeros(r.experts) for r in testbed.routers))
    for steering, does in (
        (both, "384 experts pushed and 2 routers moved by what they read"),
        (alone, "2 routers moved by what they read"),
    ):
        folder = steering.save_pretrained(tmp_path / does[:3])
        done = talk("testbed", "--steering", folder, "--max-new-tokens", "24", lines=["hello", "/alpha 0.5", "hello"])
        assert f"Mask of nonsense: {does} at all tokens." in done.out
        first = answer(testbed, ["hello"], routing=steering)
        second = answer(testbed, ["hello"] * 2, [first], routing=steering.at(0.5))
        assert first in done.out.splitlines()
        assert second in done.out.splitlines()
        assert first != answer(testbed, ["hello"])


def test_commands_that_make_no_sense_are_said_and_forgiven(talk: Talk, mask: Path) -> None:
    done = talk("testbed", "--steering", mask, lines=["/help", "/alpha x", "/alpha 9", "/alpha", "/no", "/quit", "hi"])
    assert done.code == 0
    for line in (
        "/alpha X   change its strength (0 < X <= 8)",
        "x is no number. Example: /alpha 0.5",
        "An alpha of 9. Use one above 0 and at most 8; no steering is alpha 0.",
        "Now: mask on, alpha 1.0.",
        "There is no /no. Commands: /on, /off, /alpha, /reset, /help, /quit.",
    ):
        assert line in done.out.splitlines()
    assert done.out.splitlines()[-1] == "[mask on, alpha 1.0] > /quit"
    done = talk("testbed", lines=["/off", "/alpha 2"])
    assert done.out.count("There is no mask: start with --steering FOLDER.") == 2


def test_a_run_that_found_a_steering_will_do(talk: Talk, mask: Path, here: Path) -> None:
    shutil.copytree(mask, here / "run" / "artefacts" / "steering")
    done = talk("testbed", "--steering", "run", lines=["/quit"])
    assert "[mask on, alpha 1.0] > /quit" in done.out


def test_another_judge_is_named_and_another_model_brings_none(talk: Talk, model: Path) -> None:
    done = talk(model, "--judge", "refusal", "--max-new-tokens", "3", lines=["hello"])
    assert done.code == 0, done.err
    assert "Judge: refusal" in done.out
    assert "\nrefusal: " in done.out
    assert "(cut off after 3 tokens)" in done.out
    assert "refusal" not in talk(model, "--max-new-tokens", "3", lines=["hello"]).out


def test_what_cannot_be_begun_is_one_line(talk: Talk, mask: Path, model: Path, here: Path) -> None:
    assert "There is no folder none" in talk("testbed", "--steering", "none", lines=[]).refusal()
    assert "This steering is for testbed" in talk(model, "--steering", mask, lines=[]).refusal()
    assert "Unknown judge 'testbad'. Did you mean testbed?" in talk(model, "--judge", "testbad", lines=[]).refusal()
    other = replace(Steering.from_pretrained(mask), base_model="x").save_pretrained(here / "other")
    (other / "steering.safetensors").write_bytes(b"x")
    assert "is damaged" in talk("testbed", "--steering", other, lines=[]).refusal()


def test_a_conversation_that_grows_too_long_loses_the_last_turn_only(talk: Talk) -> None:
    done = talk("testbed", lines=[BENIGN.text, "hello " * 300, BENIGN.text])
    assert done.code == 0
    assert "This turn is forgotten; /reset begins anew." in done.out
    assert done.out.count("testbed: ") == 2


def test_an_answer_that_fails_or_is_stopped_loses_its_turn_only(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    original, errors = HFEngine.generate, iter([KeyboardInterrupt(), BadLogits("NaN", "Another dtype"), None])
    asked: list[int] = []

    def generate(self: HFEngine, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts[0]))
        error = next(errors)
        if error is not None:
            raise error
        return original(self, prompts, **options)

    monkeypatch.setattr(HFEngine, "generate", generate)
    done = talk("testbed", lines=[BENIGN.text] * 3)
    assert done.code == 0
    assert "Stopped; this turn is forgotten." in done.out
    assert "NaN. Another dtype. This turn is forgotten." in done.out
    assert BENIGN.gold in done.out.splitlines()
    assert len(set(asked)) == 1  # none of the forgotten turns was in the next conversation


def test_ctrl_c_at_the_prompt_leaves(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> Iterator[str]:
        yield "/help"
        raise KeyboardInterrupt

    lines = read()
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    done = talk("testbed", lines=[])
    assert done.code == 0
    assert done.err == ""


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2Jb\nc\td\r\n[bold]e\x07\x9b") == "a [2Jb\nc   d\n[bold]e  "


def test_input_that_is_no_text_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    done = cli("chat", "testbed")
    assert done.code == 2
    assert done.err == "pointsman: The input is not UTF-8 text. Pipe in UTF-8.\n"
