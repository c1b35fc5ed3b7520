"""The mask that is chosen on some prompts and frozen: against a slow loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines import behaviours, small_engine
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.methods.dataset_mask import DatasetMask
from pointsman.methods.steps import Steps
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


@pytest.mark.parametrize("score", ["first_token", "target"])
def test_it_has_the_highest_mean_probability(engine: HFEngine, score: Any) -> None:
    asked, method = behaviours(3), DatasetMask(samples=6, score=score, seed=2)
    steps = Steps()
    found = method.search(engine, asked, [2, 0], steps=steps)
    assert found.layers == (0, 2)
    sets = method.masks(engine, (0, 2))
    means = []
    for s in range(6):
        mask = Intervention.force({0: sets[0][s].tolist(), 2: sets[2][s].tolist()}, phase="prefill")
        values = []
        for behaviour in asked:
            target = engine.encode_target(behaviour.target)
            scored = engine.score([engine.encode(behaviour.turns)], [target], routing=mask)[0]
            values.append(math.exp(scored.first if score == "first_token" else scored.total))
        means.append(sum(values) / len(values))
    assert found.scores == pytest.approx(means, rel=1e-9)
    assert found.chosen == int(np.argmax(means))
    assert found.score == max(found.scores)
    assert found.experts == tuple(tuple(sets[layer][found.chosen].tolist()) for layer in (0, 2))
    assert list(steps.spent) == [f"dataset-mask/0-2/{b.id}" for b in asked]


@pytest.mark.parametrize("phase", ["prefill", "both"])
def test_the_frozen_mask_is_obeyed_in_its_phase(engine: HFEngine, phase: Any) -> None:
    asked = behaviours(2)
    found = DatasetMask(samples=3).search(engine, asked, [1])
    with control(engine.model, found.routing(phase), trace=True) as controller:
        engine.model.generate(engine.model.dummy_inputs["input_ids"][:1, :4] % 50, max_new_tokens=4, do_sample=False)
    trace = controller.trace()[1]
    chosen = {tuple(sorted(row)) for row in trace.select(decode=False).experts.tolist()}
    assert chosen == {found.experts[0]}
    decoded = {tuple(sorted(row)) for row in trace.select(decode=True).experts.tolist()}
    assert (decoded == {found.experts[0]}) == (phase == "both")


def test_the_choice_ignores_the_order_of_layers_and_depends_on_the_seed(engine: HFEngine) -> None:
    asked = behaviours(2)
    one, other = (DatasetMask(samples=4).search(engine, asked, layers) for layers in ([0, 2], [2, 0]))
    assert one == other
    drawn = [DatasetMask(samples=4, seed=s).masks(engine, (0, 2))[0].tolist() for s in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DatasetMask(samples=0),
        lambda: DatasetMask().search(small_engine(), [], [0]),
        lambda: DatasetMask().search(small_engine(), behaviours(1), []),
    ],
)
def test_what_cannot_be_chosen_is_refused(make: Any) -> None:
    with pytest.raises(UsageError):
        make()
