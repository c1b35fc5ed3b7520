"""Route gradients are the derivatives that METHODS section 9 names, by differences of plain forwards of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import behaviours, small_engine
from oracle.loops import Route
from plain_engine import PlainEngine
from pointsman.engine.abilities import that_guides
from pointsman.engine.all_experts import AllExperts
from pointsman.engine.backward_pass import BackwardPass
from pointsman.engine.hf import HFEngine
from pointsman.engine.route_gradients import RouteGradient
from pointsman.engine.types import Prompt
from pointsman.engine.weighing import every_set
from pointsman.errors import BadLogits, ControlFailed, ModelError, UsageError
from pointsman.methods.best_sets import best_sets
from pointsman.methods.guided import Guided
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention

STEP = 1e-4
ROUTE: Route = {(0, 3): (1, 6), (1, 2): (0, 4), (2, 9): (5, 7)}


# -- a model whose arithmetic is in float64 throughout, and its literal forwards -------------------------------------


def widen(model: nn.Module) -> None:
    """OLMoE norms and weighs in float32: differences of a small step would show nothing but that."""

    def norm(module: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

        return forward

    def gate(module: Any) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = F.linear(x.reshape(-1, x.shape[-1]), module.weight)
            weights, chosen = logits.softmax(-1).topk(module.top_k, -1)
            if module.norm_topk_prob:
                weights = weights / weights.sum(-1, keepdim=True)
            return logits, weights, chosen

        return forward

    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = norm(module)
        elif hasattr(module, "norm_topk_prob") and hasattr(module, "weight"):
            module.forward = gate(module)


def log_p(model: Any, prompt: Prompt, target: Sequence[int]) -> float:
    """log p(target) from one forward of one row."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.ids, *target]]), use_cache=False).logits[0]
    table = torch.log_softmax(logits, -1)
    return sum(float(table[len(prompt) + n - 1, token]) for n, token in enumerate(target))


@contextmanager
def hooked(modules: Sequence[nn.Module], hook: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    with ExitStack() as undo:
        for n, module in enumerate(modules):
            undo.callback(module.register_forward_hook(hook(n)).remove)
        yield


def gates(model: Any) -> list[nn.Module]:
    return [layer.mlp.gate for layer in model.model.layers]


def forced(model: Any, route: Route) -> Any:
    """These sets, weighed as OLMoE weighs: softmax over what is allowed (METHODS section 0: the others are -inf)."""

    def hook(layer: int) -> Callable[..., Any]:
        def choose(gate: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            logits, weights, chosen = (each.clone() for each in output)
            for (where, token), experts in route.items():
                if where == layer:
                    chosen[token] = torch.tensor(experts)
                    weights[token] = logits[token, list(experts)].softmax(-1)
            return logits, weights, chosen

        return choose

    return hooked(gates(model), hook)


def entering(model: Any, layer: int, token: int, expert: int, weight: float) -> Any:
    """One expert more enters at one layer and token, with this weight."""

    def hook(here: int) -> Callable[..., Any]:
        def more(gate: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
            if here != layer:
                return None
            logits, weights, chosen = output
            column = torch.zeros(len(weights), 1, dtype=weights.dtype)
            column[token] = weight
            return (
                logits,
                torch.cat([weights, column], 1),
                torch.cat([chosen, torch.full_like(chosen[:, :1], expert)], 1),
            )

        return more

    return hooked(gates(model), hook)


def mixed(model: Any, layer: int, token: int, other: Tensor, step: float) -> Any:
    """The output of one block at one token, moved towards another."""

    def hook(here: int) -> Callable[..., Any]:
        def move(block: Any, args: Any, output: Tensor) -> Tensor | None:
            if here != layer:
                return None
            output = output.clone()
            output[0, token] += step * (other - output[0, token])
            return output

        return move

    return hooked([each.mlp for each in model.model.layers], hook)


def output_under(model: Any, prompt: Prompt, target: Sequence[int], route: Route, layer: int, token: int) -> Tensor:
    """What a block gives at a token under a route."""
    seen: list[Tensor] = []
    hook = model.model.layers[layer].mlp.register_forward_hook(lambda _, __, output: seen.append(output[0, token]))
    with forced(model, route):
        log_p(model, prompt, target)
    hook.remove()
    return seen[0]


def slope(of: Callable[[float], float]) -> float:
    """By the central difference."""
    return (of(STEP) - of(-STEP)) / (2 * STEP)


@pytest.fixture(scope="module", params=[False, True], ids=["softmax over all", "renormalised"])
def engine(request: pytest.FixtureRequest) -> HFEngine:
    engine = small_engine(norm_topk_prob=request.param)
    widen(engine.model)
    return engine


@pytest.fixture(scope="module")
def row() -> tuple[Prompt, tuple[int, ...]]:
    engine, behaviour = small_engine(), behaviours(1)[0]
    return engine.encode(behaviour.goal), engine.encode_target(behaviour.target)[:4]


def some_places(engine: HFEngine, prompt: Prompt, count: int) -> list[tuple[int, int]]:
    """Layers and tokens, among them those of `ROUTE` and the only token that counts in the last layer."""
    rng = np.random.default_rng(0)
    last = (len(engine.routers) - 1, len(prompt) - 1)
    drawn = [(int(rng.integers(len(engine.routers) - 1)), int(rng.integers(len(prompt)))) for _ in range(count)]
    return [last, *list(ROUTE)[:2], *drawn]


# -- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [{}, ROUTE], ids=["free", "routed"])
def test_scores_are_derivatives_with_respect_to_a_weight(engine: HFEngine, row: Any, route: Route) -> None:
    prompt, target = row
    (found,) = engine.route_gradients([prompt], [target], routing=Intervention.force(route) if route else None)
    largest = max(float(np.abs(layer.scores).max()) for layer in found.layers)
    with forced(engine.model, route):
        assert found.log_prob == pytest.approx(log_p(engine.model, prompt, target), abs=1e-9)
        for layer, token in some_places(engine, prompt, 2):
            for expert in range(engine.routers[layer].experts):

                def entered(weight: float, layer: int = layer, token: int = token, expert: int = expert) -> float:
                    with entering(engine.model, layer, token, expert, weight):
                        return log_p(engine.model, prompt, target)

                assert found.layers[layer].scores[token, expert] == pytest.approx(slope(entered), abs=1e-6 * largest)


@pytest.mark.parametrize("route", [{}, ROUTE], ids=["free", "routed"])
def test_gains_are_derivatives_on_the_way_to_the_forced_output(engine: HFEngine, row: Any, route: Route) -> None:
    """Also at pairs of the route: another set is tried there, and the level is that of the route's."""
    prompt, target = row
    (found,) = engine.route_gradients([prompt], [target], routing=Intervention.force(route) if route else None)
    rng, model = np.random.default_rng(1), engine.model
    gains, slopes = [], []
    for layer, token in some_places(engine, prompt, 3):
        for experts in engine.routers[layer].draw(rng, 3).tolist():
            other = output_under(model, prompt, target, {**route, (layer, token): experts}, layer, token)

            def on_the_way(step: float, layer: int = layer, token: int = token, other: Tensor = other) -> float:
                with mixed(model, layer, token, other, step):
                    return log_p(model, prompt, target)

            gains.append(found.layers[layer].gain(experts)[token])
            with forced(model, route):
                slopes.append(slope(on_the_way))
    assert gains == pytest.approx(slopes, abs=1e-6 * max(map(abs, slopes)))
    for (layer, token), experts in route.items():
        assert sorted(found.layers[layer].chosen[token].tolist()) == list(experts)
        assert found.layers[layer].gain(experts)[token] == pytest.approx(0, abs=1e-9)


ROUTERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "softmax over all": ("olmoe", dict(norm_topk_prob=False), "softmax"),
    "renormalised": ("mixtral", {}, "softmax"),
    "sigmoid within groups": ("deepseek_v3", {}, "sigmoid"),
    "sigmoid within groups, not renormalised": ("deepseek_v3", dict(norm_topk_prob=False), "fixed"),
    "top-1": ("llama4_text", dict(num_experts_per_tok=1), "fixed"),
    "one by one": ("phimoe", dict(router_jitter_noise=0.4), "listed"),
}


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("biased", [False, True])
def test_weights_are_those_that_the_router_returns(name: str, biased: bool) -> None:
    """Read where the block reads them: from the router's output in an ordinary forward under the forced set."""
    family, changes, rule = ROUTERS[name]
    engine = small_engine(family, **changes)
    prompt = engine.encode(behaviours(1)[0].goal)
    target = engine.encode_target("Sure")
    rng = np.random.default_rng(2)
    bias = {r.layer: rng.normal(size=r.experts).tolist() for r in engine.routers}
    steered = Intervention.bias(bias) if biased else Intervention()
    (found,) = engine.route_gradients([prompt], [target], routing=steered)
    for router, layer in zip(engine.routers, found.layers, strict=True):
        assert layer.weighing.rule == rule
        for experts in router.draw(rng, 6).tolist():
            returned = returned_under(
                engine, prompt, router.path, steered + Intervention.force({router.layer: experts})
            )
            wanted = weights_in_order(returned, router.top_k, experts)
            assert layer.weighing.of(experts) == pytest.approx(wanted, abs=1e-6)


def shortened(prompt: Prompt, tokens: int) -> Prompt:
    """The last tokens of a prompt."""
    return Prompt(prompt.ids[-tokens:], prompt.tokens[-tokens:], prompt.roles[-tokens:])


def test_a_rule_that_fits_the_first_prompt_alone_is_found_again() -> None:
    """PhiMoE: an expert that nearly ties with the other shares its weight, which two tokens did not show."""
    engine, fresh = small_engine("phimoe", seed=1), small_engine("phimoe", seed=1)
    prompts = [engine.encode(b.goal) for b in behaviours(4)]
    target = engine.encode_target("Sure")
    (first,) = engine.route_gradients([shortened(prompts[0], 2)], [target])
    assert {layer.weighing.rule for layer in first.layers} == {"fixed"}
    found = engine.route_gradients(prompts, [target] * len(prompts))
    for one, other in zip(found, fresh.route_gradients(prompts, [target] * len(prompts)), strict=True):
        for layer, wanted, router in zip(one.layers, other.layers, engine.routers, strict=True):
            assert wanted.weighing.rule == "listed"
            for experts in every_set(router):
                assert layer.weighing.of(experts) == pytest.approx(wanted.weighing.of(experts), abs=1e-6)


@pytest.mark.parametrize("norm", [True, False], ids=["sigmoid", "fixed"])
def test_a_rule_that_stops_to_hold_is_refused_where_sets_are_many(norm: bool, row: Any) -> None:
    """Seen without a search of all sets: at the cover where weights are shared, at other sets where they are not."""
    engine = small_engine("deepseek_v3", n_routed_experts=16, num_experts_per_tok=4, norm_topk_prob=norm)

    def other_weights(part: Tensor) -> Tensor:
        if not part.is_floating_point() or part.shape[-1] != 4:
            return part
        return part**2 if norm else part * part.sum(-1, keepdim=True)

    assert {router.possible_sets > 512 for router in engine.routers} == {True}
    (found,) = engine.route_gradients([row[0]], [row[1]])
    assert {layer.weighing.rule for layer in found.layers} == {"sigmoid" if norm else "fixed"}
    engine.route_gradients([row[0]], [row[1]])
    for router in engine.routers:
        gate = engine.model.get_submodule(router.path)
        gate.forward = lambda *args, said=gate.forward: tuple(map(other_weights, said(*args)))
    with pytest.raises(ModelError, match="weighs experts by a rule that Pointsman does not know"):
        engine.route_gradients([row[0]], [row[1]])


def returned_under(engine: HFEngine, prompt: Prompt, router: str, routing: Intervention) -> Any:
    """What a router returns to its block."""
    returned: list[Any] = []
    with control(engine.model, routing):
        gate = engine.model.get_submodule(router)
        hook = gate.register_forward_hook(lambda _, __, output: returned.append(output))
        engine.model(torch.tensor([prompt.ids]), use_cache=False)
        hook.remove()
    return returned[0]


def weights_in_order(output: Any, top_k: int, experts: Sequence[int]) -> np.ndarray:
    """The weights of these experts, ascending, from what a router returned. Shape: [T, k]."""
    floats = [part for part in output if part.is_floating_point()]
    whole = [part for part in output if not part.is_floating_point()]
    if not whole:  # Llama 4: a score for every expert, and the logits
        return np.asarray(floats[0].detach()[:, list(experts)].numpy())
    (weights,) = [part for part in floats if part.shape[-1] == top_k]
    (chosen,) = whole
    order = chosen.argsort(-1)
    assert chosen.gather(1, order).tolist() == [list(experts)] * len(chosen)
    return np.asarray(weights.detach().gather(1, order).numpy())


# -- what it does not depend on --------------------------------------------------------------------------------------


def same(one: RouteGradient, other: RouteGradient, within: float = 1e-10) -> None:
    assert one.log_prob == pytest.approx(other.log_prob, abs=within)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert np.array_equal(a.chosen, b.chosen)
        assert a.scores == pytest.approx(b.scores, abs=within)
        assert a.weights == pytest.approx(b.weights, abs=within)
        assert a.weighing.rule == b.weighing.rule
        assert a.weighing.of(a.chosen[0]) == pytest.approx(b.weighing.of(a.chosen[0]), abs=within)


def test_rows_beside_and_padding_change_nothing(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    some = behaviours(5)
    prompts = [engine.encode([b.goal] * (1 + n % 2), answers=["Sorry"] * (n % 2)) for n, b in enumerate(some)]
    targets = [engine.encode_target(b.target)[: 2 + n] for n, b in enumerate(some)]
    routing = [None, Intervention.force(ROUTE), None, Intervention.force({(0, 1): [2, 3]}), None]
    assert len({len(p) + len(t) for p, t in zip(prompts, targets, strict=True)}) >= 4
    alone = [
        engine.route_gradients([p], [t], routing=[r])[0] for p, t, r in zip(prompts, targets, routing, strict=True)
    ]
    for batch in (None, 16):  # all in one forward; two at a time
        monkeypatch.setattr(engine, "_batch_size", batch)
        for one, other in zip(engine.route_gradients(prompts, targets, routing=routing), alone, strict=True):
            same(one, other)


def test_sets_side_by_side_change_nothing(engine: HFEngine, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for together in (1, 3, 100):
        monkeypatch.setattr(AllExperts, "_sets_together", lambda *_, together=together: together)
        monkeypatch.setattr(engine, "_guide", None)
        found += engine.route_gradients([row[0]] * 2, [row[1]] * 2)
    for other in found[1:]:
        same(found[0], other)


def test_the_kernel_of_grouped_experts_passes_the_gradient_of_the_plain_ones(row: Any) -> None:
    """What transformers chooses where it can, against a loop over experts."""
    found = []
    for implementation in ("grouped_mm", "eager"):
        engine = small_engine(dtype=torch.float32)
        engine.model.set_experts_implementation(implementation)
        found += engine.route_gradients([row[0]], [row[1]])
    largest = max(float(np.abs(layer.scores).max()) for layer in found[1].layers)
    same(*found, within=1e-4 * largest)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_layer_by_layer_it_is_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short; a layer without a router before the first and rows of two lengths included."""
    engine = small_engine(family)
    assert engine._resume is not None
    prompts = [engine.encode(b.goal) for b in behaviours(2)]
    targets = [engine.encode_target(b.target)[: 2 + n] for n, b in enumerate(behaviours(2))]
    routing = [Intervention.force({(0, 3): engine.routers[0].draw(np.random.default_rng(0), 1)[0].tolist()}), None]
    whole = engine.route_gradients(prompts, targets, routing=routing)
    before = traces(engine)
    monkeypatch.setattr(engine, "_tokens_that_fit", 8 * max(map(len, prompts)))
    found = engine.route_gradients(prompts, targets, routing=routing)
    for one, other in zip(found, whole, strict=True):
        same(one, other, 1e-7)  # norms and softmax round to float32
        assert one.forwards == other.forwards + 1
    assert traces(engine) == before
    assert (engine._controller.first_layer, engine._controller.last_layer) == (0, None)


# -- what it leaves, and what it refuses -----------------------------------------------------------------------------


def traces(engine: HFEngine) -> Any:
    """What a model that was watched might keep."""
    modules = list(engine.model.modules())
    return (
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        [getattr(m.__dict__.get("forward"), "__qualname__", None) for m in modules],
        [(p.requires_grad, p.grad) for p in engine.model.parameters()],
        torch.is_grad_enabled(), engine._controller.reweigh, engine._controller.overlay, engine._controller.layout,
    )  # fmt: skip


def test_the_model_is_left_as_it_was(row: Any) -> None:
    engine = small_engine()
    next(engine.model.parameters()).requires_grad_(False)
    before, said = traces(engine), engine.score([row[0]], [row[1]])
    engine.route_gradients([row[0]], [row[1]])
    assert traces(engine) == before
    assert engine.score([row[0]], [row[1]]) == said


@pytest.mark.parametrize("call", [1, 2, 3])
def test_the_model_is_left_as_it_was_after_an_error(row: Any, call: int) -> None:
    """In the forward, in a block that runs again, and when its weights are asked for."""
    engine = small_engine()
    before, said = traces(engine), engine.score([row[0]], [row[1]])
    gate, calls = engine.model.model.layers[1].mlp.gate, []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyError("broken")

    hook = gate.register_forward_hook(fail)
    with pytest.raises(KeyError, match="broken"):
        engine.route_gradients([row[0]], [row[1]])
    hook.remove()
    assert traces(engine) == before
    assert engine.score([row[0]], [row[1]]) == said
    engine.route_gradients([row[0]], [row[1]])


def test_an_engine_without_gradients_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"plain cannot be searched by its gradient.*PlainEngine.*F-SOUR"):
        that_guides(PlainEngine())
    with pytest.raises(UsageError, match="has none"):
        Guided().search(PlainEngine(), behaviours(1), object())  # type: ignore[arg-type]


def test_experts_that_pass_no_gradient_are_refused_by_name(row: Any) -> None:
    """As quantised kernels without a backward do."""
    engine = small_engine()
    for layer in engine.model.model.layers:
        said = layer.mlp.experts.forward
        layer.mlp.experts.forward = lambda *args, said=said: said(*args).detach()
    with pytest.raises(ModelError, match=r"tiny olmoe passes no gradient.*F-SOUR") as caught:
        engine.route_gradients([row[0]], [row[1]])
    assert "\n" not in str(caught.value)


def test_a_model_that_says_nothing_of_its_experts_is_refused(row: Any) -> None:
    engine = small_engine()
    head = engine.model.lm_head
    said = head.forward
    head.forward = lambda x: said(x).detach()
    with pytest.raises(ModelError, match="passes no gradient"):
        engine.route_gradients([row[0]], [row[1]])


def test_code_that_switches_gradients_off_is_overruled(engine: HFEngine, row: Any) -> None:
    (wanted,) = engine.route_gradients([row[0]], [row[1]])
    kept = [layer.mlp.experts.forward for layer in engine.model.model.layers]
    for layer, said in zip(engine.model.model.layers, kept, strict=True):
        layer.mlp.experts.forward = torch.no_grad()(said)
    (found,) = engine.route_gradients([row[0]], [row[1]])
    for layer in engine.model.model.layers:
        del layer.mlp.experts.forward
    same(found, wanted)
    assert torch.is_grad_enabled()


def test_nan_is_refused(row: Any) -> None:
    engine = small_engine()
    with torch.no_grad():
        engine.model.lm_head.weight[3] = float("nan")
    with pytest.raises(BadLogits, match="tiny olmoe returned NaN or infinite logits"):
        engine.route_gradients([row[0]], [row[1]])


def test_an_expert_that_overflows_where_it_is_not_chosen_is_never_promising(row: Any) -> None:
    """As in float16; its infinite score would else be the best of all, or NaN."""
    engine = small_engine()
    engine.model.model.layers[1].mlp.gate.forward = shunning(engine.model.model.layers[1].mlp.gate, 3)
    (wanted,) = engine.route_gradients([row[0]], [row[1]])
    with torch.no_grad():
        engine.model.model.layers[1].mlp.experts.down_proj[3] = float("inf")
    (found,) = engine.route_gradients([row[0]], [row[1]])
    others = [n for n in range(8) if n != 3]
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert one.scores[:, others] == pytest.approx(other.scores[:, others], abs=1e-9)
        assert np.isfinite(one.scores).all()
    best, gains = best_sets(found.layers[1], engine.routers[1])
    assert not (best == 3).any()
    assert np.isfinite(gains).all()


def shunning(gate: Any, expert: int) -> Callable[[Tensor], Any]:
    """The forward of a router that chooses an expert only where nothing else is allowed."""

    def forward(x: Tensor) -> Any:
        logits = F.linear(x.reshape(-1, x.shape[-1]), gate.weight)
        shift = torch.zeros_like(logits)
        shift[:, expert] = -50.0
        weights, chosen = (logits + shift).softmax(-1).topk(gate.top_k, -1)
        return logits, weights, chosen

    return forward


def test_infinite_gradients_are_refused(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, descend = small_engine(), BackwardPass._descend

    def overflow(self: BackwardPass, of: Tensor, blocks: Any, *more: Any) -> Any:
        found = descend(self, of, blocks, *more)
        blocks[0][1].delta[:] = float("inf")
        return found

    monkeypatch.setattr(BackwardPass, "_descend", overflow)
    with pytest.raises(BadLogits, match="tiny olmoe returned NaN or infinite gradients"):
        engine.route_gradients([row[0]], [row[1]])


def returning(engine: HFEngine, change: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    """Let every router return something else than it did."""
    for layer in engine.model.model.layers:
        said = layer.mlp.gate.forward
        layer.mlp.gate.forward = lambda x, said=said: change(*said(x))


def test_weights_of_no_known_rule_are_asked_for_set_by_set_or_refused(row: Any) -> None:
    few, many = small_engine(), small_engine(num_experts=16, num_experts_per_tok=4)
    for engine in (few, many):
        returning(engine, lambda logits, weights, chosen: (logits, weights**2, chosen))
    (found,) = few.route_gradients([row[0]], [row[1]])
    assert {layer.weighing.rule for layer in found.layers} == {"listed"}
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.gate weighs experts by a rule that Pointsman does not know"):
        many.route_gradients([row[0]], [row[1]])


def test_a_router_that_does_not_obey_is_noticed(row: Any) -> None:
    engine = small_engine()
    returning(engine, lambda logits, weights, chosen: (logits, weights, chosen.roll(1, 0)))
    with pytest.raises(ControlFailed, match="did not use the experts that were forced"):
        engine.route_gradients([row[0]], [row[1]])
