"""Traces on disk: the raw router logits of many contexts, in shards that are read a batch at a time (METHODS 5.2).

    traces.json                 the index: experts of every layer, the shards, their contexts; with a checksum
    traces-00000.safetensors    one tensor for every distinct number of experts E, shape: [tokens, layers with E, E]

A shard holds whole contexts one after the other, so a context is one slice of it. Nothing but the rows asked for is
read, one shard is mapped at a time, and memory stays bounded however many contexts there are.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, KeysView, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pointsman.errors import BadLogits, DataError, RunError, UsageError

SCHEMA = "pointsman.traces/1"
INDEX = "traces.json"
SHARD_BYTES = 256 << 20
CHUNK_BYTES = 16 << 20  # of float32, read at once where the whole store is gone through

_TEMPORARY = ".tmp-"
_DTYPES = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
_AGAIN = "Delete the folder and collect the traces again"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tokens:
    """The traces of some contexts, token after token, without padding.

    Attributes:
        blocks: For every distinct number of experts E, the logits of the layers that have it.
            Shapes: [N, layers with E, E], float32.
        layers: The MoE layers of each block, ascending.
        lengths: Tokens of every context; they sum to N. Shape: [B].
    """

    blocks: tuple[Array, ...]
    layers: tuple[tuple[int, ...], ...]
    lengths: Array


@dataclass(frozen=True)
class Batch:
    """The same, padded on the right with zeros.

    Attributes:
        blocks: Shapes: [B, T, layers with E, E], float32.
        layers: The MoE layers of each block, ascending.
        mask: True at real tokens. Shape: [B, T].
    """

    blocks: tuple[Array, ...]
    layers: tuple[tuple[int, ...], ...]
    mask: Array

    @property
    def lengths(self) -> Array:
        """Tokens of every context. Shape: [B]."""
        return np.asarray(self.mask.sum(axis=1))

    def layer(self, layer: int) -> Array:
        """The logits of one MoE layer. Shape: [B, T, E_l]."""
        for block, layers in zip(self.blocks, self.layers, strict=True):
            if layer in layers:
                return np.asarray(block[:, :, layers.index(layer)])
        raise IndexError(f"there is no MoE layer {layer}")

    def tokens(self) -> Tokens:
        """The real tokens alone."""
        return Tokens(tuple(block[self.mask] for block in self.blocks), self.layers, self.lengths)


def blocks_of(experts: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The layers that have each distinct number of experts, in the order in which it first occurs."""
    return {e: tuple(layer for layer, own in enumerate(experts) if own == e) for e in dict.fromkeys(experts)}


def runs(sizes: Array, limit: int) -> Iterator[tuple[int, int]]:
    """Cut a row of sizes into runs [begin, end) that sum to at most `limit`, or are one alone. sizes: shape [N]."""
    begin, filled = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > begin and filled + size > limit:
            yield begin, place
            begin, filled = place, 0
        filled += size
    if begin < len(sizes):
        yield begin, len(sizes)


# ---------------------------------------------------------------------- writing


class TraceWriter:
    """Writes the traces of contexts as they come; as a context manager it writes the last shard at its end.

    A context is on disk once its shard is: shards are written as they fill, at `flush` and at the end, each whole or
    not at all. Opened on a folder that holds traces of the same layers, it continues there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        experts: Sequence[int],
        dtype: npt.DTypeLike = np.float16,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Begin or continue a store.

        Args:
            folder: Where it lives; made if it does not exist.
            experts: Number of experts of every MoE layer. Shape: [L].
            dtype: float16, or float32. A context with a value that float16 cannot hold is kept as float32.
            shard_bytes: Largest shard; about as much is held in memory. A larger context has a shard of its own.

        Raises:
            UsageError: An argument is out of its range.
            RunError: The folder cannot be written, is damaged, leads out of itself, or holds traces of other layers.
        """
        if not experts or any(e < 1 for e in experts):
            raise UsageError(f"Traces of layers with {list(experts)} experts", "Give the experts of every MoE layer")
        if np.dtype(dtype) not in _DTYPES.values():
            raise UsageError(f"Traces cannot be kept as {np.dtype(dtype)}", "Use float16 or float32")
        if shard_bytes < 1:
            raise UsageError(f"Shards of {shard_bytes} bytes", "Use a positive size, such as 256 MiB")
        self.folder = Path(folder)
        self.experts = tuple(int(e) for e in experts)
        self._half = np.dtype(dtype) == np.float16
        self._shard_bytes = shard_bytes
        self._blocks = blocks_of(self.experts)
        self._values = sum(self.experts)  # of one token
        self._shards: list[_Shard] = []
        self._ids: dict[str, None] = {}
        self._pending: list[tuple[str, list[Array]]] = []
        self._tokens = 0  # of what is pending
        self._wide = False  # something pending needs float32
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"{_TEMPORARY}traces*"):
                leftover.unlink()
        if os.path.lexists(self.folder / INDEX):
            self._continue()

    @property
    def ids(self) -> KeysView[str]:
        """The contexts that were added, in their order; after a kill, those that are on disk."""
        return self._ids.keys()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str, logits: Sequence[Array]) -> None:
        """Add one context.

        Args:
            id: Its name, unique in the store.
            logits: Raw router logits of every MoE layer, before any intervention. Shapes: [T, E_l], T >= 1.

        Raises:
            DataError: The name is taken, or the shapes are not those of one context.
            BadLogits: A logit is not finite.
            RunError: A shard cannot be written.
        """
        if id in self._ids:
            raise DataError(f"The context {id!r} has traces already", "Skip the contexts that `ids` names")
        length = len(logits[0]) if len(logits) else 0
        if not length or [np.shape(r) for r in logits] != [(length, e) for e in self.experts]:
            raise DataError(
                f"The trace of context {id!r} has the shapes {[np.shape(r) for r in logits]}",
                f"Give one array [tokens, experts] a layer, at least one token, with {list(self.experts)} experts",
            )
        with np.errstate(over="ignore"):
            blocks = [  # shapes: [T, layers with E, E]
                np.stack([np.asarray(logits[layer], dtype=np.float32) for layer in layers], axis=1)
                for layers in self._blocks.values()
            ]
        largest = float(np.max([np.abs(block).max() for block in blocks]))  # NaN if one is
        if not math.isfinite(largest):
            raise BadLogits(
                f"The router logits of context {id!r} are not finite in float32",
                "Load the model with --dtype float32, and check it with `pointsman doctor`",
            )
        # Decided for each context alone, so that its values do not depend on what shares its shard.
        wide = not self._half or largest > float(np.finfo(np.float16).max)
        if not wide:
            blocks = [block.astype(np.float16) for block in blocks]
        item = 4 if wide or self._wide else 2
        if self._pending and (self._tokens + length) * self._values * item > self._shard_bytes:
            self.flush()
        self._pending.append((id, blocks))
        self._ids[id] = None
        self._tokens += length
        self._wide |= wide

    def flush(self) -> None:
        """Write what is pending as a shard, then the index. Raises RunError if that fails."""
        if not self._pending:
            return
        from safetensors.numpy import save_file

        ids = [id for id, _ in self._pending]
        lengths = [len(blocks[0]) for _, blocks in self._pending]
        dtype = np.dtype(np.float32 if self._wide else np.float16)
        tensors: dict[str, Array] = {}
        for place, (e, layers) in enumerate(self._blocks.items()):
            tensors[_name(e)] = np.empty((self._tokens, len(layers), e), dtype=dtype)
            np.concatenate([blocks[place] for _, blocks in self._pending], out=tensors[_name(e)])
        path = self.folder / f"traces-{len(self._shards):05d}.safetensors"
        temporary = self.folder / f"{_TEMPORARY}{path.name}"
        with _writing(self.folder):
            _new(temporary)
            save_file(tensors, temporary)
            _sync(temporary)
            size, check = _checksum(temporary)
            temporary.replace(path)
            code = "F32" if self._wide else "F16"
            shards = [*self._shards, _Shard(path.name, size, check, code, tuple(ids), tuple(lengths))]
            _write_index(self.folder, self.experts, shards)
        self._shards = shards
        self._pending, self._tokens, self._wide = [], 0, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()  # also after an error or Ctrl-C: what is pending is whole

    def _continue(self) -> None:
        experts, self._shards = _read_index(self.folder)
        if experts != self.experts:
            raise RunError(
                f"{self.folder} holds traces of another model ({len(experts)} layers, {max(experts)} experts)",
                "Choose another folder",
            )
        for shard in self._shards:
            shard.check(self.folder, self._blocks)
        self._ids = {id: None for shard in self._shards for id in shard.ids}


# ---------------------------------------------------------------------- reading


class TraceStore:
    """Traces that were written, from `open`. Immutable; holds names and lengths, and reads logits when asked.

    Attributes:
        folder: Where it lives.
        ids: Names of the contexts, in the order in which they were added. Shape: [N].
        lengths: Tokens of every context. Shape: [N], int64.
        experts: Number of experts of every MoE layer. Shape: [L].
    """

    def __init__(self, folder: Path, experts: tuple[int, ...], shards: Sequence[_Shard]) -> None:
        """Not for callers: use `open`."""
        self.folder = folder
        self.experts = experts
        self._shards = tuple(shards)
        self._blocks = blocks_of(experts)
        self.ids = tuple(id for shard in shards for id in shard.ids)
        self.lengths: Array = np.array([n for shard in shards for n in shard.lengths], dtype=np.int64)
        counts = [len(shard.ids) for shard in shards]
        self._shard_of: Array = np.repeat(np.arange(len(counts)), counts)  # shape: [N]
        within = [np.cumsum((0, *shard.lengths))[:-1] for shard in shards]
        self._begins: Array = np.concatenate(within) if within else np.zeros(0, dtype=np.int64)  # row in its shard
        self._sound: set[int] = set()  # shards whose checksum was compared

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Self:
        """Open what a `TraceWriter` wrote.

        Args:
            folder: Its folder.
            verify: Compare the checksums of all shards now; else that of each before anything is read of it.

        Raises:
            RunError: It is no store, a shard is missing, torn or changed.
        """
        place = Path(folder)
        if not os.path.lexists(place / INDEX):
            raise RunError(f"{place} holds no traces: it has no {INDEX}", "Collect the traces first, or check the path")
        experts, shards = _read_index(place)
        for shard in shards:
            shard.check(place, blocks_of(experts))
        store = cls(place, experts, shards)
        for number in range(len(shards) if verify else 0):
            store._verify(number)
        return store

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """The MoE layers of every block."""
        return tuple(self._blocks.values())

    def checked(self, indices: Sequence[int] | Array) -> Array:
        """`indices` as an array, shape [B]. Raises UsageError if there is no such context."""
        asked = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(asked) and not (asked.min() >= 0 and asked.max() < len(self)):
            wrong = int(asked.min() if asked.min() < 0 else asked.max())
            raise UsageError(f"There is no context {wrong} among {len(self)} traces", "Count from 0")
        return asked

    def bytes_of(self, indices: Sequence[int] | Array) -> int:
        """Size of these contexts as float32, without padding."""
        return int(self.lengths[self.checked(indices)].sum()) * sum(self.experts) * 4

    def tokens(self, indices: Sequence[int] | Array) -> Tokens:
        """The traces of some contexts, one after the other, in the order asked for.

        Raises:
            UsageError: There is no such context.
            RunError: A shard cannot be read, was changed, or holds a logit that is not finite.
        """
        asked = self.checked(indices)  # shape: [B]
        lengths = self.lengths[asked]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        out = [np.empty((total, len(layers), e), dtype=np.float32) for e, layers in self._blocks.items()]
        for number in np.unique(self._shard_of[asked]).tolist():
            rows = np.flatnonzero(self._shard_of[asked] == number)
            rows = rows[np.argsort(self._begins[asked[rows]], kind="stable")]  # in the order of the file
            with self._reading(number) as slices:
                for row in rows.tolist():
                    begin, end, length = int(self._begins[asked[row]]), int(ends[row]), int(lengths[row])
                    for block, piece in zip(out, slices, strict=True):
                        block[end - length : end] = piece[begin : begin + length]
        if total and not all(np.isfinite(block.min()) and np.isfinite(block.max()) for block in out):
            raise RunError(f"{self.folder} holds router logits that are not finite", _AGAIN)
        return Tokens(tuple(out), self.layers, lengths)

    def batch(self, indices: Sequence[int] | Array) -> Batch:
        """The same, padded to the longest of them. Raises as `tokens` does."""
        read = self.tokens(indices)
        longest = int(read.lengths.max()) if len(read.lengths) else 0
        mask = np.arange(longest)[None, :] < read.lengths[:, None]  # shape: [B, T]
        padded = []
        for block in read.blocks:
            room = np.zeros((*mask.shape, *block.shape[1:]), dtype=np.float32)  # shape: [B, T, layers, E]
            room[mask] = block
            padded.append(room)
        return Batch(tuple(padded), read.layers, mask)

    def chunks(self, indices: Sequence[int] | Array, limit: int = CHUNK_BYTES) -> Iterator[Array]:
        """`indices` in order, cut into runs of at most `limit` bytes of float32 (at least one context each)."""
        asked = self.checked(indices)
        for begin, end in runs(self.lengths[asked] * sum(self.experts) * 4, limit):
            yield asked[begin:end]

    def stds(self, indices: Sequence[int] | Array | None = None) -> npt.NDArray[np.float64]:
        """sigma_l: standard deviation of every layer's logits, over all real tokens and experts (METHODS 5.4).

        Streamed, in float64; the denominator is the number of values.

        Args:
            indices: Contexts to measure; None: all.

        Returns:
            In logit units. Shape: [L].

        Raises:
            DataError: There are no contexts.
        """
        asked = np.arange(len(self)) if indices is None else np.sort(self.checked(indices))
        if not len(asked):
            raise DataError("There are no traces to measure router logits on", "Collect at least one context")
        layers = len(self.experts)
        count, mean, square = np.zeros(layers), np.zeros(layers), np.zeros(layers)  # square: sum of (r - mean)^2
        for chunk in self.chunks(asked):
            read = self.tokens(chunk)
            for block, own in zip(read.blocks, read.layers, strict=True):
                at = list(own)
                values = block.astype(np.float64)  # shape: [tokens, layers with E, E]
                n = values.shape[0] * values.shape[2]
                here = values.mean(axis=(0, 2))
                spread = np.square(values - here[:, None]).sum(axis=(0, 2))
                moved, total = here - mean[at], count[at] + n
                square[at] += spread + moved**2 * count[at] * n / total
                mean[at] += moved * n / total
                count[at] = total
        return np.asarray(np.sqrt(square / count))

    @contextmanager
    def _reading(self, number: int) -> Iterator[list[Any]]:
        """The tensors of one shard as slices, mapped while the block runs."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / self._shards[number].file
        self._verify(number)
        try:
            with safe_open(str(path), framework="numpy") as file:
                slices = [file.get_slice(_name(e)) for e in self._blocks]
                yield slices
                slices.clear()
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read ({error})", _AGAIN) from None

    def _verify(self, number: int) -> None:
        """Compare the checksum of a shard, once: its logits decide what is learnt. Raises RunError if it differs."""
        if number in self._sound:
            return
        shard = self._shards[number]
        path = self.folder / shard.file
        try:
            _refuse_strange(path)
            same = _checksum(path) == (shard.bytes, shard.crc32)
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error})", _AGAIN) from None
        if not same:
            raise RunError(f"{path} is damaged (its checksum differs)", _AGAIN)
        self._sound.add(number)


def discard_if_damaged(folder: str | Path) -> bool:
    """Delete traces that are not what was written, so that they are collected again.

    Args:
        folder: Where a store is, or is going to be. Nothing in it but the files of a store is deleted.

    Returns:
        Whether they were damaged.
    """
    place = Path(folder)
    if not os.path.lexists(place / INDEX):
        return False
    try:
        TraceStore.open(place, verify=True)
    except RunError:
        with _writing(place):
            for path in (place / INDEX, *sorted(place.glob("traces-*.safetensors"))):
                path.unlink()
        return True
    return False


# ---------------------------------------------------------------------- shards and their index


@dataclass(frozen=True)
class _Shard:
    """One file: its size in bytes, checksum, number format, and the contexts in it with their tokens."""

    file: str
    bytes: int
    crc32: int
    dtype: str
    ids: tuple[str, ...]
    lengths: tuple[int, ...]

    @staticmethod
    def parse(entry: Any, number: int) -> _Shard:
        """Read one entry of the index; KeyError, TypeError or ValueError if it is not one."""
        shard = _Shard(
            str(entry["file"]), int(entry["bytes"]), int(entry["crc32"]), str(entry["dtype"]),
            tuple(map(str, entry["ids"])), tuple(map(int, entry["lengths"])),
        )  # fmt: skip
        if shard.file != f"traces-{number:05d}.safetensors" or shard.dtype not in _DTYPES:
            raise ValueError(f"a shard {shard.file!r} of {shard.dtype!r}")
        if not shard.ids or len(shard.ids) != len(shard.lengths) or min(shard.lengths) < 1:
            raise ValueError("contexts without tokens")
        return shard

    def check(self, folder: Path, blocks: dict[int, tuple[int, ...]]) -> None:
        """Raise RunError unless the file is there, as long as it was, and of the right shapes."""
        from safetensors import SafetensorError, safe_open

        path = folder / self.file
        if not os.path.lexists(path):
            raise RunError(f"{path} is missing", _AGAIN)
        _refuse_strange(path)
        size = path.stat().st_size
        if size != self.bytes:
            raise RunError(f"{path} is torn: {size:,} bytes instead of {self.bytes:,}", _AGAIN)
        try:
            with safe_open(str(path), framework="numpy") as file:
                for e, layers in blocks.items():
                    piece = file.get_slice(_name(e))
                    if (piece.get_dtype(), piece.get_shape()) != (self.dtype, [sum(self.lengths), len(layers), e]):
                        raise ValueError(f"{_name(e)} is {piece.get_dtype()} {piece.get_shape()}")
        except (OSError, SafetensorError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error})", _AGAIN) from None


def _write_index(folder: Path, experts: tuple[int, ...], shards: Sequence[_Shard]) -> None:
    body = json.dumps({"experts": experts, "shards": [vars(shard) for shard in shards]})
    text = f'{{"schema": "{SCHEMA}", "crc32": {crc32(body.encode())}, "traces": {body}}}\n'
    temporary = folder / f"{_TEMPORARY}{INDEX}"
    _new(temporary)
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(folder / INDEX)


def _read_index(folder: Path) -> tuple[tuple[int, ...], list[_Shard]]:
    path = folder / INDEX
    _refuse_strange(path)
    try:
        index = json.loads(path.read_bytes())
        schema = index["schema"]
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{path} is damaged", _AGAIN) from None
    if schema != SCHEMA:
        raise RunError(
            f"{path} has the schema {schema!r}, not {SCHEMA!r}", "Open it with the version of Pointsman that made it"
        )
    try:
        if crc32(json.dumps(index["traces"]).encode()) != index["crc32"]:
            raise ValueError("its checksum differs")
        experts = tuple(map(int, index["traces"]["experts"]))
        shards = [_Shard.parse(entry, number) for number, entry in enumerate(index["traces"]["shards"])]
        ids = [id for shard in shards for id in shard.ids]
        if not experts or min(experts) < 1 or len(set(ids)) != len(ids):
            raise ValueError("layers or contexts that cannot be")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error})", _AGAIN) from None
    return experts, shards


def _name(experts: int) -> str:
    """The tensor of the layers with so many experts."""
    return f"logits.{experts}"


def _new(path: Path) -> None:
    """Make an empty file in place of whatever has its name, so that no link is written through."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _refuse_strange(path: Path) -> None:
    """Raise if a file is a link or no plain file: traces may come from a stranger."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise RunError(f"{path} is a link or no plain file", _AGAIN)


def _checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file, read a piece at a time."""
    size, check = 0, 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            size, check = size + len(piece), crc32(piece, check)
    return size, check


def _sync(path: Path) -> None:
    """Wait until a file is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{folder} cannot be written: {reason}", "Check space and permissions there") from None
