"""Accuracy beside cost: every method on localisation, those that run through the backbones too.

``python -m examples.stamps.peers`` trains each method with some learning rates, chooses one on validation, and runs it
with more seeds. Every run is kept as a file, so that a command that was broken off goes on where it was. The peers take
hours on two cores: they train through the backbones.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastav
from examples.stamps import exercises
from examples.stamps.assets import AUDIO_WEIGHTS, PHOTOS, STAMPS, VISION_WEIGHTS, fetch_all
from examples.stamps.exercises import METTLE, METTLE_TAPS, MOLT, MOLT_TAPS, POOLED, Exercise
from examples.stamps.material import load_material
from examples.stamps.methods import WIDTH, Live, Model
from examples.stamps.peers_report import Outcome, write_accuracy
from examples.stamps.scenes import SEGMENTS
from examples.stamps.splits import Studio
from examples.stamps.training import train
from fastav.baselines import create_baseline
from fastav.cost import METHODS, Cost, random_inputs
from fastav.cost.profile import profile
from fastav.tasks import LocalizationTask

SIZES = {"train": 240, "validation": 60, "test": 150}
IMAGE_SIZE = 98  # pixels, 7 x 7 patches: what two cores can train through
EPOCHS = 12
BATCH = 8

#: Learning rates that each method is tried with, two each; heads and read-outs always have the demo's.
RATES: dict[str, tuple[float, float]] = {
    POOLED: (2e-3, 5e-3),
    METTLE: (1e-3, 2e-3),
    MOLT: (1e-3, 2e-3),
    "frozen": (2e-3, 5e-3),
    "ladder": (5e-4, 2e-3),
    "lora": (3e-4, 1e-3),
    "naive": (3e-4, 1e-3),
    "lavish": (3e-4, 1e-3),
    "dg-sct": (3e-4, 1e-3),
    "full": (3e-5, 1e-4),
}


def main() -> None:
    """Run whatever is not there yet; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m examples.stamps.peers", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/peers"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method with the rate that was chosen")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES), help="these alone")
    options = parser.parse_args()
    exercise = localization(SIZES, IMAGE_SIZE)
    runs: dict[str, list[Outcome]] = {}
    for seed in range(options.seeds):
        for method in options.methods:
            runs[method] = outcomes(exercise, method, seed + 1, options.out)
            print(f"{method}: {seed + 1} seed(s) are there", flush=True)
    split = exercise.examples["train"].split
    written = write_accuracy(options.out, runs, costs(split.visual.module, split.audio.module), notes(SIZES))
    print("\n".join(map(str, written)))


def costs(visual: nn.Module, audio: nn.Module) -> dict[str, Cost]:
    """What a training step of one clip costs, by the runs' names of the methods."""
    inputs = random_inputs(visual, audio, clips=1, segments=SEGMENTS, audio_layout="clip")
    layers = {METTLE: {"visual": METTLE_TAPS, "audio": "all"}, MOLT: {"visual": MOLT_TAPS, "audio": "all"}}
    found = {}
    for method in RATES:
        name = method.lower()
        if name in METHODS:
            options: dict[str, Any] = {"layers": layers[method]} if method in layers else {}
            (cost,) = profile([name], visual, audio, inputs, audio_layout="clip", **options)
            assert isinstance(cost, Cost), cost
            found[method] = cost
    return found


def notes(sizes: dict[str, int]) -> str:
    """How it was measured."""
    return (
        f"Localisation on composed clips of {IMAGE_SIZE} px: {sizes['train']} to train on, {sizes['validation']} to "
        f"choose the epoch and the learning rate, of two for each method, {sizes['test']} to test; {EPOCHS} epochs, "
        f"{BATCH} clips a step, one head and schedule for all. Mettle, MoLT and the mean-pooled features read taps "
        f"stored in 16 bits; the others run through the backbones, products in bfloat16. Costs are of one clip in "
        f"float32, straight from pixels and sound. {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, fastav {fastav.__version__}."
    )


def localization(sizes: dict[str, int], image_size: int) -> Exercise:
    """Localisation with all methods: the demo's own from stored taps, the peers through the backbones."""
    paths, missing = fetch_all([VISION_WEIGHTS, AUDIO_WEIGHTS, STAMPS, PHOTOS])
    for problem in missing:
        print(f"\nNOT AVAILABLE: {problem}\n")
    studio = Studio(
        load_material(paths.get(STAMPS.name), paths.get(PHOTOS.name)),
        paths.get(VISION_WEIGHTS.name),
        paths.get(AUDIO_WEIGHTS.name),
    )
    splits = studio.clips(sizes, image_size)
    exercise = exercises.localization(splits, weak=False)
    visual, audio = splits["train"].visual.module, splits["train"].audio.module
    classes = studio.material.num_classes

    def peer(name: str) -> Callable[[], Model]:
        options = {"num_segments": SEGMENTS} if name == "dg-sct" else {}
        return lambda: Model(
            Live(create_baseline(name, visual=visual, audio=audio, width=WIDTH, audio_layout="clip", **options)),
            LocalizationTask(classes, num_tokens=1, width=WIDTH),
        )

    exercise.methods.update({name: peer(name) for name in RATES if name not in exercise.methods})
    return exercise


def outcomes(exercise: Exercise, method: str, seeds: int, folder: Path) -> list[Outcome]:
    """The runs of one method: with the first seed at every rate, with the others at the rate that was best."""
    first = [outcome(exercise, method, rate, 0, folder) for rate in RATES[method]]
    chosen = max(first, key=lambda run: run.validation)
    return [chosen, *(outcome(exercise, method, chosen.rate, seed, folder) for seed in range(1, seeds))]


def outcome(exercise: Exercise, method: str, rate: float, seed: int, folder: Path) -> Outcome:
    """One run: as it was kept, or run now and kept."""
    path = folder / "runs" / f"{method.replace(' ', '_')}-{rate:g}-{seed}.json"
    if path.is_file():
        return Outcome(**json.loads(path.read_text()))
    run = train(
        f"{method}, rate {rate:g}",
        exercise.methods[method],
        exercise.examples,
        epochs=EPOCHS,
        batch=BATCH,
        weight_decay=exercise.weight_decay,
        seed=seed,
        rate=rate,
    )
    found = Outcome(
        method,
        rate,
        seed,
        max(run.monitored),
        run.scores["test"],
        run.of_clips.tolist(),
        run.trainable,
        run.seconds_per_epoch,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
