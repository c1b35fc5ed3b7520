"""A rule that reads what the router reads: B A x added to the logits of a router. METHODS section 10."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from engines import small_engine
from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention, Phase
from pointsman.routing.low_rank import LowRank
from pointsman.routing.routers import Router, find_routers

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [7, 12, 60, 3, 28, 50]])
PADDED = torch.tensor([[0, 0, 5, 17, 33, 9], [7, 12, 60, 3, 28, 50]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def logits(model: Any, ids: Tensor = IDS, mask: Tensor | None = None, **more: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(
            input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **more
        ).logits
    return result


def matrix_of(model: Any, router: Router) -> torch.nn.Parameter:
    (found,) = (p for p in model.get_submodule(router.path).parameters() if p.dim() == 2 and len(p) == router.experts)
    return found


def maps_of(
    model: Any, rank: int = 2, seed: int = 0, scale: float = 0.3, threshold: bool = False
) -> dict[int, LowRank]:
    rng = np.random.default_rng(seed)
    found = {}
    for router in find_routers(model):
        width = matrix_of(model, router).shape[1]
        down, up = rng.normal(0, 1, (rank, width)), rng.normal(0, scale, (router.experts, rank))
        found[router.layer] = LowRank(down, up, rng.normal(0, 0.5, rank) if threshold else None)
    return found


class Reweighted:
    """The same model with other weights in its routers: what a linear rule must equal."""

    def __init__(self, model: Any, maps: dict[int, LowRank], alpha: float = 1.0) -> None:
        self.model, self.maps, self.alpha = model, maps, alpha
        self.kept: list[tuple[torch.nn.Parameter, Tensor]] = []

    def __enter__(self) -> None:
        for router in find_routers(self.model):
            if router.layer in self.maps:
                matrix = matrix_of(self.model, router)
                self.kept.append((matrix, matrix.detach().clone()))
                with torch.no_grad():
                    matrix += self.alpha * torch.from_numpy(self.maps[router.layer].product).to(matrix)

    def __exit__(self, *error: object) -> None:
        for matrix, before in self.kept:
            with torch.no_grad():
                matrix.copy_(before)


def test_in_every_family_it_is_another_weight_of_the_router(family: str, model: Any) -> None:
    maps = maps_of(model)
    free = logits(model)
    with control(model, Intervention.conditional(maps, alpha=0.7)):
        found = logits(model)
    with Reweighted(model, maps, 0.7):
        expected = logits(model)
    assert not torch.allclose(found, free, rtol=0, atol=1e-4)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_every_familys_routers_say_how_wide_their_input_is(family: str, model: Any) -> None:
    for router in find_routers(model):
        assert router.width == matrix_of(model, router).shape[1]
        wrong = {router.layer: LowRank(np.ones((1, (router.width or 0) + 1)), np.ones((router.experts, 1)))}
        with pytest.raises(InterventionError, match="an input of"):
            Intervention.conditional(wrong).check(find_routers(model))


@pytest.fixture
def olmoe() -> Any:
    return small_engine("olmoe").model.double()


def test_a_threshold_adds_nothing_below_it(olmoe: Any) -> None:
    """Against the formula on what each router was given, layer by layer."""
    maps = maps_of(olmoe, threshold=True)
    routers, given = find_routers(olmoe), {}
    hooks = [
        olmoe.get_submodule(r.path).register_forward_pre_hook(
            lambda _, args, layer=r.layer: given.update({layer: args[0]})
        )
        for r in routers
    ]
    with control(olmoe, Intervention.conditional(maps), trace=True) as controller:
        logits(olmoe)
    with control(olmoe, Intervention.conditional({1: maps[1]}), trace=True) as only:
        one = logits(olmoe)
    for hook in hooks:
        hook.remove()
    del controller
    x = given[1].reshape(-1, given[1].shape[-1]).numpy()  # of the last forward, in which layer 1 alone was changed
    raw = only.trace()[1].logits
    inner = np.maximum(x @ maps[1].down.T - maps[1].threshold, 0)
    shift = inner @ maps[1].up.T
    assert (inner == 0).any()
    assert (inner > 0).any()
    per_token = [
        Intervention.bias({1: shift[n]}, rows=[n // IDS.shape[1]], positions=[n % IDS.shape[1]])
        for n in range(len(shift))
    ]
    every = sum(per_token[1:], per_token[0])
    with control(olmoe, every, trace=True) as constant:
        expected = logits(olmoe)
    assert np.allclose(constant.trace()[1].logits, raw)
    assert torch.allclose(one, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_phases_rows_and_positions(olmoe: Any, phase: Phase) -> None:
    """A rank-one rule whose A reads a constant is a bias where it holds, and nothing elsewhere."""
    maps = maps_of(olmoe)
    rule = Intervention.conditional(maps, phase=phase, rows=[0], positions=[1, 4])
    with control(olmoe, rule, prompt_lengths=[3, 3]):
        found = logits(olmoe)
    free = logits(olmoe)
    assert torch.equal(found[1], free[1])
    first = {"prefill": 1, "decode": 4, "both": 1}[phase]
    assert torch.equal(found[0, :first], free[0, :first])
    assert not torch.equal(found[0, first:], free[0, first:])


def test_rows_do_not_depend_on_padding_or_each_other(olmoe: Any) -> None:
    one, two = (
        Intervention.conditional(maps_of(olmoe, seed=1)),
        Intervention.conditional(maps_of(olmoe, rank=3, seed=2)),
    )
    positions = {"position_ids": (MASK.cumsum(-1) - 1).clamp(min=0)}
    with control(olmoe, [one, two]):
        both = logits(olmoe, PADDED, MASK, **positions)
    with control(olmoe, [one]):
        first = logits(olmoe, PADDED[:1, 2:])
    with control(olmoe, [two]):
        second = logits(olmoe, PADDED[1:])
    assert torch.allclose(both[0, 2:], first[0], rtol=0, atol=1e-9)
    assert torch.allclose(both[1], second[0], rtol=0, atol=1e-9)
    with control(olmoe, [one, None]):
        with_none = logits(olmoe, PADDED, MASK, **positions)
    assert torch.allclose(with_none[1], logits(olmoe, PADDED[1:])[0], rtol=0, atol=1e-9)


def test_generating_with_a_cache_is_one_forward(olmoe: Any) -> None:
    rule = Intervention.conditional(maps_of(olmoe, scale=1.0))
    with control(olmoe, rule):
        said = olmoe.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    with control(olmoe, rule, prompt_lengths=[6, 6]):
        again = logits(olmoe, said).argmax(-1)
    assert torch.equal(said[:, 6:], again[:, 5:-1])


def test_two_rules_add_up_and_strength_is_a_factor(olmoe: Any) -> None:
    a, b = maps_of(olmoe, seed=3), maps_of(olmoe, seed=4)
    with control(olmoe, Intervention.conditional(a) + Intervention.conditional(b, alpha=2.0)):
        found = logits(olmoe)
    joined = {n: LowRank(np.vstack([a[n].down, b[n].down]), np.hstack([a[n].up, 2 * b[n].up])) for n in a}
    with control(olmoe, Intervention.conditional(joined)):
        assert torch.allclose(found, logits(olmoe), rtol=0, atol=1e-6)


def test_a_mask_keeps_its_promise_over_it(olmoe: Any) -> None:
    rule = Intervention.mask([0, 1, 2], layers=1) + Intervention.conditional(maps_of(olmoe, scale=10.0))
    with control(olmoe, rule, trace=True) as controller:
        logits(olmoe)
    assert set(np.unique(controller.trace()[1].experts)) <= {0, 1, 2}


# ---------------------------------------------------------------------- as data


def test_it_is_data(tmp_path: Path) -> None:
    maps = {0: LowRank([[1.0, 2.0, 3.0]], [[0.5], [-0.5]]), 2: LowRank([[1.0, 0.0, 0.0]], [[1.0], [0.0]], [0.25])}
    rule = Intervention.conditional(maps, phase="prefill", positions=[3]) + Intervention.bias({1: [1.0, 2.0]})
    again = Intervention.load(rule.save(tmp_path / "rule"))
    assert again == rule
    assert hash(again) == hash(rule)
    assert Intervention.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    assert rule != Intervention.conditional({0: maps[0]}, phase="prefill", positions=[3])
    assert rule.rules[0].layers == (0, 2)
    strong = Intervention.conditional(maps, alpha=2.0).rules[0].map_of
    assert np.array_equal(strong[0].up, [[1.0], [-1.0]])
    assert np.array_equal(strong[2].threshold, [0.25])
    assert Intervention.conditional(maps, alpha=2.0) != Intervention.conditional(maps)
    with pytest.raises(ValueError, match="read-only"):
        maps[0].up[0] = 1.0
    assert np.array_equal(maps[0].product, [[0.5, 1.0, 1.5], [-0.5, -1.0, -1.5]])


def test_strange_files_are_refused(tmp_path: Path) -> None:
    folder = Intervention.conditional({0: LowRank([[1.0, 2.0, 3.0]], [[0.5], [-0.5]])}).save(tmp_path / "rule")
    tensors = load_file(folder / "intervention.safetensors")
    for changed in (
        {k: v for k, v in tensors.items() if not k.endswith("up")},
        {**tensors, "rules.0.layers.0.down": np.full((1, 3), np.nan, np.float32)},
        {**tensors, "rules.0.layers.0.up": np.ones((2, 2), np.float32)},
        {**tensors, "rules.0.layers.0": np.ones(2, np.float32)},
        {"rules.0.layers.x.down": np.ones((1, 3), np.float32), "rules.0.layers.x.up": np.ones((2, 1), np.float32)},
    ):
        save_file(changed, folder / "intervention.safetensors")
        with pytest.raises(InterventionError):
            Intervention.load(folder)


@pytest.mark.parametrize(
    ("down", "up", "threshold", "said"),
    [
        (np.ones((4, 3)), np.ones((8, 4)), None, "A rank of 4 for a router with an input of 3"),
        (np.ones((3, 9)), np.ones((2, 3)), None, "2 experts"),
        (np.ones((1, 3)), np.ones((8, 2)), None, "other ranks"),
        (np.ones((1, 3)), np.ones((8, 1)), [0.0, 1.0], "other ranks"),
        (np.ones(3), np.ones((8, 1)), None, "not a matrix"),
        (np.ones((1, 3)), np.full((8, 1), 1e39), None, "not a matrix of finite numbers"),
        (np.ones((1, 3)), [["a"]], None, "not numbers"),
        (np.ones((1, 3)), np.ones((8, 1)), [float("nan")], "not a vector"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(down: Any, up: Any, threshold: Any, said: str) -> None:
    with pytest.raises(InterventionError, match=said):
        LowRank(down, up, threshold)


def test_rules_without_sense_are_refused(olmoe: Any) -> None:
    one = LowRank(np.ones((1, 3)), np.ones((8, 1)))
    with pytest.raises(InterventionError, match="without layers"):
        Intervention.conditional({})
    with pytest.raises(InterventionError, match="is list"):
        Intervention.conditional({0: [1.0]})  # type: ignore[dict-item]
    with pytest.raises(InterventionError, match="finite"):
        Intervention.conditional({0: one}, alpha=float("inf"))
    with pytest.raises(InterventionError, match="no MoE layer 99"), control(olmoe, Intervention.conditional({99: one})):
        pass
    with pytest.raises(WrongModel), control(olmoe, Intervention.conditional({0: one}).for_model("other")):
        pass


def test_a_router_whose_input_cannot_be_told_refuses_it(olmoe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointsman.routing.tap._INPUT_OF", {})
    with pytest.raises(InterventionError, match="not a product of one input"):  # noqa: SIM117
        with control(olmoe, Intervention.conditional(maps_of(olmoe))):
            logits(olmoe)
