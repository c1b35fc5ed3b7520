"""The gate: it scores as a literal loop does, learns what is there and nothing else, and is read back checked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pointsman.errors import BadLogits, DataError, InterventionError, RunError, UsageError, WrongModel
from pointsman.methods import gate as module
from pointsman.methods.gate import VARIANTS, FittedGate, Gate, LabelledTraces, Variant, threshold_at
from pointsman.routing.routers import Router
from traces import logits, made, write

EXPERTS = (8, 6, 8)  # two sizes of layers, not in one row
QUICK = Gate(epochs=100, hidden=8, starts=2)


def labelled(folder: Path, n: int, shift: float, seed: int, *, kinds: bool = False) -> LabelledTraces:
    one = made(folder, n, EXPERTS, shift, seed)
    names = ["wanted" if label else ("benign", "borderline")[i % 4 // 2] for i, label in enumerate(one.labels)]
    return LabelledTraces(one.store, one.labels, one.groups, names if kinds else ())


@pytest.fixture(scope="module")
def discovery(tmp_path_factory: pytest.TempPathFactory) -> LabelledTraces:
    return labelled(tmp_path_factory.mktemp("discovery"), 200, 8.0, 0)


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> LabelledTraces:
    return labelled(tmp_path_factory.mktemp("validation"), 40, 8.0, 1, kinds=True)


@pytest.fixture(scope="module")
def gates(discovery: LabelledTraces, validation: LabelledTraces) -> dict[Variant, FittedGate]:
    return {
        variant: replace(QUICK, variants=(variant,)).fit(discovery, validation, fingerprint="m-1")
        for variant in VARIANTS
    }


def contexts_of(one: LabelledTraces) -> list[list[np.ndarray]]:
    """What a model would hand over: of each request one array a layer."""
    found = []
    for row in range(len(one.store)):
        batch = one.store.batch([row])
        found.append([batch.layer(layer)[0] for layer in range(len(EXPERTS))])
    return found


def by_hand(gate: FittedGate, layers: list[np.ndarray]) -> float:
    """The score, in plain Python numbers, token by token."""
    w = {name: value.double().numpy() for name, value in gate.weights.items()}
    mean, std = gate.mean.double().numpy(), gate.std.double().numpy()
    rows = []
    for t in range(len(layers[0])):
        token = [float(value) for layer in layers for value in layer[t]]
        rows.append([(x - mean[i]) / std[i] for i, x in enumerate(token)])
    if gate.chosen.variant == "mean":
        rows = [[math.fsum(row[i] for row in rows) / len(rows) for i in range(len(mean))]]
    starts = []
    for start in range(len(w["bias"])):
        odds = []
        for row in rows:
            z = row
            if gate.chosen.variant == "mlp":
                z = [
                    max(0.0, math.fsum(a * b for a, b in zip(unit, row, strict=True)) + float(bias))
                    for unit, bias in zip(w["hidden"][start], w["hidden_bias"][start], strict=True)
                ]
            odds.append(math.fsum(a * b for a, b in zip(w["weight"][start], z, strict=True)) + float(w["bias"][start]))
        starts.append(max(odds))
    return sum(starts) / len(starts)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_a_literal_loop(
    variant: Variant, gates: dict[Variant, FittedGate], validation: LabelledTraces
) -> None:
    gate = gates[variant]
    wanted = [by_hand(gate, layers) for layers in contexts_of(validation)]
    assert gate.scores(validation.store) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert np.ptp(wanted) > 1  # not all the same


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_batch_nor_order_changes_a_bit(
    variant: Variant, gates: dict[Variant, FittedGate], validation: LabelledTraces
) -> None:
    gate, contexts = gates[variant], contexts_of(validation)
    together = gate.scores(contexts)
    assert together.tolist() == [gate.scores([one])[0] for one in contexts]
    assert together.tolist() == gate.scores(contexts[::-1])[::-1].tolist()
    assert together.tolist() == gate.scores(validation.store).tolist()
    assert gate.flags(contexts).tolist() == (together > gate.threshold).tolist()
    assert gate.scores([]).shape == (0,)


def test_logits_are_read_as_they_would_be_kept(gates: dict[Variant, FittedGate], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    fresh = [[layer.astype(np.float32) for layer in logits(rng, 4, EXPERTS)] for _ in range(5)]
    half, full = write(tmp_path / "half", fresh), write(tmp_path / "full", fresh, dtype=np.float32)
    for gate in gates.values():
        assert gate.scores(fresh).tolist() == gate.scores(half).tolist() == gate.scores(full).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_what_is_there(variant: Variant, gates: dict[Variant, FittedGate]) -> None:
    trial = gates[variant].chosen
    assert trial.auroc.value == 1.0
    assert (trial.detected.k, trial.detected.n) == (20, 20)
    assert (trial.false_alarms.k, trial.false_alarms.n) == (0, 20)
    assert trial.losses[1] < trial.losses[0]
    assert {kind: (rate.k, rate.n) for kind, rate in trial.by_kind.items()} == {
        "benign": (0, 10),
        "borderline": (0, 10),
    }


def test_it_finds_nothing_where_labels_are_shuffled(tmp_path: Path) -> None:
    noise = labelled(tmp_path / "d", 160, 8.0, 2), labelled(tmp_path / "v", 160, 8.0, 3)
    rng = np.random.default_rng(0)
    shuffled = [replace(one, labels=rng.permutation(one.labels).tolist()) for one in noise]
    gate = QUICK.fit(*shuffled, fingerprint="m-1")
    for trial in gate.trials:
        assert 0.35 < trial.auroc.value < 0.65
        assert trial.false_alarms.k == 0


def test_the_best_on_validation_is_kept_and_the_simplest_of_equals(
    discovery: LabelledTraces, validation: LabelledTraces
) -> None:
    gate = replace(QUICK, variants=("mlp", "linear", "mean")).fit(discovery, validation, fingerprint="m-1")
    assert [trial.variant for trial in gate.trials] == ["mlp", "linear", "mean"]
    assert {trial.auroc.value for trial in gate.trials} == {1.0}
    assert gate.chosen.variant == "mean"


def test_one_telling_token_is_found_by_the_maximum_and_not_by_the_mean(tmp_path: Path) -> None:
    """Label 1 has one token high and one low in the same logit: the mean of both is that of any other request."""

    def some(folder: Path, seed: int) -> LabelledTraces:
        rng = np.random.default_rng(seed)
        labels = [n % 2 for n in range(120)]
        contexts = []
        for label in labels:
            layers = logits(rng, 6, EXPERTS)
            layers[0][:2, 0] = (9.0, -9.0) if label else (0.0, 0.0)
            contexts.append(layers)
        return LabelledTraces(write(folder, contexts), labels, [f"q{n // 2}" for n in range(120)])

    gate = QUICK.fit(some(tmp_path / "d", 0), some(tmp_path / "v", 1), fingerprint="m-1")
    found = {trial.variant: trial.auroc.value for trial in gate.trials}
    assert found["mean"] < 0.7 < 0.99 < found["linear"]
    assert gate.chosen.variant != "mean"


def test_the_same_again_in_any_pieces(
    gates: dict[Variant, FittedGate],
    discovery: LabelledTraces,
    validation: LabelledTraces,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        gates["mlp"].identity
        == replace(QUICK, variants=("mlp",)).fit(discovery, validation, fingerprint="m-1").identity
    )
    one = replace(QUICK, variants=("mlp",), epochs=5)
    state = torch.random.get_rng_state()
    first = one.fit(discovery, validation, fingerprint="m-1")
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's own stream is left alone
    monkeypatch.setattr(module, "HELD_BYTES", 0)  # read anew in every epoch
    assert one.fit(discovery, validation, fingerprint="m-1").identity == first.identity
    assert replace(one, seed=1).fit(discovery, validation, fingerprint="m-1").identity != first.identity
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)  # a context at a time: the same sums, in another order
    again = one.fit(discovery, validation, fingerprint="m-1")
    assert again.scores(validation.store) == pytest.approx(first.scores(validation.store), rel=1e-3, abs=1e-3)


def test_standardisation_is_that_of_discovery(
    gates: dict[Variant, FittedGate], discovery: LabelledTraces, tmp_path: Path
) -> None:
    tokens = np.concatenate([np.concatenate(layers, axis=1) for layers in contexts_of(discovery)]).astype(np.float64)
    assert gates["mean"].mean.numpy() == pytest.approx(tokens.mean(0), abs=1e-5)
    assert gates["mean"].std.numpy() == pytest.approx(tokens.std(0), rel=1e-5)
    constant = [[np.full((3, e), 7.0) for e in EXPERTS] for _ in range(4)]
    mean, std = module._standard(write(tmp_path, constant))
    assert set(mean.tolist()) == {7.0}
    assert set(std.tolist()) == {1.0}  # what never changes is not divided by nothing


# ---------------------------------------------------------------------- the threshold


@pytest.mark.parametrize(
    ("scores", "labels", "rate", "wanted"),
    [
        ([0, 1, 2, 8, 9], [0, 0, 0, 1, 1], 0.0, 5.0),  # in the middle of the gap
        ([0, 1, 2, 8, 9], [0, 0, 0, 1, 1], 0.5, 5.0),  # a limit is no goal
        ([0, 1, 5, 4, 9], [0, 0, 0, 1, 1], 0.0, 7.0),  # 4 is given up
        ([0, 1, 5, 4, 9], [0, 0, 0, 1, 1], 0.34, 2.5),  # one of three may be flagged: 4 is found
        ([3, 4, 5, 1, 2], [0, 0, 0, 1, 1], 0.0, 5.0),  # nothing can be found: nothing is flagged
        ([2, 2, 2, 2, 2], [0, 0, 0, 1, 1], 0.34, 2.0),
    ],
)
def test_threshold(scores: list[float], labels: list[int], rate: float, wanted: float) -> None:
    assert threshold_at(scores, labels, rate) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_threshold_keeps_its_limit_and_no_other_finds_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 30, 60).astype(float), np.append([0, 1], rng.integers(0, 2, 58))
    rate = float(rng.choice([0.0, 0.05, 0.1, 0.3]))
    flags = scores > threshold_at(scores, labels.tolist(), rate)
    within = []
    for t in np.arange(-1, 31) + 0.5:  # every cut that there is
        other = scores > t
        if other[labels == 0].mean() <= rate + 1e-12:
            within.append((int(other[labels == 1].sum()), -int(other[labels == 0].sum())))
    assert (int(flags[labels == 1].sum()), -int(flags[labels == 0].sum())) == max(within)


def test_the_note_says_what_so_few_rows_show(gates: dict[Variant, FittedGate]) -> None:
    note = gates["mlp"].note()
    assert "flags 20 of 20 requests that the mask is for and 0 of 20 others" in note
    assert gates["mlp"].chosen.shown == pytest.approx(1 - 0.05 ** (1 / 20), abs=0.01)  # 20 source questions
    assert "598 independent rows" in note


# ---------------------------------------------------------------------- on disk


def test_it_is_read_back_the_same(gates: dict[Variant, FittedGate], validation: LabelledTraces, tmp_path: Path) -> None:
    for variant, gate in gates.items():
        back = FittedGate.load(gate.save(tmp_path / f"{variant}.safetensors"))
        assert back.identity == gate.identity
        assert (back.trials, back.parameters, back.experts, back.fingerprint) == (
            gate.trials, gate.parameters, gate.experts, gate.fingerprint
        )  # fmt: skip
        assert back.scores(validation.store).tolist() == gate.scores(validation.store).tolist()


def _damage(what: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    if what == "schema":
        about["schema"] = "pointsman.gate/9"
    elif what == "variant":
        about["chosen"] = "forest"
    elif what == "threshold":
        about["trials"][0]["threshold"] = float("nan")
    elif what == "experts":
        about["experts"] = [8, 6, 9]
    elif what == "no experts":
        about["experts"] = []
    elif what == "fingerprint":
        about["fingerprint"] = 3
    elif what == "hidden":
        about["parameters"]["hidden"] = 10**12
    elif what == "starts":
        about["parameters"]["starts"] = 1
    elif what == "more parameters":
        about["parameters"]["surprise"] = 1
    elif what == "parameters":
        about["parameters"] = []
    elif what == "trials":
        about["trials"] = [7]
    elif what == "a missing weight":
        del tensors["hidden"]
    elif what == "a weight too many":
        tensors["more"] = torch.zeros(1)
    elif what == "half a weight":
        tensors["weight"] = tensors["weight"][:-1].clone()
    elif what == "another type":
        tensors["weight"] = tensors["weight"].double()
    elif what == "no number":
        tensors["weight"] = torch.full_like(tensors["weight"], torch.nan)
    elif what == "no spread":
        tensors["std"] = torch.zeros_like(tensors["std"])


@pytest.mark.parametrize(
    "what",
    [
        "schema", "variant", "threshold", "experts", "no experts", "fingerprint", "hidden", "starts", "more parameters",
        "parameters", "trials", "a missing weight", "a weight too many", "half a weight", "another type", "no number",
        "no spread",
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(what: str, gates: dict[Variant, FittedGate], tmp_path: Path) -> None:
    path = gates["mlp"].save(tmp_path / "gate.safetensors")
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["pointsman"])
    tensors = load_file(path)
    save_file(tensors, path, metadata={"pointsman": json.dumps(about)})
    assert FittedGate.load(path).identity == gates["mlp"].identity  # written again so, it is whole
    _damage(what, tensors, about)
    save_file(tensors, path, metadata={"pointsman": json.dumps(about)})
    with pytest.raises(RunError, match="is not a whole gate") as refused:
        FittedGate.load(path)
    assert "\n" not in str(refused.value.problem)


def test_no_file_and_no_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("gate")
    save_file({"mean": torch.zeros(1)}, tmp_path / "bare")
    for name in ("text", "bare", "missing"):
        with pytest.raises(RunError, match="is not a whole gate"):
            FittedGate.load(tmp_path / name)


# ---------------------------------------------------------------------- what is refused


def test_another_model_is_refused(gates: dict[Variant, FittedGate], tmp_path: Path) -> None:
    gate = gates["mean"]
    routers = [Router(n, n, f"layer {n}", e, 2) for n, e in enumerate(EXPERTS)]
    gate.check(routers, "m-1")
    with pytest.raises(WrongModel, match="This gate is for m-1, and the model is m-2"):
        gate.check(routers, "m-2")
    with pytest.raises(InterventionError, match="A gate for 3 layers"):
        gate.check(routers[:2], "m-1")
    with pytest.raises(DataError, match="the gate knows 3 and 22"):
        gate.scores(made(tmp_path, 4).store)


def test_requests_that_cannot_be_read_are_refused(gates: dict[Variant, FittedGate]) -> None:
    gate = gates["mean"]
    whole = [np.zeros((3, e), dtype=np.float32) for e in EXPERTS]
    assert gate.scores([whole]).shape == (1,)
    for wrong in (whole[:2], [], [r[:0] for r in whole], [whole[0][:2], *whole[1:]]):
        with pytest.raises(DataError, match="logits have the shapes"):
            gate.scores([wrong])
    for value in (np.nan, np.inf):
        with pytest.raises(BadLogits, match="not finite"):
            gate.scores([[np.full_like(whole[0], value), *whole[1:]]])


def test_labels_that_do_not_fit_are_refused(discovery: LabelledTraces) -> None:
    with pytest.raises(DataError, match="200 traces, 1 labels"):
        replace(discovery, labels=[1])
    for labels in ([1] * 200, [0] * 200, [2, *[0, 1] * 99, 0]):
        with pytest.raises(DataError, match="A gate for requests with the labels"):
            replace(discovery, labels=labels)
    with pytest.raises(DataError, match="1 kinds of 200"):
        replace(discovery, kinds=["benign"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"variants": ()}, {"variants": ("forest",)}, {"variants": ("mlp", "mlp")}, {"false_alarms": 1.0},
        {"false_alarms": -0.1}, {"false_alarms": math.nan}, {"hidden": 0}, {"epochs": 0}, {"epochs": 2.5}, {"lr": 0.0},
        {"lr": math.inf}, {"starts": 0}, {"decay": -1.0},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Gate(**wrong)


def test_a_gate_that_diverges_is_refused(discovery: LabelledTraces, validation: LabelledTraces) -> None:
    with pytest.raises(UsageError, match="diverged"):
        Gate(variants=("mlp",), epochs=5, lr=1e30).fit(discovery, validation, fingerprint="m-1")
