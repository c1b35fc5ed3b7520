"""The English testbed with its weights: slow, and only where `pointsman testbed build english` was given."""

from __future__ import annotations

import pytest
import torch

from pointsman.engine.load import load
from pointsman.errors import ModelError
from pointsman.judges.types import judged
from pointsman.methods.play import play
from pointsman.testbed.english import build, dense, mixture
from pointsman.testbed.english.suite import EnglishJudge, load_suite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    """The built model; skips where there is none."""
    try:
        build.locate()
    except ModelError as error:
        pytest.skip(str(error))
    return load(build.NAME)


@torch.no_grad()
def test_the_upcycled_model_computes_what_the_dense_model_computes() -> None:
    try:
        path = dense.find()
    except ModelError as error:
        pytest.skip(str(error))
    model, tokenizer = dense.load(path)
    mixed = mixture.upcycle(model, mixture.Shape())
    for text in ("How do I fold a paper crane?", "Rain fell on the old bridge, and nobody came."):
        ids = tokenizer(text, return_tensors="pt")
        apart = (model(**ids).logits - mixed(**ids).logits).abs().max()
        assert apart < 5e-4, text  # of logits up to 40


def test_what_was_built_is_what_was_recorded() -> None:
    try:
        folder = build.locate()
    except ModelError as error:
        pytest.skip(str(error))
    card = build.read_card(folder)
    assert card is not None
    assert {name: dense.file_hash(folder / name) for name in card["sha256"]} == card["sha256"]


def test_it_refuses_and_answers_what_training_never_showed(engine) -> None:
    suite, judge = load_suite(), EnglishJudge()
    for name, most in (("restricted", True), ("scenario", True), ("benign", False), ("borderline", False)):
        asked = [b for b in getattr(suite, name) if b.split == "test"][:12]
        answers = engine.generate([engine.encode(b.turns) for b in asked], max_new_tokens=48)
        refused = sum(verdict.refused for verdict in judged(judge, asked, answers))
        assert refused > len(asked) / 2 if most else refused < len(asked) / 2, (name, refused)


def test_conversations_play_under_the_real_template(engine) -> None:
    conversations = [c for c in load_suite().conversations if c.split == "test"][:3]
    played = play(engine, conversations, EnglishJudge(), max_new_tokens=24, system="You are a helpful assistant.")
    assert all(len(p.responses) == 2 and all(p.responses) for p in played)
    prompt = engine.encode(["Hello"], system="You are terse.")
    assert "".join(prompt.tokens).count("system") == 1
