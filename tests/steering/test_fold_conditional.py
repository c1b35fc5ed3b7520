"""Folding a conditional part into the weights of the routers: in every family, exactly, or nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from engines import behaviours, small_engine
from pointsman.errors import ControlFailed, InterventionError
from pointsman.routing.control import control, prove
from pointsman.routing.low_rank import LowRank
from pointsman.routing.routers import find_routers, fingerprint, router_matrix
from pointsman.routing.trace import LayerTrace, RouteTrace
from pointsman.steering import fold as folding
from pointsman.steering.artefact import Steering
from pointsman.steering.fold import cannot_fold, fold, save_folded

NEW = 10  # tokens that are generated


def steering_for(model: Any, seed: int = 0, rank: int = 2, **changes: Any) -> Steering:
    """A random one without a constant part; the middle layer is left alone."""
    routers = find_routers(model)
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = dict(
        matrix=tuple(np.zeros(r.experts) for r in routers),
        sigma=(1.0,) * len(routers),
        alpha=1.5,
        phase="both",
        fingerprint=fingerprint(model, routers),
        base_model="some/model",
        maps={
            r.layer: LowRank(rng.normal(0, 1, (rank, r.width or 0)), rng.normal(0, 0.2, (r.experts, rank)))
            for r in routers
            if r.layer != 1
        },
    )
    return Steering(**{**given, **changes})


def entries(model: Any, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(0, 1, r.experts) for r in find_routers(model))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def prompts(count: int, seed: int = 5) -> list[list[int]]:
    """Random ones of several lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 60, size=3 + n % 13).tolist() for n in range(count)]


def greedy(model: Any, asked: list[list[int]], steering: Steering | None = None) -> list[list[int]]:
    """What the model says, prompts of one length together and without padding."""
    said: dict[int, list[int]] = {}
    with control(model, steering), torch.no_grad():
        for length in sorted({len(prompt) for prompt in asked}):
            rows = [n for n, prompt in enumerate(asked) if len(prompt) == length]
            ids = torch.tensor([asked[n] for n in rows])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
            said |= dict(zip(rows, out[:, length:].tolist(), strict=True))
    return [said[n] for n in range(len(asked))]


def folds_and_comes_back(family: str, folder: Path, count: int) -> None:
    """Folded, saved and read again, a model says to every prompt what the steered one said."""
    engine = small_engine(family)
    model, steering, asked = engine.model, steering_for(engine.model, seed=2), prompts(count)
    free, steered, before = greedy(model, asked), greedy(model, asked, steering), weights(model)
    assert free != steered
    report = fold(model, steering)
    assert (report.tensor, report.entries, report.rank) == (None, 0, 2)
    assert report.layers == tuple(steering.maps)
    assert greedy(model, asked) == steered
    save_folded(folder, model, engine.tokenizer, steering, report)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    loaded.set_experts_implementation("eager")
    assert greedy(loaded, asked) == steered
    assert prove(loaded).fingerprint == report.fingerprint != steering.fingerprint
    routers = find_routers(model)
    different = {key for key, value in loaded.state_dict().items() if not torch.equal(value, before[key])}
    assert different == {f"{routers[layer].path}.{report.weight}" for layer in report.layers}


def test_in_every_family_the_folded_checkpoint_is_the_steered_model(family: str, tmp_path: Path) -> None:
    folds_and_comes_back(family, tmp_path / "out", 6)


@pytest.mark.slow
def test_on_many_prompts_too(family: str, tmp_path: Path) -> None:
    folds_and_comes_back(family, tmp_path / "out", 200)


def test_every_family_says_whether_it_folds_and_stays_as_it_is(family: str, fresh: Any) -> None:
    model = fresh(family)
    before, print_ = weights(model), prove(model).fingerprint
    assert cannot_fold(model, "conditional") == ""
    why = cannot_fold(model, "constant")
    assert (why == "") == (family == "gpt_oss")
    assert why == "" or "bias on its logits" in why
    assert unchanged(model, before)
    assert prove(model).fingerprint == print_


def test_a_weight_becomes_w_plus_alpha_b_a(fresh: Any) -> None:
    model = fresh("qwen2_moe", dtype=torch.float32)
    steering = steering_for(model)
    routers = find_routers(model)
    matrices = [router_matrix(model.get_submodule(r.path), r.experts) for r in routers]
    before = [None if m is None else m.detach().double() for m in matrices]
    report = fold(model, steering)
    assert report.rounding < 1e-6
    for router, then, now in zip(routers, before, matrices, strict=True):
        assert then is not None
        assert now is not None
        one = steering.maps.get(router.layer)
        added = np.zeros(now.shape) if one is None else 1.5 * one.product
        torch.testing.assert_close(now.detach().double(), then + torch.from_numpy(added), rtol=1e-6, atol=1e-6)


def test_whatever_an_engine_does_it_does_to_the_folded_model_as_well() -> None:
    """Scores, also of rows that share a prompt, traces and learning's scorer: the steered engine and the folded one."""
    engine, other = small_engine("olmoe"), small_engine("olmoe")
    steering = steering_for(engine.model)
    fold(other.model, steering)
    asked = behaviours(3)
    given = [engine.encode(b.turns) for b in asked] * 2
    targets = [engine.encode_target(b.target) for b in asked] + [engine.encode_target("no")] * 3
    free = [s.total for s in engine.score(given, targets)]
    steered = [s.total for s in engine.score(given, targets, routing=steering)]
    np.testing.assert_allclose(steered, [s.total for s in other.score(given, targets)], rtol=0, atol=1e-8)
    mixed = engine.score(given, targets, routing=[steering, None] * 3)
    expected = [steered[n] if n % 2 == 0 else free[n] for n in range(6)]
    np.testing.assert_allclose([s.total for s in mixed], expected, rtol=0, atol=1e-8)
    assert np.abs(np.subtract(steered, free)).min() > 1e-3
    with engine.scorer(given, targets, routing=steering) as one, other.scorer(given, targets) as two:
        np.testing.assert_allclose(one.totals, two.totals, rtol=0, atol=1e-8)
    for a, b in zip(engine.trace(given, routing=steering).layers, other.trace(given).layers, strict=True):
        assert np.array_equal(np.sort(a.experts), np.sort(b.experts))


def test_both_parts_are_folded_where_the_router_has_a_bias(tmp_path: Path) -> None:
    engine = small_engine("gpt_oss")
    model, asked = engine.model, prompts(6)
    steering = steering_for(model, matrix=entries(model))
    steered, before = greedy(model, asked, steering), weights(model)
    assert steered != greedy(model, asked, replace(steering, maps={})) != greedy(model, asked)
    report = fold(model, steering)
    assert greedy(model, asked) == steered
    assert (report.tensor, report.weight, report.layers, report.entries) == ("bias", "weight", (0, 1, 2), 24)
    routers = find_routers(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{r.path}.bias" for r in routers} | {f"{routers[n].path}.weight" for n in (0, 2)}
    out = save_folded(tmp_path / "out", model, engine.tokenizer, steering, report)
    card = (out / "README.md").read_text()
    assert (
        "`bias` holds its old value plus alpha x sigma x S, and `weight` holds its old value plus alpha x B A" in card
    )
    assert json.loads((out / "steering.json").read_text())["folded"] == report.to_json()
    with pytest.raises(InterventionError, match="folded into the checkpoint"):
        Steering.from_pretrained(out)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_a_constant_part_that_has_no_bias_is_refused_and_the_weights_stay(family: str, fresh: Any) -> None:
    model = fresh(family)
    before = weights(model)
    with pytest.raises(InterventionError, match="bias on its logits"):
        fold(model, steering_for(model, matrix=entries(model)))
    assert unchanged(model, before)
    fold(model, steering_for(model))


def with_threshold(model: Any) -> dict[int, LowRank]:
    return {n: LowRank(one.down, one.up, [0.1] * one.rank) for n, one in steering_for(model).maps.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_that_rounds_is_refused(fresh: Any, dtype: torch.dtype) -> None:
    model = fresh("olmoe", dtype=dtype)
    before = weights(model)
    with pytest.raises(InterventionError, match=f"weight of router .* is in {dtype}, which rounds .*--dtype float32"):
        fold(model, steering_for(model))
    assert unchanged(model, before)


def test_what_no_weight_can_express_is_refused_by_name(fresh: Any) -> None:
    model = fresh("olmoe")
    before = weights(model)
    for changes, match in (
        ({"maps": with_threshold(model)}, r"has a threshold \(layer 0\)"),
        ({"phase": "prefill"}, "tokens of the prompt only .* a weight acts on all tokens"),
        ({"phase": "decode"}, "tokens of the answer only"),
    ):
        with pytest.raises(InterventionError, match=match) as caught:
            fold(model, steering_for(model, **changes))
        assert "\n" not in str(caught.value)
    model.is_quantized = True
    with pytest.raises(InterventionError, match="quantized"):
        fold(model, steering_for(model))
    assert unchanged(model, before)


def test_tied_and_offloaded_weights_are_refused(fresh: Any) -> None:
    model = fresh("olmoe")
    first, *_, last = [model.get_submodule(r.path) for r in find_routers(model)]
    last.weight = first.weight
    before = weights(model)
    with pytest.raises(InterventionError, match=r"weight of router .* is tied to other weights"):
        fold(model, steering_for(model))
    assert unchanged(model, before)
    change = folding._weight(fresh("olmoe").to("meta"), find_routers(model)[0], steering_for(model).maps[0])
    with pytest.raises(InterventionError, match="is not in memory"):
        folding._add(model, change)


def test_a_router_with_two_matrices_is_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh("olmoe")
    monkeypatch.setattr(folding, "router_matrix", lambda module, experts: None)
    with pytest.raises(InterventionError, match="has not one weight with a row for each of its 8 experts"):
        fold(model, steering_for(model))
    assert "has not one weight" in cannot_fold(model, "conditional")


def test_a_weight_that_acts_otherwise_is_put_back(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that scales what its matrix gives is linear in it, but the rule acts before the scale."""
    model = fresh("olmoe")
    kind = type(model.get_submodule(find_routers(model)[0].path))

    def forward(self: Any, hidden_states: Tensor) -> Any:
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = nn.functional.linear(hidden_states, self.weight * self.weight.norm())
        values, indices = torch.topk(logits.softmax(-1), self.top_k, dim=-1)
        return logits, values, indices

    monkeypatch.setattr(kind, "forward", forward)
    before = weights(model)
    with pytest.raises(ControlFailed, match="The model is as before"):
        fold(model, steering_for(model))
    assert unchanged(model, before)


@pytest.fixture(params=["_add", "_same"])
def interrupted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C at the second weight, or when all are changed."""
    original, calls = getattr(folding, request.param), []

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if request.param == "_same" or len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(folding, request.param, interrupt)
    yield
    assert calls


@pytest.mark.usefixtures("interrupted")
def test_a_failure_in_the_middle_puts_the_weights_back(fresh: Any) -> None:
    model = fresh("gpt_oss")
    before, print_ = weights(model), prove(model).fingerprint
    with pytest.raises(KeyboardInterrupt):
        fold(model, steering_for(model, matrix=entries(model)))
    assert unchanged(model, before)
    assert prove(model).fingerprint == print_


# ---------------------------------------------------------------------- where rounding decides


def trace_of(rows: int = 4, tokens: int = 6, layers: int = 3, seed: int = 0) -> RouteTrace:
    """Two of four experts, by their logits."""
    rng = np.random.default_rng(seed)
    row, position = np.repeat(np.arange(rows), tokens), np.tile(np.arange(tokens), rows)
    found = []
    for _ in range(layers):
        logits = rng.normal(0, 1, (rows * tokens, 4)).astype(np.float32)
        experts = np.argsort(-logits, axis=1)[:, :2].astype(np.int32)
        found.append(LayerTrace(row.astype(np.int32), position.astype(np.int32), position > 2, logits, experts))
    return RouteTrace(tuple(found))


def changed(trace: RouteTrace, layer: int, token: int, logits: float = 0.0, swap: bool = False) -> RouteTrace:
    """With other logits, or other experts, of one router at one token."""
    layers = list(trace.layers)
    numbers, experts = layers[layer].logits.copy(), layers[layer].experts.copy()
    numbers[token] += logits
    if swap:
        experts[token] = np.setdiff1d(np.arange(4), experts[token])
    layers[layer] = replace(layers[layer], logits=numbers, experts=experts)
    return RouteTrace(tuple(layers))


def test_runs_are_one_until_rounding_chooses_another_expert() -> None:
    then = trace_of()
    until, largest = folding._chosen_alike(then, changed(then, 0, 3, logits=1e-6), 4)
    assert np.isinf(until).all()
    assert 0 < largest < 1e-5
    swapped = changed(then, 1, 6 + 4, swap=True)  # row 1, its token 4
    for after in (
        swapped,
        changed(changed(swapped, 2, 6 + 4, logits=1.0), 0, 6 + 5, logits=1.0),  # what follows is another's
        changed(swapped, 0, 6 + 5, swap=True),
    ):
        until, largest = folding._chosen_alike(then, after, 4)
        assert until.tolist() == [np.inf, 4, np.inf, np.inf]
        assert largest == 0
    for wrong in (
        changed(then, 1, 6 + 4, logits=1e-2),
        changed(swapped, 1, 6 + 4, logits=1e-2),  # it chose by other logits
        changed(swapped, 0, 6 + 4, logits=1e-2),  # a router below was another already
        changed(swapped, 2, 6 + 3, logits=1e-2),
        changed(swapped, 2, 5, logits=1e-2),  # another row
        changed(then, 1, 6 + 4, logits=float("nan")),
    ):
        with pytest.raises(ControlFailed, match="logits of router"):
            folding._chosen_alike(then, wrong, 4)
    everywhere = then
    for row in range(3):
        everywhere = changed(everywhere, 0, 6 * row, swap=True)
    with pytest.raises(ControlFailed, match="only 6 of 24 tokens can be compared"):
        folding._chosen_alike(then, everywhere, 4)


@pytest.mark.parametrize("ends", [False, True])
def test_what_follows_a_choice_of_rounding_is_not_compared_and_said_so(
    fresh: Any, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The last row of the folded model goes another way after its prompt; it may end sooner, too."""
    model, original, calls = fresh("olmoe"), folding._ask, []

    def ask(*args: Any) -> Any:
        found = original(*args)
        calls.append(found)
        if len(calls) == 1:  # the steered one
            return found
        layer = found.generation[0]
        token = int(np.flatnonzero((layer.row == 3) & layer.decode)[2])
        experts = layer.experts.copy()
        experts[token] = np.setdiff1d(np.arange(8), experts[token])[:2]
        answers, steps = found.answers.clone(), found.steps.clone()
        answers[3, 4:] += 1
        steps[4:, 3] += 5.0
        layers = (replace(layer, experts=experts), *found.generation.layers[1:])
        new = 10 if ends else None
        return replace(found, generation=RouteTrace(layers), answers=answers[:, :new], steps=steps[:new])

    monkeypatch.setattr(folding, "_ask", ask)
    report = fold(model, steering_for(model))
    kept = 3 * (10 if ends else 16) + 3  # the first answer token is made of the prompt's last
    assert (report.tokens, report.not_compared) == (kept, 64 - kept)
    assert report.logit_difference < 1e-3
