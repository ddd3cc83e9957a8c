"""``fastav profile``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastav.cost.methods import METHODS, random_inputs
from fastav.cost.profile import profile, profile_largest, write_snapshot
from fastav.cost.record import Record
from fastav.cost.step import Step
from fastav.cost.where import where
from fastav.optional import load_optional
from fastav.training.arguments import profile_parser
from fastav.training.backbones import build_audio, build_visual
from fastav.training.cli import plainly
from fastav.training.config import AudioConfig, ProfileConfig, VisualConfig


def main(arguments: Sequence[str]) -> int:
    """Measure every method; 1 if one is not what it claims to be, or none could be measured."""
    with plainly():
        values = profile_parser().parse_args(list(arguments)).as_dict()
        values.pop("config", None)
        visual, audio = VisualConfig(**values.pop("visual")), AudioConfig(**values.pop("audio"))
        config = ProfileConfig(visual=visual, audio=audio, **values)
        methods = config.methods or list(METHODS)
        if unknown := sorted(set(methods) - set(METHODS)):
            raise ValueError(f"--methods: there is no {', '.join(unknown)}; choose among {', '.join(METHODS)}")
        device = _device(config.device)
        dtype = getattr(torch, config.precision)
        seconds = config.seconds * (config.segments if config.audio_layout == "clip" else 1)
        eyes = build_visual(config.visual).to(device, dtype)
        ears = build_audio(config.audio, seconds).to(device, dtype)
        shape: dict[str, Any] = {
            "segments": config.segments, "audio_layout": config.audio_layout, "seconds": seconds
        }  # fmt: skip
        inputs = random_inputs(eyes, ears, clips=config.clips, **shape)
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        load_optional("matplotlib.figure", by="pictures of costs", extra="plots")  # before hours, not after them
    record = Record(folder, title(config), where(device))
    print(f"{record.title}\n{record.where}", flush=True)

    def snapshot(name: str, step: Step) -> None:
        if device.type == "cuda":
            write_snapshot(step, folder / f"memory-{name}.pickle")

    common: dict[str, Any] = {
        "audio_layout": config.audio_layout,
        "chunks": (config.visual.chunk, config.audio.chunk),
        "rounds": config.rounds,
    }
    fixed = record.batch("costs", f"{config.clips} clip(s)")
    for found in profile(methods, eyes, ears, inputs, then=snapshot, **common):
        fixed.add(found)
    if config.memory is not None and fixed.costs:
        make = partial(random_inputs, eyes, ears, **shape)
        largest = record.batch("largest", f"the largest batch that fits into {config.memory:g} GiB")
        memory = round(config.memory * 2**30)
        for found in profile_largest(fixed.costs, eyes, ears, lambda clips: make(clips=clips), memory, **common):
            largest.add(found)
    if not fixed.costs:
        print("fastav profile: nothing could be measured", file=sys.stderr)
        return 1
    print(record.text(markdown=False))
    snapshots = ", memory-<method>.pickle for pytorch.org/memory_viz" if device.type == "cuda" else ""
    print(f"written to {folder}: {', '.join(record.names)}{snapshots}")
    return int(record.failed)


def title(config: ProfileConfig) -> str:
    """What was measured, in words."""
    chunks = {"frames": config.visual.chunk, "sounds": config.audio.chunk}
    asked = [f"{chunk} {what}" for what, chunk in chunks.items() if chunk]
    said = f"; frozen backbones run {' and '.join(asked)} at a time" if asked else ""
    return f"{config.visual.name} and {config.audio.name}, {config.segments} segments a clip, {config.precision}{said}"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: torch knows no such device") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: costs are measured on cpu and cuda alone")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU here; `fastav env` says what there is")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs; `fastav env` names them")
    return torch.device("cuda", index)
