"""What a launch takes of a chip, read from the compiled kernel: registers, spills, stack and shared memory."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from benchmarks.layouts import short
from fastav.kernels.launch import Launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Chip:
    """What a chip allows.

    Attributes:
        target: what Triton compiles for.
        shared: bytes of shared memory a program may use there.
        smallest: the same on the smallest chip that runs the same block sizes: consumer cards have 99 KiB.
        registers: of one multiprocessor, or of one lane of a SIMD unit on AMD.
        most: registers that one thread can address.
    """

    target: GPUTarget
    shared: int
    smallest: int
    registers: int
    most: int

    def register_limit(self, warps: int) -> int:
        """Registers that a thread of a program of so many warps can have."""
        if self.target.backend == "hip":
            return min(self.most, self.registers // -(-warps // 4))  # four SIMD units share a program's wavefronts
        return min(self.most, self.registers // (warps * self.target.warp_size))


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 163 << 10, 99 << 10, 1 << 16, 255),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), 227 << 10, 99 << 10, 1 << 16, 255),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), 227 << 10, 99 << 10, 1 << 16, 255),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 512, 512),
}


@dataclass(frozen=True)
class Usage:
    """What one compiled launch takes.

    Attributes:
        registers: vector registers a thread.
        spills: bytes spilled a thread (NVIDIA), spilled vector registers (AMD).
        scalars: spilled scalar registers (AMD): first into lanes of vector registers, which is not memory but work.
        stack: bytes of stack a thread, spills included.
        shared: bytes of shared memory a program.
    """

    registers: int
    spills: int
    scalars: int
    stack: int
    shared: int

    def faults(self, chip: str, warps: int) -> Iterator[str]:
        """What of it the chip does not allow, or this project does not."""
        allowed = CHIPS[chip]
        if self.spills:
            unit = "vector registers" if allowed.target.backend == "hip" else "bytes"
            yield f"spills {self.spills} {unit}"
        if self.scalars:
            yield f"spills {self.scalars} scalar registers"
        if self.stack:
            yield f"has a stack frame of {self.stack} bytes"
        if self.shared > allowed.shared:
            yield f"uses {self.shared} bytes of shared memory, {chip} has {allowed.shared}"
        elif self.shared > allowed.smallest:
            yield f"uses {self.shared} bytes of shared memory, the smallest chips of its kind have {allowed.smallest}"
        if self.registers > allowed.register_limit(warps):
            yield f"needs {self.registers} registers, {warps} warps can have {allowed.register_limit(warps)}"


def source(launch: Launch) -> ASTSource:
    """What Triton's own launcher would compile for these arguments."""
    signature: dict[str, Any] = {}
    constants, attributes = dict(launch.constants), {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if name in launch.constants or value is None:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
            continue
        signature[name] = tuple(_type(t) for t in value) if isinstance(value, tuple) else _type(value)
        for path, tensor in [((i, j), t) for j, t in enumerate(value)] if isinstance(value, tuple) else [((i,), value)]:
            if tensor.data_ptr() % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type(tensor: Tensor) -> str:
    return f"*{short(tensor.dtype)}"


def key(launch: Launch) -> str:
    """Launches of one key compile to the same."""
    blocks = launch.blocks
    return f"{source(launch).hash()} {blocks.warps} {blocks.stages}"


def compiled(launch: Launch, chip: str) -> CompiledKernel:
    """The launch's kernel, compiled for ``chip``; no GPU is needed."""
    options = {"num_warps": launch.blocks.warps, "num_stages": launch.blocks.stages}
    return triton.compile(source(launch), target=CHIPS[chip].target, options=options)


def usage(launch: Launch, chip: str) -> Usage:
    """Compile and read the report."""
    kernel = compiled(launch, chip)
    shared = kernel.metadata.shared
    if CHIPS[chip].target.backend == "hip":
        return _amd(kernel.asm["amdgcn"], shared)
    return _nvidia(kernel.asm["cubin"], kernel.asm["ptx"], chip, shared)


def _amd(assembly: str, shared: int) -> Usage:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])  # type: ignore[index]

    spills, scalars = number("vgpr_spill_count"), number("sgpr_spill_count")
    return Usage(number("vgpr_count"), spills, scalars, number("private_segment_fixed_size"), shared)


def _nvidia(cubin: bytes, ptx: str, chip: str, shared: int) -> Usage:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        listing = _run(TOOLS / "cuobjdump", "--dump-resource-usage", str(path))
        found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
        stack = found["STACK"] + found["LOCAL"]
        # The binary does not tell spills from arrays on the stack; the assembler does, at the price of a second run.
        spills = _spilled(Path(folder), ptx, chip) if stack else 0
    return Usage(found["REG"], spills, 0, stack, shared)


def _spilled(folder: Path, ptx: str, chip: str) -> int:
    """Bytes that a thread stores because registers run out."""
    path = folder / "kernel.ptx"
    path.write_text(ptx)
    target = re.search(r"^\.target (\S+?),?$", ptx, re.MULTILINE)[1].rstrip(",")  # type: ignore[index]
    assembler = TOOLS / ("ptxas-blackwell" if chip == "sm_100" else "ptxas")
    report = _run(assembler, "-v", f"--gpu-name={target}", str(path), "-o", os.devnull)
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill stores", report))


def _run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
