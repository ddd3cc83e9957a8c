"""All that a method costs: time, memory, parameters, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fastav.backbones import FrozenBackbone
from fastav.backbones.layout import flat_inputs
from fastav.backbones.streams import SideStreams
from fastav.cost.energy import energy_counter, joules_a_call
from fastav.cost.memory import Peak
from fastav.cost.step import Step
from fastav.cost.timing import Spread, timed
from fastav.ops._backends import serving

#: Rounds before those that count: in the first one adapters measure their taps' statistics.
WARM_UP = 1


@dataclass(frozen=True)
class Cost:
    """What a training step of one method costs.

    Attributes:
        method: its name.
        clips: B.
        segments: T.
        reached: blocks of the backbones that gradients run through.
        blocks: blocks of the backbones.
        trainable: parameters that the method trains, without the head's.
        head: parameters of the head, which all train.
        total: all parameters, the backbones' and the head's included.
        step: seconds of a training step.
        forward: seconds of forward alone, without gradients.
        frozen: seconds of the two frozen backbones' forward alone, in the same rounds.
        over_frozen: how many times as long as that a step took in the same round.
        parts: seconds of each part of a step, see :data:`fastav.cost.PARTS`; medians.
        saved: bytes kept for backward by place, see :data:`fastav.cost.PLACES`.
        peak: of a training step's memory, over what there was before it.
        forward_peak: of forward alone.
        joules: of a step, whatever else runs on the device included; None where nothing counts them.
        no_joules: why not.
        ops: the backends that served fastav's own ops; empty for methods that call none.
    """

    method: str
    clips: int
    segments: int
    reached: int
    blocks: int
    trainable: int
    head: int
    total: int
    step: Spread
    forward: Spread
    frozen: Spread
    over_frozen: Spread
    parts: Mapping[str, float]
    saved: Mapping[str, int]
    peak: Peak
    forward_peak: Peak
    joules: float | None = None
    no_joules: str = ""
    ops: str = ""

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for backward in all."""
        return sum(self.saved.values())

    @property
    def share(self) -> float:
        """Trainable parameters of all, the head's included in both."""
        return (self.trainable + self.head) / self.total

    @property
    def clips_per_second(self) -> float:
        """In training."""
        return self.clips / self.step.median

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cost:
        """Back from :meth:`as_dict`'s values."""
        spreads = {name: Spread(**values[name]) for name in ("step", "forward", "frozen", "over_frozen")}
        peaks = {name: Peak(values[name]["bytes"], values[name]["reserved"]) for name in ("peak", "forward_peak")}
        return cls(**{**values, **spreads, **peaks})


def frozen_forward(
    visual: nn.Module,
    audio: nn.Module,
    inputs: tuple[Tensor, Tensor],
    audio_layout: str = "segment",
    chunks: tuple[int | None, int | None] = (None, None),
) -> Callable[[], Any]:
    """Both frozen backbones' forward, which nobody gets around: on a GPU beside each other, as adapters run them."""
    eyes, ears = FrozenBackbone(visual, 1, chunk=chunks[0]), FrozenBackbone(audio, 1, chunk=chunks[1])
    flat, _ = flat_inputs(*inputs, audio_layout)

    def run() -> tuple[list[Tensor], list[Tensor]]:
        with SideStreams(flat["visual"].device) as side:
            with side.fork("audio", [flat["audio"]]):
                heard = ears(flat["audio"])
                side.hand_back(heard)
            return eyes(flat["visual"]), heard

    return run


def check_rounds(rounds: int) -> None:
    """Raise ValueError for fewer than two rounds, of which there are no quartiles."""
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}, wanted at least 2: a cost has a median and quartiles")


def repeat(call: Callable[[], Any], *, setup: Callable[[], Any], rounds: int, warmup_rounds: int) -> None:
    """Do ``setup`` and ``call`` by turns, as ``pedantic`` of pytest-benchmark does, which also times ``call``."""
    for _ in range(warmup_rounds + rounds):
        setup()
        call()


def measure_cost(
    name: str,
    step: Step,
    frozen: Callable[[], Any],
    *,
    reached: Mapping[str, int],
    rounds: int = 5,
    repeat: Callable[..., Any] = repeat,
) -> Cost:
    """Measure one method; time and memory in one process, first times, then memory.

    Args:
        name: the method's.
        step: its training step.
        frozen: see :func:`frozen_forward`.
        reached: what :func:`fastav.cost.check` gave for it.
        rounds: how often each is timed, by turns.
        repeat: who does the turns, see :func:`repeat`.

    Raises:
        ValueError: fewer than two rounds.
    """
    check_rounds(rounds)
    frozen_times, forwards, parts = [], [], []

    def without_gradients() -> None:
        frozen_times.append(timed(frozen, step.device))
        with step.inference() as infer:
            forwards.append(timed(infer, step.device))

    with serving() as served:
        repeat(lambda: parts.append(step.parts()), setup=without_gradients, rounds=rounds, warmup_rounds=WARM_UP)
    frozen_times, forwards, parts = frozen_times[WARM_UP:], forwards[WARM_UP:], parts[WARM_UP:]
    steps = [sum(one.values()) for one in parts]
    joules, no_joules = _joules(step)
    head = sum(p.numel() for p in step.task.parameters())
    return Cost(
        method=name,
        clips=step.clips,
        segments=step.segments,
        reached=reached["reached"],
        blocks=reached["blocks"],
        trainable=step.trainable - head,
        head=head,
        total=step.total,
        step=Spread.of(steps),
        forward=Spread.of(forwards),
        frozen=Spread.of(frozen_times),
        over_frozen=Spread.of([a / b for a, b in zip(steps, frozen_times, strict=True)]),
        parts={part: Spread.of([one[part] for one in parts]).median for part in parts[0]},
        saved=step.saved(),
        peak=step.peak(),
        forward_peak=step.forward_peak(),
        joules=joules,
        no_joules=no_joules,
        ops=", ".join(sorted(served)),
    )


def _joules(step: Step) -> tuple[float | None, str]:
    counter, reason = energy_counter(step.device)
    return (None, reason) if counter is None else joules_a_call(lambda: timed(step, step.device), counter)
