"""The conditional part of a steering: what it does, how it is kept and read, and what two of them add up to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import pointsman
from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.low_rank import LowRank
from pointsman.routing.routers import Router
from pointsman.steering.artefact import Steering

FINGERPRINT = "OlmoeForCausalLM-0123456789abcdef"
ROUTERS = tuple(Router(n, n, f"model.layers.{n}.mlp.gate", 4 + n, 2, width=6) for n in range(3))
IDS = torch.tensor([[5, 17, 33, 9, 41, 22, 8, 30], [7, 12, 60, 3, 28, 50, 44, 2]])


def low_rank(experts: int, rank: int = 2, width: int = 6, seed: int = 0, threshold: bool = False) -> LowRank:
    rng = np.random.default_rng(seed)
    down, up = rng.normal(0, 1, (rank, width)), rng.normal(0, 0.3, (experts, rank))
    return LowRank(down, up, rng.normal(0, 0.5, rank) if threshold else None)


def made(**changes: Any) -> Steering:
    """For `ROUTERS`: layer 0 has entries, layers 1 and 2 a conditional part, of which the last has a threshold."""
    given: dict[str, Any] = dict(
        matrix=([0.5, 0.0, -1.25, 0.0], [0.0] * 5, [0.0] * 6),
        sigma=(2.0, 3.0, 0.5),
        alpha=0.75,
        phase="both",
        fingerprint=FINGERPRINT,
        base_model="allenai/OLMoE-1B-7B-0125-Instruct",
        about={"scenario": "mature_content", "seeds": [0, 1]},
        maps={2: low_rank(6, rank=1, seed=1, threshold=True), 1: low_rank(5)},
    )
    return Steering(**{**given, **changes})


def steering_for(engine: HFEngine, seed: int = 0, rank: int = 2, threshold: bool = False, **changes: Any) -> Steering:
    """A random one for an engine: a few entries in each layer, a conditional part in all but the first."""
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = dict(
        matrix=tuple(rng.normal(0, 1, r.experts) * (rng.random(r.experts) < 0.5) for r in engine.routers),
        sigma=tuple(rng.uniform(0.5, 2, len(engine.routers))),
        alpha=1.0,
        phase="both",
        fingerprint=engine.info.fingerprint,
        base_model=engine.info.name,
        maps={r.layer: low_rank(r.experts, rank, r.width or 0, seed + r.layer, threshold) for r in engine.routers[1:]},
    )
    return Steering(**{**given, **changes})


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def said(engine: HFEngine, routing: Any) -> torch.Tensor:
    with control(engine.model, routing), torch.no_grad():
        logits: torch.Tensor = engine.model(input_ids=IDS).logits
    return logits


# ---------------------------------------------------------------------- what it does


def test_it_is_a_bias_and_a_conditional_rule_at_one_strength() -> None:
    steering = made(phase="prefill")
    expected = Intervention.bias({0: [0.75, 0.0, -1.875, 0.0]}, phase="prefill") + Intervention.conditional(
        {1: low_rank(5), 2: low_rank(6, rank=1, seed=1, threshold=True)}, alpha=0.75, phase="prefill"
    )
    assert steering.intervention == expected.for_model(FINGERPRINT)
    assert list(steering.maps) == [1, 2]
    assert steering.at(1.0).intervention.rules[1].map_of[1] == low_rank(5)
    alone = made(matrix=([0.0] * 4, [0.0] * 5, [0.0] * 6), sigma=(1.0,) * 3)
    assert [rule.kind for rule in alone.intervention.rules] == ["conditional"]
    assert alone.circuit == ()
    assert repr(alone).startswith("Steering(0 of 15 entries, conditional in 2 of 3 layers, alpha=0.75")
    np.testing.assert_allclose(alone.conditional_norms[1], np.linalg.norm(low_rank(5).product, axis=1))
    steering.check(ROUTERS, FINGERPRINT)


def test_it_is_compared_by_its_numbers_and_cannot_be_changed() -> None:
    assert made() == made()
    assert hash(made()) == hash(made())
    assert made() != made(maps={1: low_rank(5)})
    assert made() != made(maps={1: low_rank(5, seed=9), 2: made().maps[2]})
    assert replace(made(), alpha=0.5) == made(alpha=0.5)
    with pytest.raises(TypeError):
        made().maps[0] = low_rank(4)  # type: ignore[index]


@pytest.mark.parametrize(
    ("maps", "match"),
    [
        ([low_rank(5)], "no mapping"),
        ({"1": low_rank(5)}, "no mapping"),
        ({True: low_rank(5)}, "no mapping"),
        ({1: np.zeros((5, 6))}, "layer 1 is ndarray"),
        ({3: low_rank(5)}, "layer 3 of a steering for 3 layers"),
        ({-1: low_rank(6)}, "layer -1"),
        ({0: low_rank(5)}, "is for 5 experts, and its matrix for 4"),
        ({1: LowRank([[1.0] * 6], [[3.4e38]] * 5)}, "finite"),  # alpha makes it too large
    ],
)
def test_what_is_no_conditional_part_is_refused(maps: Any, match: str) -> None:
    with pytest.raises(InterventionError, match=match):
        made(maps=maps, alpha=2.0)


def test_a_router_of_another_width_is_refused(engine: HFEngine) -> None:
    with pytest.raises(InterventionError, match="an input of 6, and the router has 5 and reads 7"):
        made().check([replace(r, width=7) for r in ROUTERS], FINGERPRINT)
    wrong = steering_for(engine, maps={1: low_rank(engine.routers[1].experts, width=5)})
    with pytest.raises(InterventionError, match="an input of 5"):
        engine.generate([engine.encode(["hello"])], routing=wrong, max_new_tokens=1)


def test_the_engine_takes_it_and_an_answer_does_not_depend_on_what_is_beside_it(engine: HFEngine) -> None:
    steering = steering_for(engine)
    prompts = [engine.encode(b.turns) for b in behaviours(4)]
    together = engine.generate(prompts, routing=steering, max_new_tokens=8)
    assert together == engine.generate(prompts, routing=steering.intervention, max_new_tokens=8)
    assert [c.ids for c in together] != [c.ids for c in engine.generate(prompts, max_new_tokens=8)]
    alone = [engine.generate([p], routing=steering, max_new_tokens=8)[0] for p in prompts]
    assert [c.ids for c in together] == [c.ids for c in alone]


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("changes", [{}, {"per_token": True, "phase": "decode"}, {"maps": {1: low_rank(5, rank=5)}}])
def test_what_is_saved_is_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    steering = made(**changes)
    back = pointsman.Steering.from_pretrained(steering.save_pretrained(tmp_path))
    assert back == steering
    assert back.intervention == steering.intervention
    data = json.loads((tmp_path / "steering.json").read_text())
    assert data["schema"] == "pointsman.steering/2"
    part = data["conditional"][0]
    assert (part["layer"], part["rank"], part["width"]) == (1, steering.maps[1].rank, 6)
    assert part["norm"] == pytest.approx(np.linalg.norm(steering.maps[1].product))


def test_a_constant_one_is_kept_as_it_always_was(tmp_path: Path) -> None:
    made(maps={}).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "steering.json").read_text())
    assert data["schema"] == "pointsman.steering/1"
    assert "conditional" not in data
    assert sorted(load_file(tmp_path / "steering.safetensors")) == ["layers.0", "layers.1", "layers.2"]


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "steering.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return spoil


def part(**changes: Any) -> Callable[[Path], None]:
    return spoilt(lambda data: data["conditional"][0].update(changes))


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "steering.safetensors"
        held = {key: value.copy() for key, value in load_file(path).items()}
        change(held)
        save_file(held, path)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (spoilt(lambda d: d.update(schema="pointsman.steering/1")), "is damaged"),
        (spoilt(lambda d: d.update(schema="pointsman.steering/3")), "schema 'pointsman.steering/3'"),
        (spoilt(lambda d: d.update(schema=[])), "no steering"),
        (spoilt(lambda d: d.pop("conditional")), "is damaged"),
        (spoilt(lambda d: d.update(conditional=[])), "described for no layer"),
        (spoilt(lambda d: d.update(conditional={"layer": 1})), "described for no layer"),
        (spoilt(lambda d: d.update(conditional=[1, 2])), "is damaged"),
        (spoilt(lambda d: d["conditional"].pop()), "other layers"),
        (spoilt(lambda d: d["conditional"].reverse()), "other layers"),
        (spoilt(lambda d: d.update(conditional=[d["conditional"][0]] * 2)), "other layers"),
        (part(layer="1"), "something else than layers"),
        (part(layer=7), "other layers"),
        (part(threshold=True), "other layers"),
        (part(threshold=0), "something else than layers"),
        (part(rank=3), "layer 1 is another one in the two files"),
        (part(norm=float("nan")), "layer 1 is another one"),
        (part(norm=0.0), "layer 1 is another one"),
        (part(norm="big"), "is damaged"),
        (part(norm=10**400), "is damaged"),
        (part(sha256="0" * 64), "layer 1 is another one"),
        (part(extra=1), "layer 1 is another one"),
        (tensors(lambda t: t["layers.1.up"].__setitem__((0, 0), 9.0)), "layer 1 is another one"),
        (tensors(lambda t: t["layers.1.up"].__setitem__((0, 0), np.nan)), "finite numbers"),
        (tensors(lambda t: t.pop("layers.1.up")), "other layers"),
        (tensors(lambda t: t.update({"layers.1.extra": np.zeros(1, np.float32)})), "other layers"),
        (tensors(lambda t: t.update({"layers.1.up.x": np.zeros(1, np.float32)})), "is damaged"),
        (tensors(lambda t: t.update({"layers.2.threshold": np.zeros(2, np.float32)})), "other ranks"),
    ],
)
def test_a_damaged_or_hostile_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], None], match: str) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    spoil(folder)
    with pytest.raises(InterventionError, match=match) as caught:
        Steering.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_more_experts_than_the_matrix_has_are_refused_when_read(tmp_path: Path) -> None:
    """The two parts of a file may each be sound, and not belong together."""
    made().save_pretrained(tmp_path)
    path = tmp_path / "steering.json"
    data = json.loads(path.read_text())
    data["conditional"] = [{**data["conditional"][0], "layer": 0}]
    path.write_text(json.dumps(data))
    held = load_file(tmp_path / "steering.safetensors")
    moved = {key.replace("layers.1.", "layers.0."): v for key, v in held.items() if not key.startswith("layers.2.")}
    save_file(moved, tmp_path / "steering.safetensors")
    with pytest.raises(InterventionError, match="is for 5 experts, and its matrix for 4"):
        Steering.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- the model card


def test_the_card_says_what_it_does_what_it_costs_and_whether_it_folds() -> None:
    card = made().card()
    assert "alpha times B A x" in card
    assert "| conditional part | 2 of 3 layers |" in card
    assert f"{2 * (6 + 5) + 1 * (6 + 6 + 1)} numbers in 2 layers." in card
    assert f"| 1 | 2 | no | {np.linalg.norm(low_rank(5).product):.3g} |" in card
    assert "| 2 | 1 | yes | " in card
    assert "cannot be folded into the weights: what has a threshold" in card
    assert "| 0 | 2 | -1.250 |" in card
    linear = made(maps={1: low_rank(5)})
    assert "It can be folded where the router has a bias on its logits" in linear.card()
    nothing = ([0.0] * 4, [0.0] * 5, [0.0] * 6)
    assert "It can be folded: the weight" in replace(linear, matrix=nothing).card()
    assert "ircuit" not in replace(linear, matrix=nothing).card().replace("If there is a circuit below", "")
    assert "which act on all tokens" in replace(linear, phase="decode").card()
    assert "B A" not in made(maps={}).card()


# ---------------------------------------------------------------------- sums


def test_a_sum_does_to_the_logits_what_the_two_do(engine: HFEngine) -> None:
    a = steering_for(engine, seed=1, alpha=0.5)
    b = steering_for(engine, seed=2, rank=1, alpha=2.0, maps={0: low_rank(8, 3, 32, 7), 2: low_rank(8, 1, 32, 8)})
    both = a + b
    assert both.alpha == 1.0
    assert [one.rank for one in both.maps.values()] == [3, 2, 3]
    torch.testing.assert_close(said(engine, both), said(engine, a.intervention + b.intervention), rtol=0, atol=1e-5)
    torch.testing.assert_close(said(engine, both), said(engine, b + a), rtol=0, atol=1e-5)
    assert not torch.allclose(said(engine, both), said(engine, a), rtol=0, atol=1e-3)
    twice = both.at(0.5)
    torch.testing.assert_close(said(engine, twice + twice), said(engine, both), rtol=0, atol=1e-5)


def test_sums_with_thresholds_are_exact_too(engine: HFEngine) -> None:
    """Of two with thresholds; and of one with and one without, which then has them at 0 on both sides."""
    bent = steering_for(engine, seed=1, threshold=True)
    for other in (steering_for(engine, seed=2, threshold=True), steering_for(engine, seed=3)):
        both = bent + other
        assert both.maps[1].threshold is not None
        torch.testing.assert_close(
            said(engine, both), said(engine, bent.intervention + other.intervention), rtol=0, atol=1e-5
        )


def test_a_sum_with_a_constant_one_keeps_both_parts() -> None:
    constant, zero = made(maps={}, sigma=(2.0, 3.0, 0.5)), tuple([0.0] * n for n in (4, 5, 6))
    conditional = made(matrix=zero, sigma=(1.0,) * 3, alpha=2.0, maps={1: low_rank(5)})
    for both in (constant + conditional, conditional + constant):
        assert both.sigma[0] == 2.0
        np.testing.assert_allclose(both.matrix[0], [0.375, 0, -0.9375, 0])
        assert both.maps == {1: low_rank(5).scaled(2.0)}
    assert (constant + constant).maps == {}
    assert (constant + constant).intervention == constant.at(1.5).intervention


def test_a_sum_says_of_what_and_nothing_of_what_was_measured(tmp_path: Path) -> None:
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    about = {
        "scenario": "defence", "split_seed": 3, "measured": [{"what": "defended", "before": rate, "after": rate}]
    }  # fmt: skip
    both = made(about=about) + made(about={"scenario": "mature", "method": "conditional", "split_seed": 3}, alpha=2.0)
    assert [dict(one) for one in both.about["sum"]] == [
        {"alpha": 0.75, "scenario": "defence", "split_seed": 3},
        {"alpha": 2.0, "scenario": "mature", "method": "conditional", "split_seed": 3},
    ]
    assert both.about["split_seed"] == 3
    assert "split_seed" not in (made(about=about) + made(about={"split_seed": 4})).about
    assert "| sum of | defence at alpha 0.75; mature, conditional at alpha 2.0 |" in both.card()
    assert Steering.from_pretrained(both.save_pretrained(tmp_path)) == both
    assert (both + made(maps={})).about["sum"][0]["sum"][1]["scenario"] == "mature"


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"fingerprint": "Other-0"}, WrongModel, "different models"),
        ({"phase": "decode"}, InterventionError, "phase both and decode"),
        ({"per_token": True}, InterventionError, "per_token False and True"),
        ({"matrix": ([0.0] * 4, [0.0] * 5), "sigma": (1.0,) * 2, "maps": {}}, InterventionError, "other layers"),
        ({"maps": {1: low_rank(5, rank=4)}}, InterventionError, "a rank of 6 at layer 1, .* at most 5"),
        ({"maps": {1: low_rank(5, width=7)}}, InterventionError, "inputs of 6 and 7"),
        ({"alpha": 8.0, "matrix": ([3e37] * 4, [0.0] * 5, [0.0] * 6)}, InterventionError, "finite"),
    ],
)
def test_what_does_not_add_up_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        made() + made(**changes)
    assert "\n" not in str(caught.value)


def test_steerings_for_other_weights_do_not_add_up() -> None:
    with pytest.raises(WrongModel):
        made(weights="a") + made(weights="b")
    assert (made(weights="a") + made()).weights == "a"
    with pytest.raises(TypeError):
        made() + 1  # type: ignore[operator]
