"""The hash of a checkpoint covers all of it, and nothing but it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from families.tiny import FAMILIES, tiny
from pointsman.routing.routers import find_routers, fingerprint
from pointsman.routing.weights import weights_hash


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_every_tensor_counts(family: str) -> None:
    model = tiny(family)
    routers = find_routers(model)
    before, of_routers = weights_hash(model), fingerprint(model, routers)
    seen = {before}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with torch.no_grad():
            flat = tensor.view(-1)
            old = flat[-1].clone()
            flat[-1] += 1.0
            changed = weights_hash(model)
            if "gate" not in name and "router" not in name:
                assert fingerprint(model, routers) == of_routers  # which is why it is not enough
            flat[-1] = old
        assert changed not in seen, name
        seen.add(changed)
    assert weights_hash(model) == before
    assert len(seen) > 20


def test_order_counts() -> None:
    model = tiny("olmoe")
    before = weights_hash(model)
    weight = model.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]]
    assert weights_hash(model) != before


def test_it_is_of_the_checkpoint_and_not_of_how_it_is_loaded(tmp_path: Path) -> None:
    model = tiny("mixtral", dtype=torch.bfloat16)
    before = weights_hash(model)
    assert weights_hash(tiny("mixtral", dtype=torch.bfloat16)) == before
    assert weights_hash(tiny("mixtral", seed=1, dtype=torch.bfloat16)) != before
    for dtype in (torch.float32, torch.float64):
        assert weights_hash(tiny("mixtral", dtype=torch.bfloat16).to(dtype)) == before
    assert weights_hash(cpu_offload(tiny("mixtral", dtype=torch.bfloat16))) == before
    assert weights_hash(disk_offload(tiny("mixtral", dtype=torch.bfloat16), tmp_path)) == before


def test_what_cannot_be_read_is_counted() -> None:
    model = tiny("olmoe")
    whole = weights_hash(model)
    model.lm_head.to("meta")
    found = weights_hash(model)
    assert found.endswith("+1")
    assert found[:16] != whole


def test_every_family_has_one() -> None:
    hashes = {weights_hash(tiny(family)) for family in FAMILIES}
    assert len(hashes) == len(FAMILIES)


def test_changes_behind_torchs_back_are_seen() -> None:
    model = tiny("olmoe")
    before = weights_hash(model)
    model.lm_head.weight.data.mul_(2)
    assert weights_hash(model) != before
    model.lm_head.weight.data.div_(2)
    assert weights_hash(model) == before


def test_scales_of_quantised_weights_count() -> None:
    model = tiny("olmoe")
    before = weights_hash(model)
    model.lm_head.weight.SCB = torch.ones(4)
    one = weights_hash(model)
    model.lm_head.weight.SCB = torch.ones(4) * 2
    assert len({before, one, weights_hash(model)}) == 3
