"""``fastav profile``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastav
from fastav.cost.methods import METHODS, random_inputs
from fastav.cost.profile import Absence, Cost, profile, write_snapshot
from fastav.cost.report import TITLES, cost_table, draw_costs, parts_table
from fastav.cost.step import Step
from fastav.training.arguments import profile_parser
from fastav.training.backbones import build_audio, build_visual
from fastav.training.cli import plainly
from fastav.training.config import AudioConfig, ProfileConfig, VisualConfig


def main(arguments: Sequence[str]) -> int:
    """Measure every method; 1 if one is not what it claims to be."""
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
        inputs = random_inputs(
            eyes, ears, clips=config.clips, segments=config.segments, audio_layout=config.audio_layout
        )
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
    title = (
        f"{config.visual.name} and {config.audio.name}, {config.clips} clip(s) of {config.segments} segments, "
        f"{config.precision}, {_device_name(device)}{_chunks(config)}"
    )
    print(title)

    def snapshot(name: str, step: Step) -> None:
        if device.type == "cuda":
            write_snapshot(step, folder / f"memory-{name}.pickle")

    costs: list[Cost] = []
    for found in profile(
        methods,
        eyes,
        ears,
        inputs,
        audio_layout=config.audio_layout,
        chunks=(config.visual.chunk, config.audio.chunk),
        rounds=config.rounds,
        then=snapshot,
    ):
        if isinstance(found, Absence):
            print(f"{TITLES[found.method]}: not measured: {found.reason}", file=sys.stderr)
        else:
            print(f"{TITLES[found.method]}: measured", file=sys.stderr, flush=True)
            costs.append(found)
    if not costs:
        print("fastav profile: nothing could be measured", file=sys.stderr)
        return 1
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads, fastav {fastav.__version__}"
    tables = [make(costs, markdown=True) for make in (cost_table, parts_table)]
    (folder / "costs.md").write_text("\n\n".join([f"# {title}", *tables, versions]) + "\n")
    (folder / "costs.json").write_text(json.dumps([cost.as_dict() for cost in costs], indent=1) + "\n")
    print("", cost_table(costs), "", parts_table(costs), "", sep="\n")
    with plainly():
        draw_costs(costs, folder / "costs.png", title)
    print(f"{versions}; written to {folder}: costs.md, costs.json, costs.png", end="")
    print(", memory-<method>.pickle for pytorch.org/memory_viz" if device.type == "cuda" else "")
    return 0


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: torch knows no such device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU here; `fastav env` says what there is")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _chunks(config: ProfileConfig) -> str:
    chunks = {"frames": config.visual.chunk, "sounds": config.audio.chunk}
    asked = [f"{chunk} {what}" for what, chunk in chunks.items() if chunk]
    return f"; frozen backbones run {' and '.join(asked)} at a time" if asked else ""


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
