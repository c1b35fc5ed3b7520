"""Traces on disk: what is read is what was written, and damage is said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from pointsman.errors import BadLogits, DataError, RunError, UsageError
from pointsman.routing.store import INDEX, TraceStore, TraceWriter, discard_if_damaged, runs
from traces import logits, write

EXPERTS = (8, 4, 8)


def contexts(lengths: tuple[int, ...] = (3, 1, 5, 2), seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [logits(rng, length, EXPERTS) for length in lengths]


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    wrote = contexts()
    store = write(tmp_path / "a", wrote, shard_bytes=150)  # several shards
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 4
    assert (store.ids, store.lengths.tolist(), store.experts) == (("c0", "c1", "c2", "c3"), [3, 1, 5, 2], EXPERTS)
    asked = [2, 0, 3, 0]
    batch = store.batch(asked)
    assert batch.mask.sum(axis=1).tolist() == [5, 3, 2, 3]
    assert batch.layers == ((0, 2), (1,))
    for layer in range(3):
        read = batch.layer(layer)
        assert read.dtype == np.float32
        for row, number in enumerate(asked):
            length = len(wrote[number][layer])
            assert np.array_equal(read[row, :length], half(wrote[number][layer]))
            assert not read[row, length:].any()
    tokens = store.tokens(asked)
    assert all(np.array_equal(a, b) for a, b in zip(tokens.blocks, batch.tokens().blocks, strict=True))
    assert tokens.lengths.tolist() == batch.lengths.tolist()
    assert store.bytes_of(asked) == 13 * 20 * 4
    with pytest.raises(IndexError):
        batch.layer(3)


def test_shards_do_not_change_what_is_read(tmp_path: Path) -> None:
    wrote = contexts()
    one, many = write(tmp_path / "one", wrote), write(tmp_path / "many", wrote, shard_bytes=1)
    assert np.array_equal(one.batch([3, 1]).layer(0), many.batch([3, 1]).layer(0))
    assert np.array_equal(one.stds(), many.stds()) or one.stds() == pytest.approx(many.stds(), abs=1e-12)


def test_only_the_rows_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    store = write(tmp_path, contexts(), shard_bytes=1)
    opened: list[str] = []
    real = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **o: opened.append(Path(path).name) or real(path, **o))
    store.batch([2, 2])
    assert opened == ["traces-00002.safetensors"]


def test_values_too_large_for_float16_are_kept(tmp_path: Path) -> None:
    wrote = contexts()
    wrote[1][0][0, 0] = 1e6 + 1
    store = write(tmp_path, wrote)
    assert store.batch([1]).layer(0)[0, 0, 0] == np.float32(1e6 + 1)
    assert np.array_equal(store.batch([1]).layer(2)[0], wrote[1][2].astype(np.float32))
    # its neighbours in the shard are what they would be without it
    assert np.array_equal(store.batch([0]).layer(0)[0], half(wrote[0][0]))
    whole = write(tmp_path / "float32", wrote, dtype=np.float32)
    assert np.array_equal(whole.batch([0]).layer(0)[0], wrote[0][0].astype(np.float32))


def test_the_standard_deviation_is_over_real_tokens_and_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.routing import store as module

    wrote = contexts()
    wrote = [[r + 100 for r in context] for context in wrote]  # far from zero: a naive sum of squares would be off
    store = write(tmp_path, wrote)
    literal = [
        np.concatenate([half(context[layer]).astype(np.float64).ravel() for context in wrote]).std()
        for layer in range(3)
    ]
    assert store.stds() == pytest.approx(literal, abs=1e-12)
    monkeypatch.setattr(module.TraceStore.chunks, "__defaults__", (1,))
    assert store.stds() == pytest.approx(literal, abs=1e-12)
    some = [
        np.concatenate([half(wrote[i][layer]).astype(np.float64).ravel() for i in (1, 3)]).std() for layer in range(3)
    ]
    assert store.stds([3, 1]) == pytest.approx(some, abs=1e-12)
    with pytest.raises(DataError, match="no traces"):
        store.stds([])


def test_a_store_is_continued(tmp_path: Path) -> None:
    wrote = contexts()
    writer = TraceWriter(tmp_path, experts=EXPERTS, shard_bytes=1)
    for number in (0, 1, 2):
        writer.add(f"c{number}", wrote[number])
    del writer  # a kill: c2 was pending
    (tmp_path / ".tmp-traces-00002.safetensors").write_bytes(b"half a shard")
    (tmp_path / "traces-00002.safetensors").write_bytes(b"a shard that the index does not know")
    assert TraceStore.open(tmp_path).ids == ("c0", "c1")
    with TraceWriter(tmp_path, experts=EXPERTS) as writer:
        assert list(writer.ids) == ["c0", "c1"]
        assert len(writer) == 2
        for number in (3, 2):
            writer.add(f"c{number}", wrote[number])
    store = TraceStore.open(tmp_path, verify=True)
    assert store.ids == ("c0", "c1", "c3", "c2")
    assert np.array_equal(store.batch([3]).layer(1)[0], half(wrote[2][1]))
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_error_keeps_what_was_added(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TraceWriter(tmp_path, experts=EXPERTS) as writer:
            writer.add("c0", contexts()[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert TraceStore.open(tmp_path).ids == ("c0",)


def test_what_cannot_be_a_trace_is_refused(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, experts=EXPERTS)
    good = contexts()[0]
    writer.add("c0", good)
    with pytest.raises(DataError, match="'c0' has traces already"):
        writer.add("c0", good)
    for wrong in ([], good[:2], [r[:0] for r in good], [good[0], good[1][:2], good[2]], [r.ravel() for r in good]):
        with pytest.raises(DataError, match="has the shapes"):
            writer.add("c1", wrong)
    for value in (np.nan, np.inf, 1e300):
        bad = [r.copy() for r in good]
        bad[1][1, 1] = value
        with pytest.raises(BadLogits, match="'c1' are not finite"):
            writer.add("c1", bad)
    assert list(writer.ids) == ["c0"]
    for options in ({"experts": ()}, {"experts": (0,)}, {"dtype": "int8"}, {"shard_bytes": 0}):
        with pytest.raises(UsageError):
            TraceWriter(tmp_path, **{"experts": EXPERTS, **options})  # type: ignore[arg-type]


def test_another_model_or_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", contexts())
    with pytest.raises(RunError, match="another model"):
        TraceWriter(tmp_path / "a", experts=(8, 8))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        TraceWriter(tmp_path / "file" / "b", experts=EXPERTS)
    with pytest.raises(RunError, match="holds no traces"):
        TraceStore.open(tmp_path / "nowhere")
    store = TraceStore.open(tmp_path / "a")
    for wrong in ([4], [-1]):
        with pytest.raises(UsageError, match="no context"):
            store.batch(wrong)


def test_damage_is_said_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, contexts())
    shard, index = tmp_path / "traces-00000.safetensors", tmp_path / INDEX
    whole, listed = shard.read_bytes(), index.read_bytes()

    def refused(match: str, verify: bool = False) -> None:
        with pytest.raises(RunError, match=match) as error:
            TraceStore.open(tmp_path, verify=verify)
        assert "\n" not in str(error.value)
        assert "collect the traces again" in str(error.value) or "version of Pointsman" in str(error.value)

    shard.write_bytes(whole[:-1])
    refused("torn: ")
    with pytest.raises(RunError, match="torn"):
        TraceWriter(tmp_path, experts=EXPERTS)
    shard.write_bytes(b"\xff" * len(whole))
    refused("is damaged")
    shard.write_bytes(whole[:-2] + b"\x00\x7e")  # a NaN
    with pytest.raises(RunError, match="its checksum differs"):
        TraceStore.open(tmp_path).tokens(range(4))
    refused("its checksum differs", verify=True)
    shard.unlink()
    refused("is missing")
    shard.write_bytes(whole)
    assert len(TraceStore.open(tmp_path, verify=True)) == 4

    index.write_bytes(listed[:-30])
    refused("is damaged")
    index.write_bytes(listed.replace(b"c0", b"c7"))
    refused("its checksum differs")
    index.write_bytes(listed.replace(b"traces/1", b"traces/9"))
    refused("schema")
    for change in (
        {"experts": []},
        {"experts": [8, 8, 8]},
        {"shards": [{}]},
        {"shards": 3},
        {"file": "../../x.safetensors"},
        {"lengths": [0]},
        {"ids": ["c0", "c0", "c2", "c3"]},
        {"dtype": "F32"},
    ):
        traces = json.loads(listed)["traces"]
        (traces if set(change) & {"experts", "shards"} else traces["shards"][0]).update(change)
        check = crc32(json.dumps(traces).encode())
        index.write_text(json.dumps({"schema": "pointsman.traces/1", "crc32": check, "traces": traces}))
        refused("damaged")


def flip(shard: Path) -> None:
    """One bit of the last logit."""
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_a_flipped_bit_is_noticed_when_its_shard_is_read(tmp_path: Path) -> None:
    store = write(tmp_path, contexts(), shard_bytes=1)
    flip(tmp_path / "traces-00002.safetensors")
    for reading in (store, TraceStore.open(tmp_path)):
        assert len(reading.batch([0, 1, 3]).mask) == 3, "other shards are sound"
        with pytest.raises(RunError, match=r"traces-00002\.safetensors is damaged \(its checksum differs\)"):
            reading.batch([2])


def test_damaged_traces_are_discarded_and_nothing_else(tmp_path: Path) -> None:
    wrote = contexts()
    write(tmp_path, wrote, shard_bytes=1)
    (tmp_path / "mine.txt").write_text("x")
    assert not discard_if_damaged(tmp_path)
    assert not discard_if_damaged(tmp_path / "none")
    assert TraceStore.open(tmp_path).ids == ("c0", "c1", "c2", "c3")
    flip(tmp_path / "traces-00001.safetensors")
    assert discard_if_damaged(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", [INDEX, "traces-00000.safetensors"])
def test_a_store_is_not_read_through_a_link(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a", contexts())
    (tmp_path / "a" / name).rename(tmp_path / name)
    (tmp_path / "a" / name).symlink_to(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} is a link or no plain file"):
        TraceStore.open(tmp_path / "a")
    with pytest.raises(RunError, match=f"{name} is a link or no plain file"):
        TraceWriter(tmp_path / "a", experts=EXPERTS)


def test_a_shard_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    writer = TraceWriter(tmp_path / "a", experts=EXPERTS)
    for name in ("traces-00000.safetensors", INDEX):
        (tmp_path / "a" / f".tmp-{name}").symlink_to(tmp_path / "mine")  # after the leftovers were cleared
        (tmp_path / "a" / name).symlink_to(tmp_path / "mine")
    writer.add("c0", contexts()[0])
    writer.flush()
    assert (tmp_path / "mine").read_text() == "x"
    assert TraceStore.open(tmp_path / "a", verify=True).ids == ("c0",)


def test_runs_fill_a_limit() -> None:
    assert list(runs(np.array([3, 3, 9, 1, 1]), 6)) == [(0, 2), (2, 3), (3, 5)]
    assert list(runs(np.array([], dtype=np.int64), 6)) == []
