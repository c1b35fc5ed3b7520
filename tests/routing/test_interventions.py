"""Interventions as data: what is accepted, refused, saved and read back. No model is needed."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pointsman.errors import InterventionError, WrongModel
from pointsman.routing.intervention import SCHEMA, Intervention, Rule, Where
from pointsman.routing.routers import Router

ROUTERS = tuple(Router(n, n + 1, f"model.layers.{n + 1}.mlp.gate", 8, 2) for n in range(4))
GROUPED = tuple(Router(n, n, f"model.layers.{n}.mlp.gate", 16, 3, 4, 2) for n in range(2))

_layers = st.integers(0, 3)
_experts = st.sets(st.integers(0, 7), min_size=2, max_size=6)
_places = st.one_of(_layers, st.tuples(_layers, st.integers(0, 50)))
_where = st.fixed_dictionaries(
    {
        "phase": st.sampled_from(["prefill", "decode", "both"]),
        "positions": st.none() | st.sets(st.integers(0, 50), min_size=1, max_size=4),
        "rows": st.none() | st.sets(st.integers(0, 9), min_size=1, max_size=3),
    }
)
_floats = st.floats(-1e4, 1e4, width=32)
_rules = st.one_of(
    st.builds(lambda e, w: Intervention.mask(e, **w), st.dictionaries(_places, _experts, min_size=1), _where),
    st.builds(
        lambda e, w: Intervention.force(e, **w),
        st.dictionaries(_places, st.sets(st.integers(0, 7), min_size=2, max_size=2), min_size=1),
        _where,
    ),
    st.builds(
        lambda v, a, w: Intervention.bias(v, alpha=a, **w),
        st.dictionaries(_layers, st.lists(_floats, min_size=8, max_size=8), min_size=1),
        st.floats(-4, 4),
        _where,
    ),
    st.builds(
        lambda on, off, eps, w: Intervention.pin(on, off, eps=eps, **w),
        st.dictionaries(_places, st.sets(st.integers(0, 3), min_size=1), min_size=1),
        st.dictionaries(_places, st.sets(st.integers(4, 7), min_size=1)),
        st.floats(0.001, 100),
        _where,
    ),
    st.builds(
        lambda stds, seed, w: Intervention.noise(stds, seed=seed, **w),
        st.dictionaries(_layers, st.floats(1e-6, 1e6), min_size=1),
        st.integers(0, 2**64 - 1),
        _where,
    ),
)
interventions = st.builds(
    lambda parts, notes, made_for: Intervention(sum(parts, Intervention()).rules, made_for, notes),
    st.lists(_rules, max_size=4),
    st.text(max_size=20),
    st.none() | st.just("OlmoeForCausalLM-0123456789abcdef"),
)


@settings(max_examples=60, deadline=None)
@given(interventions)
def test_saving_and_loading_gives_the_same(tmp_path_factory: pytest.TempPathFactory, one: Intervention) -> None:
    one.check(ROUTERS)
    folder = one.save(tmp_path_factory.mktemp("saved") / "deep" / "folder")
    back = Intervention.load(folder)
    assert back == one
    assert hash(back) == hash(one)
    assert back.notes == one.notes
    again = Intervention.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one


@settings(max_examples=100, deadline=None)
@given(interventions, st.data())
def test_a_damaged_file_is_an_intervention_error_or_still_checked(one: Intervention, data: st.DataObject) -> None:
    """Any one value of the JSON replaced by anything: never another exception."""
    document = json.loads(json.dumps(one.to_json()))
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    node, key = data.draw(st.sampled_from(spots))
    junk: list[Any] = [None, True, -1, 10**30, 1e308, math.nan, math.inf, "x", [], [[]], {}, [None], {"a": 1}, [1, "2"]]
    node[key] = data.draw(st.sampled_from(junk))
    with suppress(InterventionError):
        Intervention.from_json(document).check(ROUTERS)


def saved(tmp_path: Path, **changes: Any) -> Path:
    folder = (Intervention.bias({0: [1.0] * 8}) + Intervention.force({1: [2, 3]})).save(tmp_path / "saved")
    path = folder / "intervention.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_hostile_files(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InterventionError, match=match):
            Intervention.load(tmp_path / "saved")

    refused("Cannot read")
    saved(tmp_path, schema="other/1")
    refused("schema")
    saved(tmp_path, rules=[{"kind": "explode", "phase": "both"}])
    refused("Unknown rule")
    saved(tmp_path, rules=7)
    refused("damaged")
    saved(tmp_path, rules=[7])
    refused("damaged")
    saved(tmp_path, fingerprint=["x"])
    refused("not text")
    twice = [[0, None, [1, 2]], [0, None, [3, 4]]]
    saved(tmp_path, rules=[{"kind": "mask", "phase": "both", "experts": twice}])
    refused("twice")
    for text in ("", "[]", "{", "[" * 100_000, "\x00\xff"):
        (saved(tmp_path) / "intervention.json").write_text(text)
        refused("JSON|Not an intervention|schema")
    saved(tmp_path)
    (tmp_path / "saved" / "intervention.json").write_bytes(b"\xff\xfe\x00garbage")
    refused("JSON")
    (saved(tmp_path) / "intervention.safetensors").unlink()
    refused("Keep intervention.json and intervention.safetensors together")
    (saved(tmp_path) / "intervention.safetensors").write_bytes(b"\x00" * 7)
    refused("Cannot read the numbers")
    for name, value, match in [
        ("rules.0.layers.0", np.full(8, np.nan, np.float32), "finite"),
        ("rules.0.layers.0", np.full(8, 1e300), "finite"),
        ("rules.0.layers.0", np.ones((2, 4), np.float32), "finite vector"),
        ("rules.0.layers.0", np.zeros(0, np.float32), "finite vector"),
        ("rules.0.layers.-1", np.ones(8, np.float32), "layer number"),
        ("rules.9.layers.0", np.ones(8, np.float32), "Cannot read the numbers"),
        ("rules.1.layers.0", np.ones(8, np.float32), "Cannot read the numbers"),
        ("nonsense", np.ones(8, np.float32), "Cannot read the numbers"),
    ]:
        save_file({name: value}, saved(tmp_path) / "intervention.safetensors")
        refused(match)


def test_saving_over_an_older_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    Intervention.bias({0: [1.0] * 8}).save(tmp_path)
    Intervention.force({0: [1, 2]}).save(tmp_path)
    assert Intervention.load(tmp_path) == Intervention.force({0: [1, 2]})
    assert [p.name for p in tmp_path.iterdir()] == ["intervention.json"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Intervention.mask([1, 2]),
        lambda: Intervention.mask({0: [1, 2]}, layers=[0]),
        lambda: Intervention.mask({}),
        lambda: Intervention.mask({0: []}),
        lambda: Intervention.mask({-1: [1, 2]}),
        lambda: Intervention.mask({0: [1, -2]}),
        lambda: Intervention.mask({0: [1, 2.0]}),
        lambda: Intervention.mask({0: [True, 2]}),
        lambda: Intervention.mask([1, 2], layers=[0, 0]),
        lambda: Intervention.mask({(0, None): [1, 2], 0: [3, 4]}),
        lambda: Intervention.mask({0: [1, 2]}, phase="before"),  # type: ignore[arg-type]
        lambda: Intervention.mask({0: [1, 2]}, positions=[-1]),
        lambda: Intervention.mask({0: [1, 2]}, positions=[]),
        lambda: Intervention.mask({0: [1, 2]}, rows=[]),
        lambda: Intervention.bias({}),
        lambda: Intervention.bias({0: [1.0, math.nan]}),
        lambda: Intervention.bias({0: [1.0]}, alpha=math.inf),
        lambda: Intervention.bias({0: [1e39]}),
        lambda: Intervention.bias({0: ["a"]}),  # type: ignore[list-item]
        lambda: Intervention.bias({0: 1.0}),  # type: ignore[dict-item]
        lambda: Intervention.bias({"a": [1.0]}),  # type: ignore[dict-item]
        lambda: Intervention.pin(),
        lambda: Intervention.pin({0: [1]}, {0: [1]}),
        lambda: Intervention.pin({0: [1]}, eps=0),
        lambda: Intervention.pin({0: [1]}, eps=math.nan),
        lambda: Intervention.pin({0: [1]}, eps=1e300),
        lambda: Where(phase="both", positions=(-1,)),
    ],
)
def test_malformed_ones_are_refused_where_they_are_made(make: Any) -> None:
    with pytest.raises(InterventionError):
        make()


@pytest.mark.parametrize(
    ("routers", "one", "match"),
    [
        (ROUTERS, Intervention.mask({4: [0, 1]}), "no MoE layer 4"),
        (ROUTERS, Intervention.mask({0: [0, 8]}), "no expert 8"),
        (ROUTERS, Intervention.mask({0: [3]}), "fewer than its top-2"),
        (ROUTERS, Intervention.force({0: [1, 2, 3]}), "activates 2 experts"),
        (ROUTERS, Intervention.force({0: [1, 1]}), "activates 2 experts"),
        (ROUTERS, Intervention.bias({0: [1.0] * 7}), "7 entries for 8"),
        (ROUTERS, Intervention.pin({0: [1]}, {0: [8]}), "no expert 8"),
        (GROUPED, Intervention.force({0: [0, 4, 8]}), "2 of 4 expert groups"),
        (GROUPED, Intervention.mask({0: [0, 4, 8, 12]}), "never allows 3"),
    ],
)
def test_what_routers_cannot_do_is_refused(routers: Any, one: Intervention, match: str) -> None:
    with pytest.raises(InterventionError, match=match):
        one.check(routers)


def test_adding() -> None:
    a, b = Intervention.force({0: [1, 2]}), Intervention.bias({1: [0.5] * 8})
    assert (a + b).rules == a.rules + b.rules != (b + a).rules
    assert a + Intervention() == a
    assert not Intervention()
    assert (a.for_model("x") + b).fingerprint == "x"
    with pytest.raises(WrongModel):
        a.for_model("x") + b.for_model("y")
    with pytest.raises(WrongModel):
        a.for_model("x").check(ROUTERS, "y")
    a.for_model("x").check(ROUTERS, "x")
    a.check(ROUTERS, "y")


def test_rules_know_their_layers_and_places() -> None:
    rule: Rule = Intervention.force({(2, 7): [0, 1], (0, 3): [2, 3], 1: [4, 5]}).rules[0]
    assert rule.layers == (0, 1, 2)
    assert rule.places() == {3, 7}
    assert rule.places(2) == {7}
    assert rule.placed[2, 7] == {0, 1}


def test_drawn_sets_are_selectable_and_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = GROUPED[0].draw(rng, 3000)
    assert drawn.shape == (3000, 3)
    assert all(GROUPED[0].selectable(row.tolist()) for row in drawn)
    assert (np.diff(drawn, axis=1) > 0).all()
    counts = np.bincount(ROUTERS[0].draw(rng, 4000).reshape(-1), minlength=8)
    assert abs(counts / 8000 - 1 / 8).max() < 0.02
    assert GROUPED[0].can_fill([0, 4, 5, 8])
    assert not GROUPED[0].can_fill([0, 4, 8, 12])


def test_the_schema_is_written(tmp_path: Path) -> None:
    Intervention.force({0: [1, 2]}).for_model("M-1").save(tmp_path)
    data = json.loads((tmp_path / "intervention.json").read_text())
    assert data["schema"] == SCHEMA
    assert data["fingerprint"] == "M-1"
