"""The proof catches a model that says something else padded, cached or generated than it says in one forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import OlmoeForCausalLM
from transformers.cache_utils import Cache

from families.tiny import FAMILIES, tiny
from pointsman.errors import ControlFailed
from pointsman.routing.calling import Calling, Given
from pointsman.routing.control import control, prove
from pointsman.routing.intervention import Intervention

pytestmark = pytest.mark.versions

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [7, 12, 60, 3, 28, 50]])


def as_class(kind: type) -> Any:
    """A tiny OLMoE of another class."""
    model = tiny("olmoe")
    model.__class__ = kind
    return model


class RenamedCache(OlmoeForCausalLM):  # type: ignore[misc]
    """As the next release might: the cache has a new name, which its annotation tells."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, memory: Cache | None = None, **kwargs: Any
    ) -> Any:
        return super().forward(input_ids, attention_mask, **Calling(tiny_olmoe()).with_cache(memory) | kwargs)


class LostCache(OlmoeForCausalLM):  # type: ignore[misc]
    """The same, with a name that nothing tells: whatever else it is given, it takes and forgets."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, memory: Any = None, **kwargs: Any) -> Any:
        kept = {name: kwargs[name] for name in ("position_ids", "logits_to_keep", "use_cache") if name in kwargs}
        width = input_ids.shape[1] if memory is None else None
        return super().forward(input_ids, attention_mask[:, -width:] if width else attention_mask, **kept)


class IgnoredCache(OlmoeForCausalLM):  # type: ignore[misc]
    """It takes a cache under the usual name, and answers without it."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        name = Calling(tiny_olmoe()).cache_name
        if kwargs.get(name) is not None:
            kwargs[name] = None
            attention_mask = attention_mask[:, -input_ids.shape[1] :]
        return super().forward(input_ids, attention_mask, **kwargs)


IgnoredCache.forward.__signature__ = Calling(tiny("olmoe"))._signature  # type: ignore[attr-defined]


class PaddingSeen(OlmoeForCausalLM):  # type: ignore[misc]
    """It lets every token see the padding."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, torch.ones_like(attention_mask), **kwargs)


class OtherGenerate(OlmoeForCausalLM):  # type: ignore[misc]
    """Its generation gives each forward one token too few to see."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][:, -1] = 3
        return inputs


class FailingCache(OlmoeForCausalLM):  # type: ignore[misc]
    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if kwargs.get("use_cache"):
            raise RuntimeError("no kernel\nfor this")
        return super().forward(input_ids, attention_mask, **kwargs)


_olmoe: list[Any] = []


def tiny_olmoe() -> Any:
    if not _olmoe:
        _olmoe.append(tiny("olmoe"))
    return _olmoe[0]


def test_every_family_says_the_same_on_every_path(family: str, model: Any) -> None:
    paths = prove(model).paths
    assert paths.tokens >= 20, "a mask on which rounding decides leaves little to compare"
    assert max(paths.padded, paths.cached, paths.generated or 0.0) < 1e-4
    assert paths.generated is not None
    assert family in FAMILIES


def test_a_model_without_a_head_is_not_asked_to_generate() -> None:
    paths = prove(tiny("olmoe").model).paths
    assert paths.generated is None
    assert paths.tokens == 20


class NoPositions(OlmoeForCausalLM):  # type: ignore[misc]
    """It takes no positions, and counts them by itself."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, cache: Cache | None = None, use_cache: bool = False,
        logits_to_keep: int = 0, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        usual = Calling(tiny_olmoe())
        given = usual.with_positions(attention_mask, input_ids.shape[1])
        given |= usual.with_cache(cache) if cache is not None else {}
        given |= {"use_cache": use_cache, "logits_to_keep": logits_to_keep}
        return super().forward(input_ids, attention_mask, **given)


def test_a_model_that_takes_no_positions_is_not_given_any() -> None:
    model = as_class(NoPositions)
    assert Calling(model).with_positions(torch.ones(2, 6), 6) == {}
    assert prove(model).paths.generated is not None


def test_a_cache_under_a_new_name_is_handed_over() -> None:
    """The signature says the new name; `generate` does not know it."""
    model, usual = as_class(RenamedCache), tiny_olmoe()
    assert Calling(model).cache_name == "memory"
    routing = Intervention.force({0: [1, 6]})
    answers = []
    for each in (model, usual):
        with control(each, routing):
            answers.append(
                each.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False)
            )
    assert answers[0].tolist() == answers[1].tolist()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LostCache, "no parameter that is known to take a cache"),
        (IgnoredCache, "does not say with a key-value cache what it says in one full forward"),
        (PaddingSeen, "does not say in a left-padded batch what it says alone"),
        (OtherGenerate, "does not say in `generate` what it says in one full forward"),
        (FailingCache, "fails with a key-value cache .RuntimeError: no kernel for this."),
    ],
)
def test_what_differs_is_named(kind: type, words: str) -> None:
    with pytest.raises(ControlFailed, match=words) as caught:
        prove(as_class(kind))
    assert "\n" not in str(caught.value)
    assert kind.__name__ in str(caught.value)


def test_the_cache_is_known_by_what_it_can_do() -> None:
    class Counts:
        def get_seq_length(self) -> int:
            return 7

    calling = Calling(tiny_olmoe())
    given = calling.read(tiny_olmoe(), (IDS,), {"anything": Counts(), "attention_mask": torch.ones(2, 13)})
    assert given.cached == 7
    with pytest.raises(ControlFailed, match="more than one cache"):
        calling.read(tiny_olmoe(), (IDS,), {"one": Counts(), "two": Counts()})
    with pytest.raises(ControlFailed, match="tuple that does not tell its length"):
        calling.read(tiny_olmoe(), (IDS,), {calling.cache_name: ((torch.zeros(1),),)})


def test_a_cache_of_states_alone_is_counted_by_the_mask() -> None:
    class States:
        def get_seq_length(self) -> int:
            raise ValueError("only attention layers count")

    assert Given(IDS, States(), torch.ones(2, 10), None, None).cached == 4
    with pytest.raises(ControlFailed, match="States that does not tell its length"):
        _ = Given(IDS, States(), None, None, None).cached


class Wrapper(torch.nn.Module):
    """As PEFT's models are: it passes calls on, and `generate` of it is that of the model inside."""

    def __init__(self, model: Any, virtual: bool = False) -> None:
        super().__init__()
        self.inside = model
        self.active_peft_config = type("Config", (), {"is_prompt_learning": virtual})

    def get_base_model(self) -> Any:
        return self.inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside.generate(*args, **kwargs)


class Parallel(torch.nn.Module):
    """As DistributedDataParallel is."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("wrap", [Wrapper, Parallel, lambda model: Parallel(Wrapper(model))])
def test_a_wrapped_model_is_controlled_where_the_model_is(wrap: Any) -> None:
    model = tiny("olmoe")
    wrapped = wrap(model)
    routing = Intervention.force({0: [1, 6]}, phase="decode")
    given = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False)
    with control(model, routing):
        expected = model.generate(**given).tolist()
    with control(wrapped, routing, trace=True) as controller, torch.no_grad():
        if hasattr(wrapped, "generate"):
            assert wrapped.generate(**given).tolist() == expected
        wrapped(input_ids=IDS)
        assert model.generate(**given).tolist() == expected
    decoded = controller.trace()[0].select(decode=True)
    assert all(set(chosen) == {1, 6} for chosen in decoded.experts.tolist())
    assert len(decoded)


def test_virtual_tokens_are_refused() -> None:
    with pytest.raises(ControlFailed, match="virtual tokens"):
        prove(Wrapper(tiny("olmoe"), virtual=True))
