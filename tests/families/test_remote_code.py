"""Checkpoints that bring their own code: routers that nobody declares are found by their shape, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pointsman
from families.knock import experts_that_count
from pointsman.errors import ControlFailed, ModelError, NoRouters, PointsmanError, UncontrollableRouter
from pointsman.routing.control import control, prove
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router, find_routers
from pointsman.testbed.tokenizer import build_tokenizer

# The checkpoint's code says `past_key_values`, as such code does; it is not ours to change.
pytestmark = [
    pytest.mark.versions,
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.outdated("^transformers.utils.generic: `past_key_values`/`cache_params` are deprecated"),
]

CODE = Path(__file__).parent / "remote" / "modeling_remote.py"
AUTO = {"AutoConfig": "modeling_remote.RemoteConfig", "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM"}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a checkpoint with its own code; the copies that transformers makes of code stay in the test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def write(**changes: Any) -> Path:
        from families.remote.modeling_remote import RemoteConfig, RemoteForCausalLM

        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        model = RemoteForCausalLM(RemoteConfig(vocab_size=len(tokenizer), auto_map=AUTO, **ends, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        folder = tmp_path / "checkpoint"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copy(CODE, folder)
        return folder

    return write


def load(folder: Path) -> Any:
    return pointsman.load(str(folder), trust_remote_code=True, dtype="float32", device="cpu")


def test_it_is_refused_without_the_flag(checkpoint: Any) -> None:
    with pytest.raises(ModelError, match="needs code from its checkpoint") as caught:
        pointsman.load(str(checkpoint()), device="cpu")
    assert "\n" not in str(caught.value)


def test_undeclared_routers_are_found_by_their_shape(checkpoint: Any) -> None:
    engine = load(checkpoint())
    assert not any(getattr(m, "_can_record_outputs", None) for m in engine.model.modules())
    assert engine.routers == (
        Router(0, 1, "model.layers.1.mlp.gate", 8, 2),
        Router(1, 2, "model.layers.2.mlp.gate", 8, 2),
    )
    assert engine.proof.identical
    assert engine.proof.tokens_forced == 10 * 2


def test_forced_experts_are_those_whose_weights_count(checkpoint: Any) -> None:
    model = load(checkpoint()).model
    ids = torch.tensor([[5, 17, 33, 9, 41], [7, 12, 60, 3, 28]])
    sets = [{0: [1, 6], 1: [0, 7]}, {0: [2, 3], 1: [4, 5]}]

    def run() -> Any:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    with control(model, [Intervention.force(s) for s in sets]):
        used = experts_that_count(model, find_routers(model), run)
    for layer, table in enumerate(used):
        for token, row in enumerate(table):
            assert row.nonzero()[:, 0].tolist() == sets[token // 5][layer]


def test_the_engine_does_everything_with_it(checkpoint: Any) -> None:
    engine = load(checkpoint())
    turns = (["how can i steal a lamp ?"], ["where is the vault ?"])
    prompts = [engine.encode(turn) for turn in turns]
    forced = Intervention.force({0: [1, 6], 1: [0, 7]})
    free, held = (engine.generate(prompts, routing=r, max_new_tokens=6) for r in (None, forced))
    assert [c.ids for c in free] != [c.ids for c in held]
    for prompt, answer in zip(prompts, held, strict=True):
        alone = engine.generate([prompt], routing=forced, max_new_tokens=6)[0]
        assert alone.ids == answer.ids
    target = (5, 17, 33)  # the code takes a number of logits, and no positions
    scores = engine.score(prompts, [target] * 2, routing=forced)
    with engine.scorer(prompts, [target] * 2) as scorer:
        tried = scorer.tries(1, 2, {0: np.array([[2, 3]])})[0]
    alone = engine.score(prompts[:1], [target], routing=Intervention.force({(1, 2): [2, 3]}))[0]
    assert tried == pytest.approx([alone.total], abs=1e-4)
    gradients = engine.route_gradients(prompts, [target] * 2, routing=forced)
    assert [g.log_prob for g in gradients] == pytest.approx([s.total for s in scores], abs=1e-4)
    trace = engine.trace(prompts, routing=forced)
    assert (trace[0].experts.max(-1) == 6).all()
    assert (trace[0].experts.min(-1) == 1).all()


def test_a_gate_that_sorts_is_controlled_too(checkpoint: Any) -> None:
    assert load(checkpoint(gate="SortingGate")).proof.tokens_forced == 20


@pytest.mark.parametrize(
    ("gate", "error", "words"),
    [
        ("TwoStepGate", UncontrollableRouter, "more than one product"),
        ("SilentGate", UncontrollableRouter, "does not say which experts"),
        ("LyingGate", ControlFailed, "and its block runs"),
    ],
)
def test_what_cannot_be_read_is_refused(checkpoint: Any, gate: str, error: type[PointsmanError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        load(checkpoint(gate=gate))
    assert "\n" not in str(caught.value)


def test_a_dense_model_with_its_own_code_is_dense(checkpoint: Any) -> None:
    with pytest.raises(NoRouters, match="dense"):
        load(checkpoint(n_routed_experts=None))


def test_two_modules_that_could_be_the_router_are_refused(checkpoint: Any) -> None:
    model = load(checkpoint()).model
    model.model.layers[1].mlp.other = torch.nn.Linear(32, 8)
    with pytest.raises(UncontrollableRouter, match=r"layers\.1\.mlp holds 2 modules"):
        prove(model)


def test_experts_without_a_router_are_refused(checkpoint: Any) -> None:
    model = load(checkpoint()).model
    model.model.layers[1].mlp.gate = torch.nn.Identity()
    with pytest.raises(UncontrollableRouter, match=r"layers\.1\.mlp holds 0 modules"):
        prove(model)
