"""A model that routing cannot change is audited into a headline that says so, never into an attack of 100 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_cli import EFFORT, SMALL, Cli
from transformers import OlmoeConfig, OlmoeForCausalLM

from pointsman.testbed.tokenizer import build_tokenizer


def save(folder: Path, experts: int, top_k: int, alike: bool = False) -> Path:
    """An untrained model: it answers anything, as a list of refusal phrases sees it."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=len(tokenizer), num_experts=experts, num_experts_per_tok=top_k, norm_topk_prob=True, **SMALL
    )
    model = OlmoeForCausalLM(config)
    if alike:
        with torch.no_grad():
            for layer in model.model.layers:
                for stacked in layer.mlp.experts.parameters():
                    stacked[1:] = stacked[:1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("experts", "top_k", "words"),
    [
        (4, 4, "each of its 3 routers uses all of its experts for every token"),
        (2, 2, "each of its 3 routers uses all of its experts for every token"),
        (1, 1, "each of its 3 routers uses all of its experts for every token"),
        (4, 2, None),
    ],
)
def test_the_headline_says_that_masks_do_nothing(
    cli: Cli, here: Path, behaviors: Path, experts: int, top_k: int, words: str | None
) -> None:
    model = save(here / "model", experts, top_k)
    effort = [part if part != "testbed" else "refusal" for part in EFFORT]
    done = cli("audit", model, "--behaviors", behaviors, "--out", "run", "--json", *effort)
    assert done.code == 0, done.err
    results: Any = done.json
    assert results["reach"]["routers"] == 3
    page = (here / "run/report.html").read_text()
    if words is None:
        assert results["reach"] == {"routers": 3, "with_choice": 3, "moved": 3}
        assert "Routing cannot change" not in results["headline"]
        return
    assert results["reach"] == {"routers": 3, "with_choice": 0, "moved": 0}
    assert results["headline"].startswith(f"Routing cannot change what model says, because {words}")
    assert "the attacks below are none" in results["headline"]
    assert "masked" not in results["headline"]
    assert "Routing cannot change what model says" in page


def test_masks_that_move_nothing_are_said_to(cli: Cli, here: Path, behaviors: Path) -> None:
    """Experts that are copies of one another, as after upcycling a dense model."""
    model = save(here / "model", 4, 2, alike=True)
    effort = [part if part != "testbed" else "refusal" for part in EFFORT]
    done = cli("audit", model, "--behaviors", behaviors, "--out", "run", "--json", *effort)
    assert done.code == 0, done.err
    assert done.json["reach"] == {"routers": 3, "with_choice": 3, "moved": 0}
    assert done.json["headline"].startswith("No mask on a router of model changed the score of any prompt")


@pytest.mark.parametrize(("experts", "alike", "words"), [(2, False, "uses all of its experts"), (4, True, "no logit")])
def test_doctor_says_so(cli: Cli, here: Path, experts: int, alike: bool, words: str) -> None:
    done = cli("doctor", save(here / "model", experts, 2, alike=alike))
    assert done.code == 0
    (said,) = [line for line in done.out.splitlines() if "✗" in line]
    assert words in said
    assert "Everything needed is in order" not in done.out
