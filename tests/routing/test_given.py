"""What may be given as a routing beside an `Intervention`: whatever has one, of a class that nobody here knows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from pointsman.errors import InterventionError
from pointsman.routing import given
from pointsman.routing.control import control
from pointsman.routing.given import plain, warn_of_other_weights
from pointsman.routing.intervention import Intervention

FORCED = Intervention.force({0: [0, 1]})
IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


@dataclass(frozen=True)
class Named:
    """Has an intervention and nothing else that a routing is asked for."""

    intervention: Intervention = FORCED


@dataclass(frozen=True)
class Learnt(Named):
    """Knows its weights too."""

    weights: str | None = "mine"

    def on_other_weights(self, weights: str) -> str:
        return "" if weights == self.weights else f"it is for {self.weights}, not {weights}"


def said(routing: Any, monkeypatch: pytest.MonkeyPatch, weights: str | None = "other") -> list[str]:
    """What is warned of on a model with these weights; None refuses to read them."""

    def read(model: Any) -> str:
        assert weights is not None, "all weights of the model were read, and nobody wanted to know them"
        return weights

    monkeypatch.setattr(given, "weights_hash", read)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_other_weights(routing, torch.nn.Linear(1, 1))
    return [str(warning.message) for warning in caught]


def test_whatever_has_an_intervention_is_that() -> None:
    assert plain(None) is None
    assert plain(FORCED) is FORCED
    assert plain(Named()) is FORCED
    assert plain([Named(), None, FORCED]) == [FORCED, None, FORCED]


def test_it_is_applied_as_its_intervention_is(olmoe: Any) -> None:
    with torch.no_grad():
        without = olmoe(input_ids=IDS).logits
        outputs = []
        for routing in (FORCED, Named(), [FORCED, None], [Named(), None]):
            with control(olmoe, routing):
                outputs.append(olmoe(input_ids=IDS).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert not torch.equal(outputs[1], without)


def test_what_has_none_is_refused(olmoe: Any) -> None:
    for routing in ([Named(), "nothing"], ["nothing", None]):
        with pytest.raises(InterventionError, match="A routing of str"), control(olmoe, routing):  # type: ignore[arg-type]
            pass


def test_who_knows_its_weights_warns_of_others_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["It is for mine, not other"]
    learnt = Learnt()
    assert said(learnt, monkeypatch) == told
    assert said([learnt, None, learnt, FORCED], monkeypatch) == told  # many rows, one object
    assert said(learnt, monkeypatch, "mine") == []


def test_nobody_reads_all_weights_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    for routing in (None, FORCED, Named(), replace(Learnt(), weights=None), [Named(), FORCED, None]):
        assert said(routing, monkeypatch, None) == []
