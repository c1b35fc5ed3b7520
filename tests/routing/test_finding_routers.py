from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.utils.output_capturing import OutputRecorder

from families.tiny import tiny
from pointsman.errors import UncontrollableRouter
from pointsman.routing.routers import Router, find_routers, fingerprint

EXPECTED = {
    "olmoe": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "mixtral": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "qwen2_moe": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "qwen3_moe": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "gpt_oss": Router(1, 1, "model.layers.1.mlp.router", 8, 2),
    "phimoe": Router(1, 1, "model.layers.1.mlp.router", 8, 2),
    "deepseek_v2": Router(1, 2, "model.layers.2.mlp.gate", 16, 2, 4, 2),  # the first layer is dense
    "deepseek_v3": Router(1, 2, "model.layers.2.mlp.gate", 16, 3, 4, 2),
    "qwen3_next": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "hunyuan_v1_moe": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
    "granitemoe": Router(1, 1, "model.layers.1.block_sparse_moe.router", 8, 2),
    "llama4_text": Router(1, 1, "model.layers.1.feed_forward.router", 8, 2),
    "jamba": Router(1, 1, "model.layers.1.feed_forward.router", 8, 2),
    "glm4_moe": Router(1, 2, "model.layers.2.mlp.gate", 16, 3, 4, 2),
    "dots1": Router(1, 2, "model.layers.2.mlp.gate", 16, 3, 4, 2),
    "ernie4_5_moe": Router(1, 2, "model.layers.2.mlp.gate", 8, 2),
    "minimax_m2": Router(1, 1, "model.layers.1.mlp.gate", 8, 2),
}


def test_every_router_is_found(family: str, model: Any) -> None:
    routers = find_routers(model)
    assert len(routers) == 4 - EXPECTED[family].decoder_layer
    assert routers[1] == EXPECTED[family]
    assert [r.layer for r in routers] == list(range(len(routers)))


def test_depth_order_beyond_nine_layers() -> None:
    routers = find_routers(tiny("olmoe", num_hidden_layers=12))
    assert [r.decoder_layer for r in routers] == list(range(12))


def test_the_base_model_has_them_too(model: Any) -> None:
    inner, outer = find_routers(model.model), find_routers(model)
    assert [f"model.{r.path}" for r in inner] == [r.path for r in outer]
    assert [(r.layer, r.decoder_layer, r.experts) for r in inner] == [
        (r.layer, r.decoder_layer, r.experts) for r in outer
    ]


def test_more_experts_per_token_than_there_are_is_no_new_architecture() -> None:
    with pytest.raises(UncontrollableRouter) as caught:
        find_routers(tiny("olmoe", num_experts_per_tok=99))
    assert str(caught.value) == (
        "The configuration asks for 99 experts per token, and router model.layers.0.mlp.gate has 8. "
        "Correct config.json, or give the checkpoint's own."
    )


def test_greedy_deepseek_v2_has_no_groups() -> None:
    model = tiny("deepseek_v2", topk_method="greedy")
    assert {(r.groups, r.groups_used) for r in find_routers(model)} == {(1, 1)}


def test_a_plain_linear_as_router_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """So transformers declared Jamba's once: its block chose the experts, where control could not be checked."""
    model = tiny("olmoe")
    for layer in model.model.layers:
        layer.mlp.gate = torch.nn.Linear(32, 8, bias=False)
    declared = {"router_logits": OutputRecorder(torch.nn.Linear, layer_name="gate")}
    for owner in (model, model.model):
        monkeypatch.setattr(owner, "_can_record_outputs", declared)
    with pytest.raises(
        UncontrollableRouter, match=r"Router model\.layers\.0\.mlp\.gate is a plain Linear.*newer version"
    ):
        find_routers(model)


def test_fingerprints_name_the_architecture(family: str, model: Any) -> None:
    name, _, digits = fingerprint(model, find_routers(model)).rpartition("-")
    assert name == type(model).__name__
    assert len(digits) == 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_do_not_enter_the_fingerprint(dtype: torch.dtype) -> None:
    model = tiny("qwen3_moe", dtype=dtype)
    before = fingerprint(model, find_routers(model))
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj += 1
    assert fingerprint(model, find_routers(model)) == before
