"""The surrogate: it learns what is there, honestly held out, whatever the batch."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pointsman.errors import DataError, RunError, UsageError
from pointsman.methods import surrogate as module
from pointsman.methods.surrogate import (
    FittedSurrogate,
    LengthOnly,
    Matched,
    Surrogate,
    SurrogateReport,
    length_only,
    matched,
    split,
)
from pointsman.stats.auroc import Auroc
from pointsman.stats.calibration import Calibration, CalibrationBin
from traces import Made, logits, made, write

SMALL = Surrogate(width=4, hidden=8, epochs=12, batch=32)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def fitted(traces: Made) -> FittedSurrogate:
    return SMALL.fit(traces.store, traces.labels, groups=traces.groups)


def test_it_learns_what_the_logits_tell(traces: Made, fitted: FittedSurrogate) -> None:
    report = fitted.report
    assert (report.n_train, report.n_held_out) == (64, 16)
    assert report.accuracy > 0.85 > report.majority == 0.5
    assert 0.9 < report.auroc.value <= 1.0
    assert report.auroc.low < report.auroc.value <= report.auroc.high
    assert sum(b.n for b in report.calibration.bins) == 16
    assert len(report.losses) == 12
    assert report.losses[-1] < report.losses[0]
    assert not fitted.network.training
    assert not any(p.requires_grad for p in fitted.network.parameters())
    _, held_out = split(traces.labels, traces.groups, 0)
    p = fitted.probabilities(traces.store, held_out)
    assert report.accuracy == ((p >= 0.5) == np.array(traces.labels)[held_out]).mean()


def test_it_finds_nothing_where_nothing_is(tmp_path: Path) -> None:
    noise = made(tmp_path, n=200, shift=0.0)
    report = replace(SMALL, epochs=3).fit(noise.store, noise.labels, groups=noise.groups).report
    assert report.auroc.low < 0.5 < report.auroc.high


def test_padding_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    contexts = [logits(rng, length, (8, 4, 8)) for length in (2, 9, 1, 5)]
    store = write(tmp_path, contexts)
    network = replace(SMALL, dtype="float64").network(store.experts)
    alone = FittedSurrogate(network, SMALL, _report())
    together = alone.probability(store.batch([0, 1, 2, 3]))
    for number in range(4):
        assert alone.probability(store.batch([number]))[0] == pytest.approx(together[number], abs=1e-13)
    assert alone.probability(store.batch([3, 1])) == pytest.approx(together[[3, 1]], abs=1e-13)
    assert alone.probability(store.tokens([3, 1])) == pytest.approx(together[[3, 1]], abs=1e-13)
    assert alone.probabilities(store) == pytest.approx(together, abs=1e-13)
    assert alone.probabilities(store, []).shape == (0,)
    batch = store.batch([0, 1])  # what is in the padding is never looked at
    for block in batch.blocks:
        block[~batch.mask] = np.nan
    assert alone.probability(batch) == pytest.approx(together[[0, 1]], abs=1e-13)


def test_gradients_do_not_depend_on_how_a_batch_is_cut(traces: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = replace(SMALL, epochs=2, dtype="float64")
    whole = exact.fit(traces.store, traces.labels, groups=traces.groups)
    monkeypatch.setattr(module, "MICRO_BYTES", 1)  # one context at a time
    pieces = exact.fit(traces.store, traces.labels, groups=traces.groups)
    assert pieces.report.losses == pytest.approx(whole.report.losses, abs=1e-12)
    for a, b in zip(whole.network.state_dict().values(), pieces.network.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


def test_it_is_a_function_of_its_seed_and_leaves_the_global_one(traces: Made, fitted: FittedSurrogate) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    told: list[int] = []
    again = SMALL.fit(traces.store, traces.labels, groups=traces.groups, progress=told.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.report == fitted.report
    assert told == [1] * SMALL.epochs
    other = replace(SMALL, seed=1).fit(traces.store, traces.labels, groups=traces.groups)
    assert other.report.losses != fitted.report.losses


def test_layers_with_other_experts_work(tmp_path: Path) -> None:
    mixed = made(tmp_path, n=60, experts=(8, 16, 8, 4))
    report = SMALL.fit(mixed.store, mixed.labels, groups=mixed.groups).report
    assert report.auroc.value > 0.9


def test_it_is_saved_and_loaded(traces: Made, fitted: FittedSurrogate, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "surrogate.safetensors")
    loaded = FittedSurrogate.load(path)
    assert loaded.report == fitted.report
    assert loaded.parameters == fitted.parameters
    assert np.array_equal(loaded.probabilities(traces.store), fitted.probabilities(traces.store))
    assert SurrogateReport.from_json(asdict(fitted.report)) == fitted.report


def test_a_damaged_one_is_refused(fitted: FittedSurrogate, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = fitted.save(tmp_path / "surrogate.safetensors")
    whole = path.read_bytes()
    for content in (whole[:-1], b"", whole.replace(b"surrogate/1", b"surrogate/9"), whole.replace(b"width", b"wodth")):
        path.write_bytes(content)
        with pytest.raises(RunError, match="not a whole surrogate"):
            FittedSurrogate.load(path)
    with pytest.raises(RunError, match="not a whole surrogate"):
        FittedSurrogate.load(tmp_path / "nothing")
    path.write_bytes(whole)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for name, value in (
        ("head.bias", torch.full((1,), torch.nan)),
        ("head.bias", torch.zeros(2)),
        ("other", torch.zeros(1)),
    ):
        save_file({**tensors, name: value}, path, metadata=metadata)
        with pytest.raises(RunError, match="not a whole surrogate"):
            FittedSurrogate.load(path)


def test_traces_of_another_model_are_refused(fitted: FittedSurrogate, tmp_path: Path) -> None:
    other = made(tmp_path, n=4, experts=(8, 4))
    with pytest.raises(DataError, match=r"2 layers of 4 to 8 experts, the surrogate knows 3 of 8"):
        fitted.probabilities(other.store)


def test_sides_share_no_source_and_hold_both_labels() -> None:
    rng = np.random.default_rng(0)
    groups = [f"q{g}" for g in rng.integers(0, 60, size=400)]
    labels = [int(g[1:]) % 7 == 0 for g in groups]  # a group has one label; the rarer one is rare
    for seed in range(5):
        train, held_out = split([int(v) for v in labels], groups, seed)
        assert sorted([*train, *held_out]) == list(range(400))
        assert not {groups[i] for i in train} & {groups[i] for i in held_out}
        assert 0.1 < len(held_out) / 400 < 0.35
        assert {labels[i] for i in held_out} == {True, False}
    assert not np.array_equal(split(labels, groups, 0)[1], split(labels, groups, 1)[1])


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([], []),
        ([0] * 40, [str(i) for i in range(40)]),
        ([0, 1] * 20, ["a"] * 40),
        ([0, 1] * 4, list("aabbccdd")),
        ([1] + [0] * 39, [str(i) for i in range(40)]),
    ],
)
def test_too_few_contexts_are_refused(labels: list[int], groups: list[str]) -> None:
    with pytest.raises(DataError, match="Too few contexts"):
        split(labels, groups, 0)


def test_arguments_out_of_range_are_refused(traces: Made) -> None:
    with pytest.raises(DataError, match="80 traces, 79 labels"):
        SMALL.fit(traces.store, traces.labels[1:], groups=traces.groups)
    with pytest.raises(DataError, match="not 0 or 1"):
        SMALL.fit(traces.store, [2] * 80, groups=traces.groups)
    for wrong in ({"width": 0}, {"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"dtype": "float16"}):
        with pytest.raises(UsageError):
            replace(SMALL, **wrong)


def test_length_alone_tells_leaked_labels(traces: Made) -> None:
    rng = np.random.default_rng(0)
    n = 200
    labels, groups = [i % 2 for i in range(n)], [str(i // 2) for i in range(n)]
    tokens = rng.integers(5, 30, size=n)
    leaked = length_only(np.stack([1 + 3 * np.array(labels), tokens], axis=1), labels, groups, 0)
    assert (leaked.feature, leaked.auroc.value, leaked.accuracy) == ("turns", 1.0, 1.0)
    fair = length_only(np.stack([np.full(n, 4), tokens], axis=1), labels, groups, 0)
    assert fair.auroc.low < 0.5 < fair.auroc.high
    noisy = tokens - 6 * np.array(labels)
    part = length_only([[3, int(t)] for t in noisy], labels, groups, 0)
    assert part.feature == "tokens"
    assert 0.6 < part.auroc.value < 0.95
    assert part.auroc.n == 40
    with pytest.raises(DataError, match="turns and tokens"):
        length_only([[3]] * n, labels, groups, 0)


def test_logistic_regression_is_at_its_optimum() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    label = (rng.random(300) < 1 / (1 + np.exp(-(0.5 + 2 * x)))).astype(float)
    design = np.stack([np.ones(300), x], axis=1)
    found = module._logistic(design, label)
    slope = design.T @ (1 / (1 + np.exp(-design @ found)) - label) + 1e-3 * found
    assert np.abs(slope).max() < 1e-7
    assert np.isfinite(module._logistic(design, (x > 0).astype(float))).all()  # separable


def test_what_is_stored_has_these_keys_in_this_order() -> None:
    auroc = Auroc(0.9, 0.8, 1.0, 2)
    report = SurrogateReport(0.7, 0.5, auroc, Calibration(0.1, (CalibrationBin(0.4, 0.5, 2),)), 8, 2, (0.6, 0.3))
    area = '{"value": 0.9, "low": 0.8, "high": 1.0, "n": 2}'
    assert json.dumps(asdict(report)) == (
        f'{{"accuracy": 0.7, "majority": 0.5, "auroc": {area}, "calibration": {{"ece": 0.1, "bins": '
        '[{"p": 0.4, "observed": 0.5, "n": 2}]}, "n_train": 8, "n_held_out": 2, "losses": [0.6, 0.3]}'
    )
    assert json.dumps(asdict(LengthOnly("turns", auroc, 0.7))) == (
        f'{{"feature": "turns", "auroc": {area}, "accuracy": 0.7}}'
    )
    assert json.dumps(asdict(Matched(auroc, 0.7, 0.6, 0.8, 1))) == (
        f'{{"auroc": {area}, "accuracy": 0.7, "low": 0.6, "high": 0.8, "pairs": 1}}'
    )


def test_matched_pairs(traces: Made, fitted: FittedSurrogate) -> None:
    pairs = [(2 * i + 1, 2 * i) for i in range(40)]
    found = matched(fitted, traces.store, pairs, groups=traces.groups)
    p = fitted.probabilities(traces.store)
    assert found.pairs == 40
    assert found.accuracy == np.mean([p[a] > p[b] for a, b in pairs])
    assert found.low <= found.accuracy <= found.high
    assert found.auroc.value == pytest.approx(Auroc.of(p, traces.labels).value)
    turned = matched(fitted, traces.store, [(b, a) for a, b in pairs], groups=traces.groups)
    assert turned.accuracy == pytest.approx(1 - found.accuracy)
    none = matched(fitted, traces.store, [], groups=traces.groups)
    assert none == Matched(None, None, 0.0, 1.0, 0)
    with pytest.raises(DataError):
        matched(fitted, traces.store, pairs, groups=traces.groups[1:])


def _report() -> SurrogateReport:
    return SurrogateReport(1.0, 0.5, Auroc(1.0, 0.5, 1.0, 2), Calibration(0.0, ()), 1, 1, (0.1,))
