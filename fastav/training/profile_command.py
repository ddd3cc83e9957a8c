"""``fastav profile``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastav.backbones.blocks import find_blocks
from fastav.cost.methods import METHODS, check_options, random_inputs
from fastav.cost.profile import profile, profile_largest, write_snapshot
from fastav.cost.record import Record
from fastav.cost.report import TITLES
from fastav.cost.room import memory_of_machine, room
from fastav.cost.step import Step
from fastav.cost.where import where
from fastav.optional import load_optional
from fastav.training.arguments import profile_parser
from fastav.training.backbones import build_audio, build_visual
from fastav.training.cli import plainly
from fastav.training.config import AudioConfig, ProfileConfig, VisualConfig

#: Backbones whose blocks are found, for the user's choice.
FAMILIES = {
    "visual": "timm's ViT, EVA, BEiT and Swin, transformers' ViT, DINOv2, DINOv3 and Swin",
    "audio": "Whisper, CLAP, AST, HuBERT, wav2vec 2.0 and WavLM",
}


def main(arguments: Sequence[str]) -> int:
    """Measure every method; 1 if one failed, if a snapshot could not be written, or if nothing could be measured."""
    with plainly():
        values = profile_parser().parse_args(list(arguments)).as_dict()
        values.pop("config", None)
        visual, audio = VisualConfig(**values.pop("visual")), AudioConfig(**values.pop("audio"))
        config = ProfileConfig(visual=visual, audio=audio, **values)
        methods = config.methods or list(METHODS)
        if unknown := sorted(set(methods) - set(METHODS)):
            raise ValueError(f"--methods: there is no {', '.join(unknown)}; choose among {', '.join(METHODS)}")
        check_options(config.options, methods)
        device = _device(config.device)
        memory = None if config.memory is None else round(config.memory * 2**30)
        if device.type == "cpu" and memory is not None and memory > (there := memory_of_machine()):
            raise ValueError(f"--memory {config.memory:g}: this machine has {there / 2**30:.1f} GiB; name a part of it")
        dtype = getattr(torch, config.precision)
        seconds = config.seconds * (config.segments if config.audio_layout == "clip" else 1)
        eyes = _known(build_visual(config.visual), "visual", config.visual.name).to(device, dtype)
        ears = _known(build_audio(config.audio, seconds), "audio", config.audio.name).to(device, dtype)
        shape: dict[str, Any] = {
            "segments": config.segments, "audio_layout": config.audio_layout, "seconds": seconds
        }  # fmt: skip
        common: dict[str, Any] = {
            "audio_layout": config.audio_layout,
            "chunks": (config.visual.chunk, config.audio.chunk),
            "rounds": config.rounds,
            "own": config.options,
        }
        folder = _fresh(Path(config.output))
        folder.mkdir(parents=True, exist_ok=True)
        snapshots = Snapshots(folder)
        inputs = random_inputs(eyes, ears, clips=config.clips, **shape)
        profiled = profile(methods, eyes, ears, inputs, then=snapshots, **common)
        load_optional("matplotlib.figure", by="pictures of costs", extra="plots")  # before hours, not after them
    record = Record(folder, title(config), where(device))
    print(f"{record.title}\n{record.where}", flush=True)
    fixed = record.batch("costs", f"{config.clips} clip(s)")
    for found in profiled:
        fixed.add(found)
    if fixed.costs and wants_largest(config, device):
        make = partial(random_inputs, eyes, ears, **shape)
        largest = record.batch("largest", f"the largest batch that fits into {room(memory)}")
        for found in profile_largest(fixed.costs, eyes, ears, lambda clips: make(clips=clips), memory, **common):
            largest.add(found)
    if not fixed.costs:
        print("fastav profile: nothing could be measured", file=sys.stderr)
        return 1
    print(record.text(markdown=False))
    print(f"written to {folder}: {', '.join([*record.names, *snapshots.written])}")
    for said in snapshots.missing:
        print(f"fastav profile: {said}", file=sys.stderr)
    return int(record.failed or bool(snapshots.missing))


class Snapshots:
    """Memory snapshots of the methods that are measured on a GPU, for pytorch.org/memory_viz.

    Args:
        folder: where they are written.

    Attributes:
        written: names of the files.
        missing: what could not be written, and why: the method was measured all the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[str] = []
        self.missing: list[str] = []

    def __call__(self, method: str, step: Step) -> None:
        """Write one step's, if it works on a GPU."""
        if step.device.type != "cuda":
            return
        path = self.folder / f"memory-{method}.pickle"
        try:
            write_snapshot(step, path)
        except Exception as error:  # a full disk, exhausted memory: the methods that follow can be measured
            self.missing.append(f"{TITLES[method]}: no memory snapshot: {type(error).__name__}: {error}")
        else:
            self.written.append(path.name)


def wants_largest(config: ProfileConfig, device: torch.device) -> bool:
    """Whether methods are measured with the largest batch too: a GPU has a limit of its own, a CPU that one is told."""
    return config.memory is not None or device.type == "cuda"


def title(config: ProfileConfig) -> str:
    """What was measured, in words."""
    chunks = {"frames": config.visual.chunk, "sounds": config.audio.chunk}
    asked = [f"{chunk} {what}" for what, chunk in chunks.items() if chunk]
    said = [f"frozen backbones run {' and '.join(asked)} at a time"] if asked else []
    for method, options in config.options.items():
        said.append(f"{TITLES[method]} with {', '.join(f'{name}={value}' for name, value in options.items())}")
    pair = f"{config.visual.name} and {config.audio.name}"
    return "; ".join([f"{pair}, {config.segments} segments a clip, {config.precision}", *said])


def _fresh(folder: Path) -> Path:
    """The folder, or the first of ``<folder>-2`` and so on that holds no profile yet: none is written over."""
    names = (folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 1000)))
    return next(place for place in names if not (place / "costs.json").exists())


def _known(backbone: nn.Module, side: str, name: str) -> nn.Module:
    """A backbone whose blocks can be found."""
    if not find_blocks(backbone):
        raise ValueError(
            f"--{side}.name {name}: {type(backbone).__name__} has no transformer blocks of a family that fastav knows; "
            f"choose a model of one: {FAMILIES[side]}"
        )
    return backbone


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
