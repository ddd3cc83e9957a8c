"""What must hold on a device before any of its figures counts."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import DTYPES, HALVES, Case, Side, Sizes, forms, mettle
from benchmarks.correctness import Answer, Truth
from benchmarks.layouts import random, short
from benchmarks.recording import counting
from fastav import ops


class SkippedError(Exception):
    """A check cannot be made here; the message says why."""


@dataclass(frozen=True)
class Scale:
    """What the checks run on.

    Attributes:
        device: where.
        side: the side branch whose calls are checked.
        stages: (N, D) of the features to inject into.
        dtypes: of taps and of learned tensors.
        compiler: the backend of ``torch.compile``.
    """

    device: torch.device
    side: Side
    stages: Sizes
    dtypes: tuple[tuple[torch.dtype, torch.dtype], ...] = (*DTYPES, *HALVES)
    compiler: str = "inductor"

    def cases(self) -> list[Case]:
        """Every call of Mettle's step, and every other form of the ops."""
        return [*mettle(self.side), *forms(self.side, self.stages, meta=5)]

    def one_each(self) -> list[Case]:
        """One call of each op, in the first of the dtypes."""
        first: dict[str, Case] = {}
        for case in self.cases():
            first.setdefault(case.op, replace(case, taps=self.dtypes[0][0], learned=self.dtypes[0][1]))
        return list(first.values())


@dataclass(frozen=True)
class Outcome:
    """What came of one check: ``"passed"``, ``"failed"`` or ``"skipped"``, and a sentence."""

    name: str
    status: str
    detail: str
    seconds: float


def accuracy(scale: Scale) -> str:
    """Values and gradients lose no more than same-dtype PyTorch times a factor, and one rounding."""
    worst, where = 0.0, ""
    for case in scale.cases():
        for taps, learned in scale.dtypes:
            typed = replace(case, taps=taps, learned=learned, name=f"{case.name} {short(taps)}/{short(learned)}")
            share = Truth.of(typed, scale.device).check(getattr(ops, case.op))
            if share >= worst:
                worst, where = share, typed.name
    return f"{len(scale.cases()) * len(scale.dtypes)} calls; the worst uses {worst:.0%} of what it may lose: {where}"


def _inputs(case: Case, scale: Scale, seed: int = 0) -> tuple[dict[str, Any], list[Tensor]]:
    new = random(scale.device, seed)
    arguments = case.tensors(new)
    with torch.no_grad():
        outputs = getattr(ops, case.op)(**arguments, **case.settings)
    return arguments, case.upstream([outputs] if isinstance(outputs, Tensor) else outputs, new)


def _same(first: Answer, second: Answer, what: str) -> None:
    for label, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[label]), f"{what}: {label} differs"


def determinism(scale: Scale) -> str:
    """Three runs give the same bits, and so does a run under deterministic algorithms."""
    for case in scale.one_each():
        inputs, function = _inputs(case, scale), getattr(ops, case.op)
        first = Answer.of(function, case, *inputs)
        for _ in range(2):
            _same(first, Answer.of(function, case, *inputs), case.op)
        torch.use_deterministic_algorithms(True)
        try:
            _same(first, Answer.of(function, case, *inputs), f"{case.op}, deterministic algorithms")
        finally:
            torch.use_deterministic_algorithms(False)
    return "the same bits in 3 runs, and with torch.use_deterministic_algorithms"


def far_offsets(scale: Scale) -> str:
    """A last sample that lies more than 2^31 elements behind the first is read as if it were near."""
    case = next(c for c in scale.one_each() if c.op == "distill")
    arguments, upstream = _inputs(case, scale)
    near = Answer.of(ops.distill, case, arguments, upstream)
    tap = arguments["taps"][0]
    batch, tokens, width = tap.shape
    stride = ((1 << 31) // (batch - 1) // width + 1) * width
    room = (batch - 1) * stride + tokens * width
    if scale.device.type == "cuda" and torch.cuda.mem_get_info(scale.device)[0] < 1.2 * room * tap.element_size():
        raise SkippedError(f"{room * tap.element_size() / 2**30:.1f} GiB are not free")
    far = torch.empty(room, dtype=tap.dtype, device=scale.device).as_strided(tap.shape, (stride, width, 1))
    far.copy_(tap)
    arguments["taps"] = [far, *arguments["taps"][1:]]
    _same(near, Answer.of(ops.distill, case, arguments, upstream), "distill")
    return f"the last sample begins {(batch - 1) * stride:,} elements behind the first; the same bits"


def graphs(scale: Scale) -> str:
    """Forward and backward are captured in a CUDA graph, whose replay on other numbers gives their results."""
    if scale.device.type != "cuda":
        raise SkippedError("CUDA graphs need a GPU")
    for case in scale.one_each():
        (arguments, upstream), function = _inputs(case, scale), getattr(ops, case.op)
        for _ in range(2):
            Answer.of(function, case, arguments, upstream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = Answer.of(function, case, arguments, upstream)
        other, other_upstream = _inputs(case, scale, seed=1)
        for name, value in arguments.items():
            for old, new in zip(
                [value] if isinstance(value, Tensor) else value or (), _listed(other[name]), strict=True
            ):
                old.copy_(new)
        for old, new in zip(upstream, other_upstream, strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        _same(Answer.of(function, case, other, other_upstream), captured, f"{case.op}, replayed")
    return "one call of each op captured with its backward, replayed on other numbers: the same bits as eager"


def _listed(value: Any) -> list[Tensor]:
    return [] if value is None else [value] if isinstance(value, Tensor) else value


def autocast(scale: Scale) -> str:
    """Autocast changes nothing: the ops' own dtypes stand."""
    for case in scale.one_each():
        inputs, function = _inputs(case, scale), getattr(ops, case.op)
        plain = Answer.of(function, case, *inputs)
        with torch.autocast(scale.device.type, torch.bfloat16):
            inside = Answer.of(function, case, *inputs)
        _same(plain, inside, f"{case.op} under autocast")
    return "one call of each op: the same bits under bf16 autocast"


def compiling(scale: Scale) -> str:
    """``torch.compile(fullgraph=True)`` gives what eager gives."""
    for case in scale.one_each():
        torch._dynamo.reset()
        inputs, function = _inputs(case, scale), getattr(ops, case.op)
        compiled = torch.compile(function, fullgraph=True, backend=scale.compiler)
        _same(Answer.of(function, case, *inputs), Answer.of(compiled, case, *inputs), f"{case.op} compiled")
    return f"one call of each op under torch.compile(fullgraph=True, backend={scale.compiler!r}): the same bits"


#: Launches forward and backward that an op may take, whatever the number of its entries.
LAUNCHES = {"distill": (1, 2), "project": (1, 2), "fuse": (1, 2), "inject": (1, 2), "orthogonality": (1, 1)}


def launches(scale: Scale) -> str:
    """No call takes more launches than its op may."""
    said = []
    for case in scale.cases():
        inputs, function = _inputs(case, scale), getattr(ops, case.op)
        with counting() as forward:
            Answer.of(function, case, inputs[0], [])
        with counting() as both:
            Answer.of(function, case, *inputs)
        found, allowed = (forward.total(), both.total() - forward.total()), LAUNCHES[case.op]
        for count, most in zip(found, allowed, strict=True):
            assert count <= most, f"{case.name}: {found} launches forward and backward, allowed {allowed}"
        said.append(found)
    return f"{len(said)} calls, at most {max(f for f, _ in said)} launch forward and {max(b for _, b in said)} backward"


def sanitizer(tool: str) -> Callable[[Scale], str]:
    """The check that one of compute-sanitizer's tools finds nothing in one small call of each op."""

    def check(scale: Scale) -> str:
        binary = shutil.which("compute-sanitizer")
        if scale.device.type != "cuda" or binary is None:
            raise SkippedError("compute-sanitizer or a GPU is missing")
        command = [binary, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.single", "--tiny"]
        own = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # behind a tensor no other one's memory
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return done.stdout.strip().splitlines()[-1]

    check.__name__ = tool
    return check


CHECKS: tuple[Callable[[Scale], str], ...] = (
    accuracy, launches, determinism, far_offsets, graphs, autocast, compiling,
    sanitizer("memcheck"), sanitizer("racecheck"), sanitizer("initcheck"),
)  # fmt: skip


def run(scale: Scale, chosen: tuple[Callable[[Scale], str], ...] = CHECKS) -> Iterator[Outcome]:
    """Make the checks one after the other, whatever comes of each."""
    for check in chosen:
        started = time.perf_counter()
        try:
            status, detail = "passed", check(scale)
        except SkippedError as reason:
            status, detail = "skipped", str(reason)
        except Exception as error:  # a crash of one check is a finding like any other
            status, detail = "failed", f"{type(error).__name__}: {error}"
        yield Outcome(check.__name__.replace("_", " "), status, detail, time.perf_counter() - started)
