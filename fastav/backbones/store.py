"""Taps written once to disk and read from there, so that training needs no backbone."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

_VERSION = 1
_INDEX = "index.json"
# numpy has no bfloat16: its 16-bit words are stored as integers.
_WORDS = {torch.float16: np.float16, torch.bfloat16: np.int16, torch.float32: np.float32}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _WORDS}


class TapStore:
    """A directory with one memory-mapped ``.npy`` file (length, N, D) a tap, and an ``index.json``.

    Made by ``TapStore.create`` and filled by ``write``; read after ``TapStore.open``, or once all rows are written.
    It is a map-style dataset: ``store[3]`` is a list of (N, D) tensors, one a tap; ``store[2:5]``, ``store[[7, 3]]``
    and ``store[tensor]`` are lists of (rows, N, D). What comes out are copies, on the CPU, of the store's dtype.
    A finished store may be pickled and sent to data-loading processes, which open the files anew.

    Attributes:
        path: the directory.
        shapes: (N, D) of each tap.
        dtype: torch dtype of all taps.
        names: each tap's name.
        metadata: what was given at creation.
        finished: whether every row has been written.
    """

    def __init__(self, path: str | os.PathLike[str], index: Mapping[str, Any], maps: Sequence[np.memmap]) -> None:
        self.path = Path(path)
        self.shapes = tuple((rows, width) for rows, width in index["shapes"])
        self.dtype = _DTYPES[index["dtype"]]
        self.names = tuple(index["names"])
        self.metadata: dict[str, Any] = index["metadata"]
        self.finished: bool = index["finished"]
        self._index = index
        self._maps = maps
        self._files = [_file_at(str(array.filename)) for array in maps]
        self._taps = [torch.from_numpy(array).view(self.dtype) for array in maps]
        self._written = torch.full((index["length"],), self.finished)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        length: int,
        shapes: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float16,
        names: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> TapStore:
        """Make an empty store; one that was left unfinished at ``path`` is overwritten.

        Args:
            path: the directory, made if needed.
            length: number of rows, all of which are to be written.
            shapes: (N, D) of each tap.
            dtype: torch.float16, torch.bfloat16 or torch.float32.
            names: one name a tap; "0", "1", ... by default.
            metadata: anything that JSON can hold, such as the backbone and its input's size.

        Raises:
            ValueError: no rows, no taps, a size below 1, another dtype, or names that do not match the taps.
            FileExistsError: a finished store, or something else, lies at ``path``.
            OSError: the disk is too small.
        """
        path = Path(path)
        names = [str(number) for number in range(len(shapes))] if names is None else list(names)
        if length < 1 or not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
            raise ValueError(f"length and every (N, D) must be 1 or more, got length={length}, shapes={list(shapes)}")
        if dtype not in _WORDS:
            raise ValueError(f"dtype must be one of {', '.join(map(str, _WORDS))}, got {dtype}")
        if len(names) != len(shapes) or len(set(names)) < len(names):
            raise ValueError(f"names are {names}, wanted {len(shapes)} different ones, one a tap")
        index = {
            "version": _VERSION,
            "finished": False,
            "length": length,
            "dtype": str(dtype).removeprefix("torch."),
            "shapes": [[int(size) for size in shape] for shape in shapes],
            "names": names,
            "metadata": _as_json(metadata),
        }
        if path.exists() and any(path.iterdir()) and (not (path / _INDEX).exists() or _read_index(path)["finished"]):
            raise FileExistsError(f"{path} holds a finished store or other files: remove it or choose another place")
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob("tap_*.npy"):
            leftover.unlink()
        # A full disk would kill the process at some later write to the sparse files, without a word.
        wanted = length * dtype.itemsize * sum(map(math.prod, shapes))
        free = shutil.disk_usage(path).free
        if wanted > free:
            raise OSError(f"the store needs {wanted / 1e9:.1f} GB, {path} has {free / 1e9:.1f} GB free")
        _write_index(path, index)
        maps = [
            open_memmap(_tap_file(path, number), mode="w+", dtype=_WORDS[dtype], shape=(length, *shape))
            for number, shape in enumerate(shapes)
        ]
        return cls(path, index, maps)

    @classmethod
    def open(cls, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> TapStore:
        """Open a finished store for reading.

        Args:
            path: the directory.
            metadata: entries that the store's own metadata must agree with; entries not named here may be anything.

        Raises:
            FileNotFoundError: no store there.
            ValueError: unfinished, of another version, damaged, or made under other metadata (which, is said).
        """
        path = Path(path)
        index = _read_index(path)
        if index["version"] != _VERSION:
            raise ValueError(f"{path} is a store of version {index['version']}, this fastav reads version {_VERSION}")
        if not index["finished"]:
            raise ValueError(f"{path} is unfinished: its writing was broken off, so write it again")
        differing = [
            f"{key} is {index['metadata'].get(key, 'absent')!r} in the store, {value!r} was asked for"
            for key, value in _as_json(metadata).items()
            if key not in index["metadata"] or index["metadata"][key] != value
        ]
        if differing:
            raise ValueError(f"{path} was made under other metadata: {'; '.join(differing)}")
        # "c", copy on write: torch warns of read-only arrays, and nothing written to these reaches the files.
        maps = [open_memmap(_tap_file(path, number), mode="c") for number in range(len(index["shapes"]))]
        for array, shape in zip(maps, index["shapes"], strict=True):
            if array.shape != (index["length"], *shape):
                raise ValueError(f"{array.filename} holds {array.shape}, not {(index['length'], *shape)}: damaged")
        return cls(path, index, maps)

    def select(self, names: Sequence[str]) -> TapStore:
        """This finished store with some of its taps alone, in the order of ``names``: only they are read.

        Raises:
            ValueError: the store is unfinished, or has no taps of these names.
        """
        self._check_finished()
        unknown = [name for name in names if name not in self.names]
        if unknown or not names:
            raise ValueError(f"{self.path} has no taps {unknown or list(names)}: its names are {list(self.names)}")
        chosen = [self.names.index(name) for name in names]
        index = {**self._index, "names": list(names), "shapes": [self._index["shapes"][i] for i in chosen]}
        return TapStore(self.path, index, [self._maps[i] for i in chosen])

    @property
    def nbytes(self) -> int:
        """Bytes of all taps on disk, headers and index apart."""
        return sum(array.nbytes for array in self._maps)

    def __len__(self) -> int:
        return len(self._written)

    def __repr__(self) -> str:
        state = "" if self.finished else ", unfinished"
        return (
            f"TapStore({str(self.path)!r}, {len(self)} rows of {len(self.shapes)} taps, "
            f"{self.dtype}, {self.nbytes / 1e9:.3f} GB{state})"
        )

    def write(self, start: int, taps: Sequence[Tensor]) -> None:
        """Write rows ``start`` to ``start`` + B; the store is finished, on disk too, when every row has been written.

        Args:
            start: the first row.
            taps: one floating (B, N, D) tensor a tap, on any device, cast to the store's dtype.

        Raises:
            ValueError: the store is finished, shapes or rows do not fit, or a value is not finite once it is cast.
                Nothing has been written then.
        """
        if self.finished:
            raise ValueError(f"{self.path} is finished and takes no more rows")
        rows = taps[0].shape[0] if taps else 0
        if len(taps) != len(self.shapes) or rows == 0:
            raise ValueError(f"{len(taps)} taps of {rows} rows given, {len(self.shapes)} taps of 1 row or more wanted")
        if start < 0 or start + rows > len(self):
            raise ValueError(f"rows {start} to {start + rows} do not fit into a store of {len(self)} rows")
        for name, shape, tap in zip(self.names, self.shapes, taps, strict=True):
            if tap.shape != (rows, *shape):
                raise ValueError(f"tap {name!r} is {tuple(tap.shape)}, {(rows, *shape)} is wanted")
        cast = [tap.detach().to("cpu", self.dtype) for tap in taps]
        for name, tap, words in zip(self.names, taps, cast, strict=True):
            if not words.isfinite().all():
                raise ValueError(
                    f"tap {name!r} is not finite as {self.dtype} (largest magnitude {tap.abs().max().item():g}): "
                    f"if that is too large for it, make the store with dtype=torch.bfloat16"
                )
        for target, words in zip(self._taps, cast, strict=True):
            target[start : start + rows] = words
        self._written[start : start + rows] = True
        if self._written.all():
            self._finish()

    def _finish(self) -> None:
        """Record that all rows are there, after they are.

        Raises:
            ValueError: they are elsewhere: another process has begun a store at the same place.
        """
        for array, file in zip(self._maps, self._files, strict=True):
            array.flush()
            if _file_at(str(array.filename)) != file:
                raise ValueError(
                    f"{self.path} was removed or begun anew while this store was written: what was written is lost; "
                    f"let one process write a store, or give each a path of its own"
                )
        self._index = {**self._index, "finished": True}
        _write_index(self.path, self._index)
        self.finished = True

    def __getitem__(self, indices: int | slice | Sequence[int] | Tensor) -> list[Tensor]:
        self._check_finished()
        if isinstance(indices, slice):
            rows = torch.tensor(range(len(self))[indices], dtype=torch.long)
        else:
            given = torch.as_tensor(indices)  # an empty list is floating
            if given.dim() > 1 or (given.numel() and (given.is_floating_point() or given.dtype == torch.bool)):
                raise TypeError(f"indices must be an int, a slice, or ints in one dimension, got {indices!r}")
            rows = given.cpu().long()
            if ((rows < -len(self)) | (rows >= len(self))).any():
                raise IndexError(f"rows {rows.tolist()} are not all in a store of {len(self)} rows")
            rows %= len(self)
        if rows.dim() == 0:
            return [tap[int(rows)].clone() for tap in self._taps]
        return [tap.index_select(0, rows) for tap in self._taps]  # as quick as slices where rows lie in runs: measured

    def _check_finished(self) -> None:
        if not self.finished:
            raise ValueError(f"{self.path} is unfinished: {int(self._written.sum())} of {len(self)} rows are written")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the taps' names alone; the data stay in their files."""
        return _reopen, (self.path, self.names)


def _reopen(path: Path, names: Sequence[str]) -> TapStore:
    return TapStore.open(path).select(names)


def _as_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as they come back from the index: tuples are lists there, and keys are strings."""
    return json.loads(json.dumps(dict(metadata or {})))


def _file_at(path: str) -> tuple[int, int] | None:
    """Which file lies at a path now."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _tap_file(path: Path, number: int) -> Path:
    return path / f"tap_{number:03d}.npy"


def _read_index(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / _INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is no tap store: it has no {_INDEX}") from None


def _write_index(path: Path, index: Mapping[str, Any]) -> None:
    """Write the index in one step, so that no reader and no crash ever meets half of one."""
    new = path / f"{_INDEX}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path / _INDEX)
