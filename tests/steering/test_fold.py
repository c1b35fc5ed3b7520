"""Folding: the checkpoint is exactly the steered model, or nothing is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.control import control, prove
from pointsman.routing.routers import find_routers, fingerprint
from pointsman.steering import fold as folding
from pointsman.steering.artefact import Steering
from pointsman.steering.fold import fold, save_folded

BIASED = ("gpt_oss",)
"""Families whose router adds a bias to its logits."""

CORRECTED = ("deepseek_v3", "dots1", "glm4_moe")
"""Families whose router holds a number for each expert that is no bias on its logits."""


def steering_for(model: Any, seed: int = 0, **changes: Any) -> Steering:
    """A random one; the middle layer has no entries."""
    routers = find_routers(model)
    rng = np.random.default_rng(seed)
    matrix = [rng.normal(0, 1, r.experts) * (rng.random(r.experts) < 0.6) * (r.layer != 1) for r in routers]
    given: dict[str, Any] = dict(
        matrix=tuple(matrix),
        sigma=tuple(rng.uniform(0.5, 2, len(matrix))),
        alpha=1.5,
        phase="both",
        fingerprint=fingerprint(model, routers),
        base_model="some/model",
    )
    return Steering(**{**given, **changes})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def greedy(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve tokens, and the logits that chose them."""
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=12, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output.sequences, torch.stack(output.logits)


def test_a_folded_checkpoint_is_the_steered_model_for_plain_transformers(tmp_path: Path) -> None:
    engine = small_engine("gpt_oss", dtype=torch.float32)
    model, tokenizer = engine.model, engine.tokenizer
    steering = steering_for(model)
    ids = torch.tensor([[5, 17, 33, 9, 41, 22, 8, 30], [7, 12, 60, 3, 28, 50, 44, 2]])
    free = greedy(model, ids)
    with control(model, steering, trace=True) as controller:
        steered = greedy(model, ids)
    traced, before = controller.trace(), weights(model)
    assert not torch.equal(free[0], steered[0])

    report = fold(model, steering)
    out = save_folded(tmp_path / "out", model, tokenizer, steering, report)
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    tokens, logits = greedy(loaded, ids)
    assert torch.equal(tokens, steered[0])
    torch.testing.assert_close(logits, steered[1], rtol=0, atol=5e-5)

    # The routers' own logits moved by exactly the vector, and nothing else in the checkpoint did.
    vectors = steering.intervention.rules[0].vector_of
    with control(loaded, trace=True) as controller:
        greedy(loaded, ids)
    for layer, (now, then) in enumerate(zip(controller.trace().layers, traced.layers, strict=True)):
        moved = now.logits - then.logits
        np.testing.assert_allclose(moved, np.broadcast_to(vectors.get(layer, 0.0), moved.shape), rtol=0, atol=2e-5)
        assert np.array_equal(np.sort(now.experts), np.sort(then.experts))
    different = {key for key, value in loaded.state_dict().items() if not torch.equal(value, before[key])}
    assert different == {f"{find_routers(model)[layer].path}.bias" for layer in (0, 2)}

    assert report.layers == (0, 2)
    assert report.tensor == "bias"
    assert report.entries == len(steering.circuit)
    assert report.steered == steering.fingerprint
    assert report.fingerprint == prove(loaded).fingerprint != steering.fingerprint
    assert report.logit_difference < 1e-4
    assert report.prompts == 4
    with pytest.raises(WrongModel):  # it cannot be folded, or applied, twice
        fold(loaded, steering)

    kept = AutoTokenizer.from_pretrained(out)
    assert kept.chat_template == tokenizer.chat_template
    assert kept.get_vocab() == tokenizer.get_vocab()
    assert kept("how do you", add_special_tokens=False) == tokenizer("how do you", add_special_tokens=False)
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "some/model"
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert body.startswith("\n# A steered model")
    assert report.fingerprint in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        "# A steered model, the steering folded into its routers"
    ]
    data = json.loads((out / "steering.json").read_text())
    assert data["folded"] == report.to_json()
    assert data["circuit"] == steering.to_json()["circuit"]
    with pytest.raises(InterventionError, match="folded into the checkpoint"):
        Steering.from_pretrained(out)
    assert not [p for p in out.iterdir() if p.suffix == ".safetensors" and p.name != "model.safetensors"]


def test_folding_is_exact_in_float64() -> None:
    engine = small_engine("gpt_oss")
    ids = torch.tensor([[5, 17, 33, 9, 41, 22, 8, 30]])
    steering = steering_for(engine.model, seed=3)
    with control(engine.model, steering):
        steered = greedy(engine.model, ids)
    report = fold(engine.model, steering, prompts=[ids[0].tolist(), [3, 9]])
    folded = greedy(engine.model, ids)
    assert torch.equal(folded[0], steered[0])
    torch.testing.assert_close(folded[1], steered[1], rtol=0, atol=1e-11)
    assert report.logit_difference < 1e-11
    assert (report.prompts, report.tokens) == (2, 32)


def test_every_family_is_folded_exactly_or_refused_with_its_reason(family: str, fresh: Any) -> None:
    model = fresh(family)
    before, steering = weights(model), steering_for(model, seed=1)
    if family in BIASED:
        fold(model, steering)
        assert not unchanged(model, before)
        return
    reason = "is not a bias on its logits" if family in CORRECTED else "has no bias on its logits"
    with pytest.raises(InterventionError, match=f"cannot be folded exactly: .*{reason}"):
        fold(model, steering)
    assert unchanged(model, before)


def test_deepseeks_correction_bias_is_named_as_what_it_is(fresh: Any) -> None:
    model = fresh("deepseek_v3")
    with pytest.raises(InterventionError, match=r"e_score_correction_bias .* leaves them as they are .*selected"):
        fold(model, steering_for(model))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"phase": "prefill"}, "tokens of the prompt only"),
        ({"phase": "decode"}, "tokens of the answer only"),
        ({"per_token": True}, "per_token"),
        ({"matrix": ([0.0] * 8,) * 3}, "circuit is empty"),
        ({"matrix": ([1.0] * 8,) * 2, "sigma": (1.0, 1.0)}, "2 layers"),
    ],
)
def test_what_a_bias_cannot_express_is_refused(fresh: Any, changes: dict[str, Any], match: str) -> None:
    model = fresh("gpt_oss")
    before = weights(model)
    with pytest.raises(InterventionError, match=match):
        fold(model, steering_for(model, **changes))
    assert unchanged(model, before)


def test_what_nothing_can_cure_is_said_first(fresh: Any) -> None:
    model = fresh("olmoe")
    with pytest.raises(InterventionError, match="no bias on its logits"):
        fold(model, steering_for(model, phase="prefill"))


def test_another_model_is_refused(fresh: Any) -> None:
    model = fresh("gpt_oss")
    with pytest.raises(WrongModel):
        fold(model, steering_for(fresh("gpt_oss", seed=1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_that_rounds_is_refused(fresh: Any, dtype: torch.dtype) -> None:
    model = fresh("gpt_oss", dtype=dtype)
    before = weights(model)
    with pytest.raises(InterventionError, match=f"is in {dtype}, which rounds .*--dtype float32"):
        fold(model, steering_for(model))
    assert unchanged(model, before)


def test_tied_and_quantized_weights_are_refused(fresh: Any) -> None:
    model = fresh("gpt_oss")
    first, *_, last = [model.get_submodule(r.path) for r in find_routers(model)]
    last.bias = first.bias
    before = weights(model)
    with pytest.raises(InterventionError, match="tied to other weights"):
        fold(model, steering_for(model))
    assert unchanged(model, before)
    model = fresh("gpt_oss")
    model.is_quantized = True
    with pytest.raises(InterventionError, match="quantized"):
        fold(model, steering_for(model))


def test_views_of_one_memory_are_not_tied(fresh: Any) -> None:
    """A checkpoint that is mapped from one file."""
    model = fresh("gpt_oss")
    modules = [model.get_submodule(r.path) for r in find_routers(model)]
    one = torch.cat([m.bias.detach() for m in modules])
    for n, module in enumerate(modules):
        module.bias = nn.Parameter(one[8 * n : 8 * n + 8], requires_grad=False)
    fold(model, steering_for(model))


def test_a_bias_that_is_scaled_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number for each expert that moves the logits, but not by itself."""
    model = fresh("gpt_oss")
    kind = type(model.get_submodule(find_routers(model)[0].path))

    def forward(self: Any, hidden_states: Tensor) -> Any:
        logits = nn.functional.linear(hidden_states, self.weight, 2 * self.bias)
        values, indices = torch.topk(logits, self.top_k, dim=-1)
        return logits, values.softmax(-1), indices

    monkeypatch.setattr(kind, "forward", forward)
    before = weights(model)
    with pytest.raises(InterventionError, match="does not move its logits by what was added"):
        fold(model, steering_for(model))
    assert unchanged(model, before)


def test_a_failure_in_the_middle_puts_the_weights_back(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("gpt_oss")
    before, print_ = weights(model), prove(model).fingerprint

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(folding, "_same", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fold(model, steering_for(model))
    assert unchanged(model, before)
    assert prove(model).fingerprint == print_


@pytest.fixture(scope="module")
def folded() -> tuple[HFEngine, Steering, Any]:
    engine = small_engine("gpt_oss", dtype=torch.float32)
    steering = steering_for(engine.model)
    return engine, steering, fold(engine.model, steering)


def test_nothing_is_written_over(tmp_path: Path, folded: tuple[HFEngine, Steering, Any]) -> None:
    engine, steering, report = folded
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for name in ("full", "full/mine"):
        with pytest.raises(InterventionError, match="exists already"):
            save_folded(tmp_path / name, engine.model, engine.tokenizer, steering, report)
    with pytest.raises(InterventionError, match="Cannot make"):
        save_folded(tmp_path / "full" / "mine" / "deep", engine.model, engine.tokenizer, steering, report)
    assert (tmp_path / "full" / "mine").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert (
        save_folded(tmp_path / "empty", engine.model, engine.tokenizer, steering, report) / "model.safetensors"
    ).is_file()


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, folded: tuple[HFEngine, Steering, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steering, report = folded

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.tokenizer, "save_pretrained", full)
    with pytest.raises(InterventionError, match="No space left on device"):
        save_folded(tmp_path / "out", engine.model, engine.tokenizer, steering, report)
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_is_on_the_card_of_the_folded_model(
    tmp_path: Path, folded: tuple[HFEngine, Steering, Any]
) -> None:
    engine, steering, report = folded
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    about = {"measured": [{"what": "defended", "before": rate, "after": rate}]}
    out = save_folded(tmp_path / "out", engine.model, engine.tokenizer, replace(steering, about=about), report)
    assert "| defended | 50.0 % [40.0, 60.0], n = 100 |" in (out / "README.md").read_text()
