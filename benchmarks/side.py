"""The Mettle side branch as a whole: against PyTorch, by schedule, and beside its frozen backbones."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fastav
from benchmarks import plain
from benchmarks.contenders import CONTENDERS
from benchmarks.pairs import AVE, ave_step, build, inputs
from fastav import reference
from fastav.adapters import Adapter, distillation, mettle
from fastav.cost import frozen_forward
from fastav.cost.proof import ROUNDED_TOLERANCE, distance
from fastav.cost.timing import Spread, timed
from fastav.standardization import TapStandardization

#: How Mettle can lay its work on streams.
SCHEDULES = ("serial", "fused", "streamed")

#: What steps are compared to.
FROZEN = "frozen forward alone"


@dataclass(frozen=True)
class Pair:
    """Two backbones and what they take: (clips, segments, ...) each, or (clips, ...) of sound for whole clips.

    Attributes:
        stored: the dtype in which taps come from a store, None where they come from the backbones.
    """

    visual: nn.Module
    audio: nn.Module
    frames: Tensor
    sound: Tensor
    config: fastav.MettleConfig
    stored: torch.dtype | None = None

    def adapter(self, **changes: Any) -> fastav.MettleAdapter:
        """An adapter of always the same weights, past its measuring batches."""
        torch.manual_seed(0)
        config = dataclasses.replace(self.config, **changes)
        adapter = fastav.MettleAdapter(self.visual, self.audio, config).to(self.frames.device)
        for parameter in adapter.distillation.to_output:  # starts at zero, which would hide half of the branch
            nn.init.normal_(parameter, std=0.1)
        if adapter.distillation.standardization is not None:
            adapter.distillation.standardization.complete = True
        return adapter

    def taps(self, adapter: Adapter) -> tuple[list[Tensor], list[Tensor]]:
        """The taps of both backbones."""
        sound = self.sound if self.config.audio_layout == "clip" else self.sound.flatten(0, 1)
        visual, audio = adapter.visual(self.frames.flatten(0, 1)), adapter.audio(sound)
        return [t.to(self.stored) for t in visual], [t.to(self.stored) for t in audio]


def ave_pair(device: torch.device, clips: int, dtype: torch.dtype = torch.bfloat16) -> Pair:
    """The AVE step, whose methods ``pytest benchmarks`` compares."""
    size = ave_step(dtype, None)
    visual, audio = build(size, device)
    frames, sound = inputs((visual, audio), clips, size.segments)
    return Pair(visual, audio, frames, sound, fastav.MettleConfig(**size.ours))


def stamps_pair() -> Pair:
    """The demo's backbones with random weights and one training batch, taps in the store's dtype, on the CPU."""
    from examples.stamps.exercises import BATCH, METTLE_TAPS
    from examples.stamps.scenes import SEGMENTS
    from examples.stamps.splits import CLIP_SIZE
    from examples.stamps.weights import random_vit, random_whisper_encoder

    visual = fastav.FrozenBackbone(random_vit(CLIP_SIZE), METTLE_TAPS)
    audio = fastav.FrozenBackbone(random_whisper_encoder(SEGMENTS))
    frames, sound = torch.randn(BATCH, SEGMENTS, 3, CLIP_SIZE, CLIP_SIZE), torch.randn(BATCH, 80, 100 * SEGMENTS)
    return Pair(visual, audio, frames, sound, fastav.MettleConfig(audio_layout="clip"), torch.float16)


def small_pair(device: torch.device) -> Pair:
    """Two ViTs of two blocks, for machines without a GPU."""
    import timm

    def vit(width: int) -> nn.Module:
        return timm.models.VisionTransformer(32, 16, embed_dim=width, depth=2, num_heads=2, num_classes=0).to(device)

    frames, sound = torch.randn(2, 1, 2, 3, 32, 32, device=device).unbind(0)
    return Pair(vit(24), vit(40), frames, sound, fastav.MettleConfig(num_tokens=3, heads=2, rank=4, width=20))


@contextmanager
def ops_from(module: Any) -> Iterator[None]:
    """Let Mettle call another module's ops, or those of whatever holds them by name."""
    with patch.object(distillation, "ops", module), patch.object(mettle, "ops", module):
        yield


def _branch(
    adapter: fastav.MettleAdapter, taps: tuple[list[Tensor], list[Tensor]], segments: int, *, widen: bool = False
) -> Callable[[], Any]:
    """Forward and backward of the side branch alone; ``widen`` brings the taps to float32 first."""
    parameters = [p for p in adapter.parameters() if p.requires_grad]

    def run() -> Any:
        visual, audio = ([t.float() for t in some] for some in taps) if widen else taps
        out = adapter.forward_taps(visual, audio, num_segments=segments)
        return torch.autograd.grad(out.visual.square().mean() + out.audio.square().mean(), parameters)

    return run


def device_launches(pair: Pair) -> dict[str, tuple[int, int]]:
    """What the device is given by adapters' side branches before the head, forward and backward.

    Everything counts, PyTorch's own kernels, copies and fills too; only a GPU's profiler tells.
    """
    molt = fastav.MoLTAdapter(pair.visual, pair.audio, fastav.MoLTConfig(**AVE)).to(pair.frames.device)
    some = {"Mettle": pair.adapter(), "Mettle, one tap of each backbone": pair.adapter(layers=1), "MoLT": molt}
    return {name: _launches_of(adapter, pair) for name, adapter in some.items()}


def _launches_of(adapter: Adapter, pair: Pair) -> tuple[int, int]:
    for module in adapter.modules():
        if isinstance(module, TapStandardization):
            module.complete = True
    visual, audio = pair.taps(adapter)
    parameters = [p for p in adapter.parameters() if p.requires_grad]

    def forward() -> list[Tensor]:
        out = adapter.forward_taps(visual, audio, num_segments=pair.frames.shape[1])
        return [out.visual, out.audio]

    def backward(outputs: list[Tensor]) -> None:
        torch.autograd.grad(outputs, parameters, above, allow_unused=True)

    above = [torch.ones_like(x) for x in forward()]
    backward(forward())  # compiles what is compiled once
    outputs: list[Tensor] = []
    return _given(lambda: outputs.extend(forward())), _given(lambda: backward(outputs))


def _given(call: Callable[[], Any]) -> int:
    """How many kernels, copies and fills a device does for a call."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in found.events())


@dataclass(frozen=True)
class Branch:
    """The side branch, forward and backward.

    Attributes:
        name: whose ops it runs on.
        run: calls it.
        check: raises an AssertionError unless its gradients are right, an UnavailableError if it cannot serve.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[], None]


def branches(pair: Pair) -> Iterator[Branch]:
    """The side branch by whose ops it runs on."""
    segments, adapter = pair.frames.shape[1], pair.adapter()
    taps = pair.taps(adapter)
    with ops_from(reference):
        exact = _branch(adapter, taps, segments)()
    torch._dynamo.reset()
    ways: dict[str, tuple[Callable[[], Any], bool, bool]] = {
        "ours": (lambda: fastav.ops, False, False),
        "eager": (lambda: reference, False, False),
        "plain": (lambda: plain, False, False),
        "sdpa": (partial(_plain_but, "sdpa"), False, False),
        "xformers": (partial(_plain_but, "xformers"), False, False),
        "compile": (lambda: plain, True, False),
    }
    if taps[0][0].dtype != torch.float32 and taps[0][0].device.type == "cpu":  # the faster way for many operators
        ways |= {"plain in float32": (lambda: plain, False, True), "compile in float32": (lambda: plain, True, True)}
    for name, (make, compiled, widen) in ways.items():
        call = _branch(adapter, taps, segments, widen=widen)
        call = torch.compile(call) if compiled else call

        def run(make: Callable[[], Any] = make, call: Callable[[], Any] = call) -> Any:
            with ops_from(make()):
                return call()

        def check(name: str = name, run: Callable[[], Any] = run) -> None:
            check_close(run(), exact, taps[0][0].dtype, name)

        yield Branch(name, run, check)


@cache
def _plain_but(distill: str) -> SimpleNamespace:
    """The plain ops, with another contender's distill."""
    function = CONTENDERS["distill"][distill]("distill")
    defaults = {"weight": None, "bias": None, "key_mask": None, "scale": None, "norm": "layer", "eps": 1e-6}
    return SimpleNamespace(distill=partial(function, **defaults), project=plain.project, fuse=plain.fuse)


def check_close(found: Any, exact: Any, dtype: torch.dtype, name: str) -> None:
    """Gradients agree, as one vector, as well as a chain of roundings in the taps' dtype lets them.

    Some ten roundings lie between a tap and a gradient, and two orders of the same sums seldom err three times as much
    as each other. Ours computes with fewer of them where taps have 16 bits.
    """
    narrow = name == "ours" and dtype.itemsize == 2
    limit = (ROUNDED_TOLERANCE if narrow else 3 * 10) * torch.finfo(dtype).eps
    off = distance(found, exact)
    assert off <= limit, f"{name}: gradients are {off:.3g} of their size off, allowed are {limit:.3g}"


def step_figures(pair: Pair, rounds: int) -> dict[str, tuple[Spread, Spread]]:
    """Time the frozen forward alone and whole training steps, by schedule; equal gradients are checked first.

    Returns:
        Of each, seconds from an idle device to an idle device, and how many times as long as the frozen forward it took
        in the same round: clocks drift.
    """
    device = pair.frames.device
    frozen = frozen_forward(pair.visual, pair.audio, (pair.frames, pair.sound), pair.config.audio_layout)
    calls: dict[str, Callable[[], Any]] = {FROZEN: frozen}
    first: Any = None
    for schedule in SCHEDULES:
        adapter = pair.adapter(schedule=schedule)
        parameters = [p for p in adapter.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0)

        def step(adapter=adapter, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            out = adapter(pair.frames, pair.sound)
            (out.visual.square().mean() + out.audio.square().mean()).backward()
            optimizer.step()

        step()
        gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        first = first or gradients
        for a, b in zip(gradients, first, strict=True):
            assert torch.equal(a, b), f"schedule {schedule}: other gradients than {SCHEDULES[0]}"
        calls[f"training step, {schedule}"] = step
    for call in calls.values():
        call()
    times = [{name: timed(call, device) for name, call in calls.items()} for _ in range(rounds)]
    return {
        name: (Spread.of([one[name] for one in times]), Spread.of([one[name] / one[FROZEN] for one in times]))
        for name in calls
    }
