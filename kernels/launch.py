"""What every launcher needs: one door to the device, tables of sizes, flat results, block sizes by chip.

A launch covers all entries of a list (all taps of all layers). What changes from call to call, the tensors' addresses,
travels as tuples of pointers; what does not, sizes, strides and offsets, stands in one small table on the device, made
once for each set of shapes.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Whether the kernels run in Triton's interpreter, on CPU tensors: settled when they are decorated.
INTERPRETED: bool = triton.knobs.runtime.interpret

#: Called with each :class:`Launch` right before it runs.
hooks: list[Callable[["Launch"], None]] = []

#: What begins at a multiple of this many elements can be read and written in vectors, whatever its dtype.
ALIGNMENT = 16


@dataclass(frozen=True)
class Traffic:
    """Bytes of device memory that one launch must move, counted from its geometry.

    Everything is counted once: a tile's second read and what neighbouring programs share come from the caches.
    """

    read: int = 0
    written: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class Blocks:
    """A kernel's block sizes on one chip, and why.

    Attributes:
        sizes: the kernel's own constants, such as ``BLOCK_N``.
        warps: warps (wavefronts on AMD) a program.
        stages: depth of the software pipeline.
        why: the reason for this entry.
    """

    sizes: dict[str, int]
    warps: int
    stages: int
    why: str


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what :data:`hooks` see, and all that ahead-of-time compilation needs.

    Attributes:
        kernel: the jitted function.
        programs: size of the one-dimensional grid.
        arguments: run-time arguments by name: tensors, tuples of tensors, None.
        constants: compile-time arguments by name, block sizes included.
        blocks: where the block sizes come from.
        traffic: bytes it must move.
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    blocks: Blocks
    traffic: Traffic

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__


@dataclass
class _Recorder:
    chip: str
    launches: list[Launch] = field(default_factory=list)


_recorder: _Recorder | None = None


@contextmanager
def recording(chip: str) -> Iterator[list[Launch]]:
    """Note launches instead of running them, with ``chip``'s block sizes; tensors may be on the meta device.

    Args:
        chip: ``"sm_80"``, ``"sm_90"``, ``"sm_100"``, ``"gfx942"``, ...
    """
    global _recorder
    before, _recorder = _recorder, _Recorder(chip)
    try:
        yield _recorder.launches
    finally:
        _recorder = before


def launch(
    kernel: Any, programs: int, arguments: dict[str, Any], constants: dict[str, Any], blocks: Blocks, traffic: Traffic
) -> None:
    """Run ``kernel`` over ``programs`` programs on the device of its arguments; nothing is run for no programs."""
    if programs == 0:
        return
    this = Launch(kernel, programs, arguments, constants | blocks.sizes, blocks, traffic)
    if _recorder is not None:
        _recorder.launches.append(this)
        return
    for hook in hooks:
        hook(this)
    device = next(a.device for a in arguments.values() if isinstance(a, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](**arguments, **this.constants, num_warps=blocks.warps, num_stages=blocks.stages)


# ---- chips ----------------------------------------------------------------------------------------------------------


def chip(device: torch.device) -> str:
    """The name of a device's chip: ``"sm_90"``, ``"gfx942"``, ``"interpreter"``."""
    if _recorder is not None:
        return _recorder.chip
    return "interpreter" if device.type != "cuda" else _cuda_chip(device)


@functools.cache
def _cuda_chip(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def blocks(kernel: str, chip: str, size: int) -> Blocks:
    """Block sizes for a kernel on a chip, with elements of ``size`` bytes: the table's entry for the nearest chip."""
    entries = [e for e in _table() if e["kernel"] == kernel and e["chip"] == _relative(chip)]
    entry = next(e for e in entries if size in e["bytes"])
    return Blocks(entry["sizes"], entry["warps"], entry["stages"], entry["why"])


@functools.cache
def _table() -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / "blocks.json").read_text())


def _relative(chip: str) -> str:
    """The chip whose entry serves ``chip``: the one of its generation that is in the table."""
    if chip.startswith("gfx"):
        return "gfx942"
    # Consumer Blackwell (sm_120) has the shared memory and the matrix instructions of sm_86.
    generations = {"sm_9": "sm_90", "sm_10": "sm_100"}
    return (
        chip if chip == "interpreter" else next((to for of, to in generations.items() if chip.startswith(of)), "sm_80")
    )


def precision(dtype: torch.dtype, chip: str) -> str:
    """How float32 operands are multiplied.

    Where there are TF32 units, by three of their products, which lose no more than float32 itself; by one where the
    user allowed it, ``torch.backends.cuda.matmul.fp32_precision = "tf32"``.
    """
    if dtype != torch.float32 or not chip.startswith("sm_"):
        return "ieee"
    # The newer of torch's two switches; reading the older one after the newer was set is an error.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def accumulator(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The dtype that dots, statistics and softmax run in: float64 if any tensor is, else float32."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return (torch.float64, tl.float64) if wide else (torch.float32, tl.float32)


# ---- lists ----------------------------------------------------------------------------------------------------------


def _readable(t: Tensor) -> bool:
    """Whether kernels, which read row strides as 32-bit numbers, can read a tensor where it lies."""
    return (t.stride(-1) == 1 or t.shape[-1] == 1) and (t.ndim < 2 or t.stride(-2) < 2**31)


@dataclass(frozen=True)
class Operand:
    """A list of tensors as a kernel reads it: by one pointer where they lie in one storage, else by one each.

    Attributes:
        tensors: the tensors, of last stride 1.
        sizes: shape, strides and offset from its pointer of each, in elements: all that a plan depends on.
        base: the first in memory where all lie in one storage, or None.
    """

    tensors: tuple[Tensor, ...]
    sizes: tuple[tuple, ...]
    base: Tensor | None

    @overload
    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Operand": ...

    @overload
    @classmethod
    def of(cls, tensors: Sequence[Tensor] | None) -> "Operand | None": ...

    @classmethod
    def of(cls, tensors: Sequence[Tensor] | None) -> "Operand | None":
        """Describe a list.

        Tensors whose last stride is not 1, or whose rows lie 2^31 elements apart, are copied; all other strides are
        fine as they are.
        """
        if tensors is None:
            return None
        tensors = tuple([t if _readable(t) else t.contiguous() for t in tensors])
        item = tensors[0].element_size()
        bases = {t.data_ptr() - t.storage_offset() * item for t in tensors}
        # Counted from the first of them in memory, so that the same layout elsewhere in a storage is the same plan.
        base = min(tensors, key=Tensor.storage_offset) if len(bases) == 1 and all(t.numel() for t in tensors) else None
        start = 0 if base is None else base.storage_offset()
        sizes = tuple([(t.shape, t.stride(), 0 if base is None else t.storage_offset() - start) for t in tensors])
        return cls(tensors, sizes, base)

    def pointers(self, order: Sequence[int]) -> tuple[Tensor, ...]:
        """The pointer, or those in the order of the table's entries, filled up to a power of two.

        So one compilation serves many lengths.
        """
        if self.base is not None:
            return (self.base,)
        chosen = [self.tensors[i] for i in order]
        return tuple(chosen + chosen[-1:] * (triton.next_power_of_2(len(chosen)) - len(chosen)))

    def vector(self) -> int:
        """How many elements may be read at once: 16 bytes' worth if all addresses, strides and widths allow, else 1."""
        size = 16 // self.tensors[0].element_size()
        pointers = self.tensors if self.base is None else (self.base,)
        whole = all(t.data_ptr() % 16 == 0 for t in pointers) and all(
            offset % size == 0 and shape[-1] % size == 0 and all(n % size == 0 for n in strides[:-1])
            for shape, strides, offset in self.sizes
        )
        return size if whole else 1


def items(operands: Sequence["Operand | None"]) -> tuple[int, ...]:
    """Bytes an element of each operand, 0 for None: with their sizes, what a plan counts traffic from."""
    return tuple([0 if o is None else o.tensors[0].element_size() for o in operands])


@dataclass(frozen=True)
class Flat:
    """Where a list of contiguous tensors lies in one buffer."""

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]], alignment: int = 1) -> "Flat":
        """Lay tensors of these shapes side by side, each beginning at a multiple of ``alignment`` elements.

        Results leave an op as one tensor, so there are no gaps between them: each begins where their sizes put it,
        which is a multiple of whatever divides all their widths.
        """
        offsets, size = [], 0
        for shape in shapes:
            offsets.append(size)
            numel = functools.reduce(int.__mul__, shape, 1)
            size += -(-numel // alignment) * alignment
        return cls(tuple(tuple(s) for s in shapes), tuple(offsets), size)

    def empty(self, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """A new buffer on the device of ``like`` and the tensors in it."""
        buffer = torch.empty(self.size, dtype=dtype, device=like.device)
        return buffer, [
            buffer.as_strided(shape, _contiguous(shape), offset)
            for shape, offset in zip(self.shapes, self.offsets, strict=True)
        ]


def bytes_of(lists: Sequence[Sequence[tuple] | None], bytes_each: Sequence[int]) -> int:
    """Bytes of lists' distinct elements, given those of one of each: what is expanded counts once."""
    return sum(
        item * math.prod(n for n, s in zip(shape, strides, strict=True) if s)
        for sizes, item in zip(lists, bytes_each, strict=True)
        for shape, strides, _ in sizes or ()
    )


def in_order(
    loads: Sequence[int], programs: Sequence[int], entries: Sequence[Sequence[int]], device: torch.device
) -> tuple[tuple[int, ...], int, Tensor]:
    """A launch's entries, long programs first, short ones fill the end: order, count for ``find``, and table."""
    order = tuple(sorted(range(len(loads)), key=lambda i: -loads[i]))
    numbers = table([programs[i] for i in order], [entries[i] for i in order], device)
    return order, triton.next_power_of_2(len(loads)), numbers


def elements(sizes: Sequence[tuple] | None) -> int:
    """How many elements an operand of these sizes has."""
    return 0 if sizes is None else sum(functools.reduce(int.__mul__, shape, 1) for shape, _, _ in sizes)


@functools.cache
def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(size, 1))
    return tuple(strides[: len(shape)])


# ---- tables ---------------------------------------------------------------------------------------------------------


def table(programs: Sequence[int], entries: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """The table a kernel finds its work in, int64: the first program of each entry, then each entry's numbers.

    Args:
        programs: how many programs each entry has, in the launch's order.
        entries: the same many numbers for each entry.
        device: where the table is wanted.

    Raises:
        RuntimeError: a CUDA graph is being captured, into which a copy from the host must not go.
    """
    count = triton.next_power_of_2(len(entries))
    starts = [sum(programs[:i]) for i in range(len(entries))]
    # No program's number reaches the starts of the entries that fill up the power of two.
    rows = starts + [sum(programs) + 1] * (count - len(entries)) + [number for entry in entries for number in entry]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "fastav: these shapes are new, and their table cannot be copied to the device while a CUDA graph is being "
            "captured; run the same call once before the capture"
        )
    return torch.tensor(rows, dtype=torch.int64, device=device)


_arrivals: dict[tuple, Tensor] = {}


def arrivals(count: int, like: Tensor) -> Tensor:
    """At least ``count`` int32 zeros, which every kernel that counts in them leaves as zeros.

    One buffer a stream, so that launches which may run at once never share; a captured graph gets its own.
    """
    device = like.device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    if key not in _arrivals or len(_arrivals[key]) < count:
        _arrivals[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return _arrivals[key]


#: How many plans one function remembers.
PLANS = 256

_held: dict[int, Any] = {}


def planned(make: Callable) -> Callable:
    """Cache a function that makes a plan (tables and offsets) from shapes, strides and a device, all hashable.

    A plan that was used while a CUDA graph was captured is held for good, as the graph reads its tables. All others
    are forgotten together when they are too many, once nothing on the device can still be reading them.
    """
    cached = functools.lru_cache(maxsize=None)(make)

    @functools.wraps(make)
    def plan(*arguments: Any) -> Any:
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if cached.cache_info().currsize >= PLANS and not capturing:
            for device in {a for a in arguments if isinstance(a, torch.device) and a.type == "cuda"}:
                torch.cuda.synchronize(device)
            cached.cache_clear()
        found = cached(*arguments)
        if capturing:
            _held[id(found)] = found
        return found

    plan.cache_clear, plan.cache_info = cached.cache_clear, cached.cache_info  # type: ignore[attr-defined]
    return plan
