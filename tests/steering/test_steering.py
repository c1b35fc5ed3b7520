"""The steering artefact: what it does, what it refuses, how it is kept and read."""

from __future__ import annotations

import json
import math
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
from pointsman.methods.attempts import ask_in_steps
from pointsman.methods.steps import Steps
from pointsman.routing.control import control
from pointsman.routing.given import plain
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import Router
from pointsman.steering.artefact import Steering
from pointsman.testbed.plugin import TestbedJudge

RATE = {"k": 5, "n": 10, "rate": 0.5, "low": 0.24, "high": 0.76, "method": "Wilson", "clusters": None}
ROUTERS = tuple(Router(n, n, f"model.layers.{n}.mlp.gate", 4 + n, 2) for n in range(3))


def made(**changes: Any) -> Steering:
    """For `ROUTERS`: a layer without entries, and sigmas that differ."""
    given: dict[str, Any] = dict(
        matrix=([0.5, 0.0, -1.25, 0.0], [0.0] * 5, [0.1, 0.0, 0.0, 0.0, 0.0, 2.0]),
        sigma=(2.0, 3.0, 0.5),
        alpha=0.75,
        phase="both",
        fingerprint="OlmoeForCausalLM-0123456789abcdef",
        base_model="allenai/OLMoE-1B-7B-0125-Instruct",
        about={"scenario": "multi_turn_defence", "lambda": 1e-4, "seeds": [0, 1]},
    )
    return Steering(**{**given, **changes})


def steering_for(engine: HFEngine, seed: int = 0, **changes: Any) -> Steering:
    """A random one for an engine, with a few entries in each layer."""
    rng = np.random.default_rng(seed)
    matrix = [rng.normal(0, 1.5, r.experts) * (rng.random(r.experts) < 0.5) for r in engine.routers]
    given: dict[str, Any] = dict(
        matrix=tuple(matrix),
        sigma=tuple(rng.uniform(0.5, 2, len(matrix))),
        alpha=1.0,
        phase="both",
        fingerprint=engine.info.fingerprint,
        base_model=engine.info.name,
    )
    return Steering(**{**given, **changes})


# ---------------------------------------------------------------------- what it does


def test_it_is_a_bias_of_alpha_sigma_s() -> None:
    steering = made()
    vectors = {
        0: [0.75 * 2.0 * 0.5, 0.0, 0.75 * 2.0 * -1.25, 0.0],
        2: [0.75 * 0.5 * float(np.float32(0.1)), 0.0, 0.0, 0.0, 0.0, 0.75 * 0.5 * 2.0],
    }
    expected = Intervention.bias(vectors).for_model("OlmoeForCausalLM-0123456789abcdef")
    assert steering.intervention == expected
    assert steering.intervention.rules[0].layers == (0, 2)
    assert steering.circuit == ((2, 5, 2.0), (0, 2, -1.25), (0, 0, 0.5), (2, 0, float(np.float32(0.1))))
    steering.check(ROUTERS, "OlmoeForCausalLM-0123456789abcdef")


def test_per_token_leaves_sigma_to_the_token() -> None:
    rule = made(per_token=True, phase="prefill").intervention.rules[0]
    assert rule.per_token
    assert rule.where.phase == "prefill"
    assert rule.vector_of[0] == (0.75 * 0.5, 0.0, 0.75 * -1.25, 0.0)


def test_it_cannot_be_changed() -> None:
    source = np.array([1.0, 2.0, 3.0, 4.0])
    steering = made(matrix=(source, [0.0] * 5, [0.0] * 6))
    source[0] = 9.0
    assert steering.matrix[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="read-only"):
        steering.matrix[0][0] = 5.0
    with pytest.raises(AttributeError):
        steering.alpha = 2.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        steering.about["scenario"] = "other"  # type: ignore[index]


def test_it_is_compared_by_what_it_holds() -> None:
    assert made() == made()
    assert hash(made()) == hash(made())
    assert made() != made(alpha=0.5)
    assert made() != made(matrix=([0.5, 0.0, -1.0, 0.0], [0.0] * 5, [0.0] * 6))
    assert made() != made(about={})
    assert made() != made(base_model="other/name")
    assert made() != made().intervention
    assert replace(made(), alpha=0.5) == made(alpha=0.5)


def test_another_alpha_forgets_what_was_measured_at_the_old_one() -> None:
    steering = made(about={"scenario": "s", "measured": [{"what": "defended", "before": RATE, "after": RATE}]})
    other = steering.at(1.5)
    assert other.alpha == 1.5
    assert dict(other.about) == {"scenario": "s"}
    assert other.intervention.rules[0].vector_of[0] == (1.5, 0.0, -3.75, 0.0)
    assert steering.at(0.75) == steering


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"alpha": 0.0}, "alpha of 0"),
        ({"alpha": -1.0}, "alpha of -1"),
        ({"alpha": 8.01}, "alpha of 8.01"),
        ({"alpha": math.nan}, "no alpha"),
        ({"alpha": "1"}, "no alpha"),
        ({"alpha": True}, "no alpha"),
        ({"phase": "always"}, "phase"),
        ({"phase": ["both"]}, "phase"),
        ({"per_token": 1}, "per_token"),
        ({"sigma": (1.0, 1.0)}, "3 layers with 2 sigmas"),
        ({"sigma": (1.0, math.inf, 1.0)}, "no sigma"),
        ({"sigma": (1.0, -0.5, 1.0)}, "sigma of -0.5"),
        ({"matrix": (), "sigma": ()}, "0 layers"),
        ({"matrix": ([math.nan] * 4, [0.0] * 5, [0.0] * 6)}, "layer 0 is not a finite vector"),
        ({"matrix": ([0.0] * 4, [1e39] * 5, [0.0] * 6)}, "layer 1 is not a finite vector"),
        ({"matrix": ([[0.0] * 4], [0.0] * 5, [0.0] * 6)}, "layer 0 is not a finite vector"),
        ({"matrix": ([], [0.0] * 5, [0.0] * 6)}, "layer 0 is not a finite vector"),
        ({"matrix": (["a"], [0.0] * 5, [0.0] * 6)}, "layer 0 is not numbers"),
        ({"matrix": ([3e38] * 4, [0.0] * 5, [0.0] * 6)}, "finite"),  # alpha and sigma make it too large
        ({"fingerprint": ""}, "fingerprint"),
        ({"fingerprint": None}, "fingerprint"),
        ({"base_model": ""}, "base_model"),
        ({"revision": 3}, "revision"),
        ({"about": [1]}, "no mapping"),
        ({"about": {"x": math.nan}}, "holds nan"),
        ({"about": {"x": object()}}, "holds <object"),
        ({"about": {1: "x"}}, "no text"),
        ({"about": {"measured": [{"what": "x", "before": RATE}]}}, "not a list of rates"),
        ({"about": {"measured": 3}}, "not a list of rates"),
        ({"about": {"measured": [{"what": "x", "before": RATE, "after": {**RATE, "n": "10"}}]}}, "not a list of rates"),
    ],
)
def test_what_is_not_a_steering_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InterventionError, match=match):
        made(**changes)


def test_another_model_is_refused() -> None:
    with pytest.raises(WrongModel, match="allenai/OLMoE"):
        made().check(ROUTERS, "OlmoeForCausalLM-ffffffffffffffff")
    with pytest.raises(InterventionError, match="3 layers of 4 or 5 or 6 experts, and the model has 2 of 4 or 5"):
        made().check(ROUTERS[:2])
    with pytest.raises(InterventionError, match="experts"):
        made().check([replace(r, experts=8) for r in ROUTERS])


def test_an_empty_circuit_is_refused_by_another_model_all_the_same() -> None:
    """What does nothing would else pass in silence."""
    engine = small_engine()
    nothing = steering_for(engine, matrix=tuple(np.zeros(r.experts) for r in engine.routers))
    prompt = engine.encode(behaviours(1)[0].turns)
    assert nothing.circuit == ()
    assert engine.generate([prompt], routing=nothing, max_new_tokens=4) == engine.generate([prompt], max_new_tokens=4)
    with pytest.raises(WrongModel):
        engine.generate([prompt], routing=replace(nothing, fingerprint="Other-0"), max_new_tokens=4)


# ---------------------------------------------------------------------- wherever an intervention is accepted


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def test_the_engine_takes_it_for_an_intervention(engine: HFEngine) -> None:
    steering = steering_for(engine)
    rules = steering.intervention
    asked = behaviours(3)
    prompts = [engine.encode(b.turns) for b in asked]
    targets = [engine.encode_target(b.target) for b in asked]
    mixed, as_rules = [steering, None, rules], [rules, None, rules]
    assert engine.generate(prompts, routing=steering, max_new_tokens=6) == (
        engine.generate(prompts, routing=rules, max_new_tokens=6)
    )
    assert engine.generate(prompts, routing=mixed, max_new_tokens=6) == (
        engine.generate(prompts, routing=as_rules, max_new_tokens=6)
    )
    plain_scores = engine.score(prompts, targets)
    steered = engine.score(prompts, targets, routing=steering)
    assert steered == engine.score(prompts, targets, routing=rules)
    assert all(abs(a.total - b.total) > 1e-6 for a, b in zip(steered, plain_scores, strict=True))
    assert engine.score(prompts, targets, routing=mixed) == engine.score(prompts, targets, routing=as_rules)
    shared = [prompts[0]] * 4, [targets[0]] * 4  # rows of one prompt are computed together
    assert engine.score(*shared, routing=[steering, None, rules, steering]) == (
        engine.score(*shared, routing=[rules, None, rules, rules])
    )
    traces = [engine.trace(prompts, routing=r) for r in (steering, rules)]
    for a, b in zip(traces[0].layers, traces[1].layers, strict=True):
        assert np.array_equal(a.logits, b.logits)
        assert np.array_equal(a.experts, b.experts)
    with engine.scorer(prompts, targets, routing=steering) as one:
        totals = one.totals.copy()
    with engine.scorer(prompts, targets, routing=rules) as other:
        assert np.array_equal(totals, other.totals)
    with engine.patcher() as patcher:
        a_ = patcher.streams(prompts, [steering, None, rules])
        b_ = patcher.streams(prompts, [rules, None, rules])
    assert np.array_equal(a_.logits, b_.logits)


def test_control_takes_it(engine: HFEngine) -> None:
    steering = steering_for(engine)
    ids = torch.tensor([[5, 17, 33, 9], [7, 12, 20, 3]])
    outputs = []
    for routing in (steering, steering.intervention, [steering, None], [steering.intervention, None]):
        with control(engine.model, routing), torch.no_grad():
            outputs.append(engine.model(input_ids=ids).logits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert not torch.allclose(outputs[0][1], outputs[2][1])
    with pytest.raises(WrongModel), control(engine.model, replace(steering, fingerprint="Other-0")):
        pass
    assert plain([steering, None]) == [steering.intervention, None]


def test_stored_units_of_attempts_take_it(engine: HFEngine) -> None:
    steering, asked = steering_for(engine), behaviours(2)
    found = [
        ask_in_steps(engine, asked, TestbedJudge(), key="k", steps=Steps(), routing=routing, max_new_tokens=4)
        for routing in (steering, [steering, steering], steering.intervention)
    ]
    assert found[0] == found[1] == found[2]


def test_an_answer_does_not_depend_on_what_is_beside_it() -> None:
    """The flaw of a sigma taken from the batch: on the testbed, alone, together and in other batches."""
    engine = pointsman.load("testbed")
    rng = np.random.default_rng(3)
    matrix = tuple(rng.normal(0, 1, r.experts) * (rng.random(r.experts) < 0.3) for r in engine.routers)
    frozen = steering_for(engine, matrix=matrix, sigma=(1.0,) * len(matrix), alpha=6.0)
    asked = [
        engine.encode(b.turns) if n % 3 else engine.encode(["hello", *b.turns], answers=["yes"])
        for n, b in enumerate(behaviours(6))
    ]
    free = engine.generate(asked, max_new_tokens=24)
    for steering in (frozen, replace(frozen, per_token=True), replace(frozen, phase="prefill")):
        together = engine.generate(asked, routing=steering, max_new_tokens=24)
        alone = [engine.generate([p], routing=steering, max_new_tokens=24)[0] for p in asked]
        backwards = engine.generate(asked[::-1], routing=steering, max_new_tokens=24)[::-1]
        beside_free = engine.generate([*asked, *asked], routing=[steering] * 6 + [None] * 6, max_new_tokens=24)
        assert [c.ids for c in together] == [c.ids for c in alone] == [c.ids for c in backwards]
        assert [c.ids for c in beside_free] == [c.ids for c in together] + [c.ids for c in free]
        assert [c.ids for c in together] != [c.ids for c in free]


# ---------------------------------------------------------------------- files


def test_it_is_a_public_name() -> None:
    assert pointsman.Steering is Steering


@pytest.mark.parametrize(
    "changes", [{}, {"per_token": True, "phase": "decode", "revision": "abc", "about": {}}, {"alpha": 8.0}]
)
def test_what_is_saved_is_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    steering = made(**changes)
    folder = steering.save_pretrained(tmp_path / "deep" / "folder")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "steering.json", "steering.safetensors"]
    for name in (folder, str(folder)):
        back = Steering.from_pretrained(name)
        assert back == steering
        assert hash(back) == hash(steering)
        assert back.intervention == steering.intervention
    data = json.loads((folder / "steering.json").read_text())
    assert data["schema"] == "pointsman.steering/1"
    assert data["circuit"][0] == [2, 5, 2.0]


def test_saving_again_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    other = made(matrix=([1.0, 0.0, 0.0, 0.0], [0.0] * 5), sigma=(1.0, 1.0))
    assert Steering.from_pretrained(other.save_pretrained(tmp_path)) == other


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "steering.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return spoil


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
        (lambda f: (f / "steering.json").unlink(), "cannot read steering.json"),
        (lambda f: (f / "steering.safetensors").unlink(), "is damaged"),
        (lambda f: (f / "steering.json").write_text("{"), "not JSON"),
        (lambda f: (f / "steering.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda f: (f / "steering.json").write_text("[" * 100000), "not JSON"),
        (lambda f: (f / "steering.json").write_text("[]"), "no steering"),
        (lambda f: (f / "steering.safetensors").write_bytes(b"0" * 50), "is damaged"),
        (spoilt(lambda d: d.update(schema="other/1")), "schema 'other/1'"),
        (spoilt(lambda d: d.pop("alpha")), "is damaged"),
        (spoilt(lambda d: d.update(alpha=9)), "alpha of 9"),
        (spoilt(lambda d: d.update(alpha=-1)), "alpha of -1"),
        (spoilt(lambda d: d.update(alpha=math.nan)), "no alpha"),
        (spoilt(lambda d: d.update(alpha=None)), "no alpha"),
        (spoilt(lambda d: d.update(alpha=10**400)), "is damaged|no alpha"),
        (spoilt(lambda d: d.update(sigma=[1.0, math.inf, 1.0])), "no sigma"),
        (spoilt(lambda d: d.update(sigma=[1.0])), "3 layers with 1 sigmas"),
        (spoilt(lambda d: d.update(sigma=None)), "is damaged"),
        (spoilt(lambda d: d.update(phase={})), "phase"),
        (spoilt(lambda d: d.update(experts=[4, 5])), "is damaged"),
        (spoilt(lambda d: d.update(experts=[4, 5, 7])), "other shapes"),
        (spoilt(lambda d: d.update(circuit=[[0, 0, 1.0]])), "another one in the two files"),
        (spoilt(lambda d: d.update(circuit=7)), "is damaged"),
        (spoilt(lambda d: d.update(about=[])), "no mapping"),
        (spoilt(lambda d: d.update(about={"measured": {"x": 1}})), "not a list of rates"),
        (spoilt(lambda d: d.update(fingerprint=5)), "fingerprint"),
        (tensors(lambda t: t["layers.0"].__setitem__(0, np.nan)), "not a finite vector"),
        (tensors(lambda t: t["layers.0"].__setitem__(0, 7.0)), "another one in the two files"),
        (tensors(lambda t: t.update({"layers.1": np.zeros((5, 1), np.float32)})), "other shapes"),
        (tensors(lambda t: t.update({"layers.3": np.zeros(5, np.float32)})), "4 tensors for 3 layers"),
    ],
)
def test_a_damaged_or_hostile_folder_is_one_line(tmp_path: Path, spoil: Callable[[Path], None], match: str) -> None:
    folder = made().save_pretrained(tmp_path / "saved")
    spoil(folder)
    with pytest.raises(InterventionError, match=match) as caught:
        Steering.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in (tmp_path / "none", str(tmp_path / "none"), str(tmp_path / "file"), "./none", "a/b/c", "none"):
        with pytest.raises(InterventionError, match="There is no folder"):
            Steering.from_pretrained(name)
    with pytest.raises(InterventionError, match="Cannot write"):
        made().save_pretrained(tmp_path / "file" / "inside")


# ---------------------------------------------------------------------- the hub


def test_an_unknown_hub_id_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="Cannot find the steering 'nobody/nothing'") as caught:
        Steering.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_it_is_read_from_a_snapshot_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made().save_pretrained(tmp_path / "snapshot")
    seen: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        seen.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert Steering.from_pretrained("some/steering", revision="v2", token="t") == made()
    assert (seen["repo_id"], seen["revision"], seen["token"]) == ("some/steering", "v2", "t")
    assert seen["allow_patterns"] == ["steering.json", "steering.safetensors"]  # nothing else is fetched


def test_a_push_uploads_the_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append(("create", (repo_id, options)))
            return type("Url", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> str:
            assert Steering.from_pretrained(folder_path) == made()
            calls.append(("upload", (repo_id, sorted(p.name for p in Path(folder_path).iterdir()), options)))
            return "https://hub/me/steering/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = made().push_to_hub("steering", private=True, token="t", branch="b", create_pr=True)
    assert address == "https://hub/me/steering/commit/1"
    assert calls[0] == ("token", "t")
    assert calls[1] == ("create", ("steering", {"private": True, "exist_ok": True}))
    files = ["README.md", "steering.json", "steering.safetensors"]
    options = {"commit_message": "Add a steering", "revision": "b", "create_pr": True}
    assert calls[2] == ("upload", ("me/steering", files, options))


def test_a_push_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(InterventionError, match="ConnectionError: no network") as caught:
        made().push_to_hub("me/steering")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- the model card


def test_the_card_says_what_it_is_and_what_was_measured() -> None:
    import yaml

    measured = [
        {"what": "attacks | turn <b>", "before": RATE, "after": {**RATE, "rate": 0.9, "low": 0.8, "high": 0.95}},
        {"what": "nothing", "before": {**RATE, "rate": None, "n": 0}, "after": RATE},
    ]
    card = made(about={"scenario": "multi_turn_defence", "lambda": 1e-4, "seeds": [0, 1], "measured": measured}).card()
    _, front, body = card.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["base_model"] == "allenai/OLMoE-1B-7B-0125-Instruct"
    assert data["library_name"] == "pointsman"
    assert "steering" in data["tags"]
    assert r"| attacks \| turn \<b\> | 50.0 % [24.0, 76.0], n = 10 | 90.0 % [80.0, 95.0], n = 10 |" in body
    assert "| nothing | not measured | 50.0 % [24.0, 76.0], n = 10 |" in body
    assert "| scenario | multi\\_turn\\_defence |" in body
    assert "| lambda | 0.0001 |" in body
    assert "| seeds | 0, 1 |" in body
    assert "| circuit | 4 of 15 experts, in 2 of 3 layers |" in body
    assert "| 2 | 5 | +2.000 |" in body
    assert "Nothing was measured" not in body
    assert "Nothing was measured" in made().card()


def test_a_base_model_that_the_hub_does_not_know_is_not_in_the_front_matter(tmp_path: Path) -> None:
    """The hub refuses a card whose base model is no hub id."""
    for name in ("testbed", "./here", str(tmp_path), 'x"\nlibrary_name: evil'):
        front = made(base_model=name).card().split("---\n", 2)[1]
        assert front.startswith("library_name: pointsman\n")
        assert "evil" not in front
