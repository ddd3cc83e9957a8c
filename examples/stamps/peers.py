"""Accuracy beside cost: every method on localisation, those that run through the backbones too.

``python -m examples.stamps.peers`` trains each method with learning rates a factor of three apart: with the one below,
with the next higher one, and on towards the side that validation prefers until the next one is no better. The best
goes on with more seeds. Every run is kept as a file, so that a command that was broken off goes on where it was. The
peers take hours on two cores: they train through the backbones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastav
from benchmarks.environment import commit
from examples.stamps import exercises
from examples.stamps.assets import AUDIO_WEIGHTS, PHOTOS, STAMPS, VISION_WEIGHTS, fetch_all
from examples.stamps.exercises import METTLE, METTLE_TAPS, MOLT, MOLT_TAPS, POOLED, Exercise
from examples.stamps.material import load_material
from examples.stamps.methods import WIDTH, Live, Model
from examples.stamps.peers_report import Outcome, Runs, write_accuracy
from examples.stamps.scenes import SEGMENTS
from examples.stamps.splits import CPU, Studio
from examples.stamps.training import CLIP_NORM, LEARNING_RATE, WARM_UP, train
from fastav.baselines import BASELINES, create_baseline
from fastav.cost import METHODS, Cost, random_inputs
from fastav.cost.methods import DERIVED, default_options
from fastav.cost.profile import profile
from fastav.cost.where import where
from fastav.optional import load_optional
from fastav.tasks import LocalizationTask

SIZES = {"train": 240, "validation": 100, "test": 300}
SEED = 1  # of the clips: the demo's are others, and Mettle's and MoLT's recipe was chosen on those
IMAGE_SIZE = 98  # pixels, 7 x 7 patches: what two cores can train through
EPOCHS = 4
BATCH = 2
MEASURED = 128  # clips over which what is read and does not move is measured; the mean-pooled features measure all
FOLLOWED = 8  # batches over which the running statistics reach of what moves

#: The adapters once more with as many tokens as the peers' read-outs have, for a head of the same size.
METTLE_ONE, MOLT_ONE = (f"{name}, one token" for name in (METTLE, MOLT))

#: Of the adapters' runs: which method it is, and its options beside the demo's layers.
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    METTLE: ("mettle", {"layers": {"visual": METTLE_TAPS, "audio": "all"}}),
    MOLT: ("molt", {"layers": {"visual": MOLT_TAPS, "audio": "all"}}),
}
ADAPTERS |= {
    METTLE_ONE: ("mettle", {**ADAPTERS[METTLE][1], "num_tokens": 1}),
    MOLT_ONE: ("molt", {**ADAPTERS[MOLT][1], "num_tokens": 1}),
}

#: The learning rate that each method is tried with first; heads always have the demo's.
RATES: dict[str, float] = {
    POOLED: 2e-3,
    METTLE: 1e-3,
    METTLE_ONE: 1e-3,
    MOLT: 1e-3,
    MOLT_ONE: 1e-3,
    "frozen": 2e-3,
    "ladder": 3e-4,
    "lora": 3e-4,
    "naive": 3e-4,
    "lavish": 3e-4,
    "dg-sct": 3e-4,
    "full": 1e-5,
}
FACTOR = 3  # from one rate to the next


def main() -> None:
    """Run whatever is not there yet; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m examples.stamps.peers", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/peers"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method with the rate that was chosen")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), help="run these alone, and write no table")
    parser.add_argument("--table", action="store_true", help="train nothing; tables of the runs that are there")
    parser.add_argument("--device", type=torch.device, default=CPU, help="where it is trained")
    options = parser.parse_args()
    if options.table and options.methods:
        parser.error("--table is of all methods of which runs are there; leave out --methods")
    load_optional("peft", by="LoRA", extra="baselines")  # now, not after hours
    load_optional("greenlet", by="DG-SCT", extra="baselines")
    paths, missing = fetch_all([VISION_WEIGHTS, AUDIO_WEIGHTS, STAMPS, PHOTOS])
    if missing:
        raise SystemExit("\n".join([*map(str, missing), "without them there is nothing to compare"]))
    exercise = localization(SIZES, IMAGE_SIZE, paths, options.device)
    for seeds in range(1, 1 + (0 if options.table else options.seeds)):
        for method in options.methods or RATES:
            outcomes(partial(outcome, exercise, method, folder=options.out), RATES[method], seeds)
            print(f"{method}: {seeds} seed(s) are there", flush=True)
    if options.methods:
        return
    runs = kept(options.out)
    if not runs:
        raise SystemExit(f"{options.out}: of no method are all rates there that have to be tried; leave out --table")
    split = exercise.examples["train"].split
    found, reasons = costs(runs, split.visual.module, split.audio.module)
    nothing = exercise.chance[0], {name: 100 * value.item() for name, value in exercise.chance[1].items()}
    written = write_accuracy(options.out, runs, found, nothing, " ".join([notes(options.device), *reasons]))
    print("\n".join(map(str, written)))


def kept(folder: Path) -> dict[str, Runs]:
    """The runs of all methods of which the search for the rate is there, with as many seeds as are."""
    found = {}
    for method in RATES:
        tried: dict[float, Outcome] = {}

        def look(rate: float, seed: int, method: str = method, tried: dict[float, Outcome] = tried) -> Outcome:
            tried[rate] = read(method, rate, seed, folder=folder)
            return tried[rate]

        with suppress(FileNotFoundError):
            chosen = outcomes(look, RATES[method], 1)
            found[method] = Runs(chosen, [tried[rate] for rate in sorted(tried)])
            for seed in count(1):
                chosen.append(read(method, chosen[0].rate, seed, folder=folder))
    return found


def costs(methods: Iterable[str], visual: nn.Module, audio: nn.Module) -> tuple[dict[str, Cost], list[str]]:
    """What a training step of one clip costs, by the runs' names of the methods; and why not, of those without."""
    inputs = random_inputs(visual, audio, clips=1, segments=SEGMENTS, audio_layout="clip")
    found, reasons = {}, []
    for method in methods:
        name, own = ADAPTERS.get(method, (method, {}))
        if name in METHODS:
            (cost,) = profile([name], visual, audio, inputs, audio_layout="clip", own={name: own})
            if isinstance(cost, Cost):
                found[method] = cost
            else:
                reasons.append(f"The cost of {method} was not measured: {cost.reason}.")
    return found, reasons


def notes(device: torch.device) -> str:
    """How it was measured, the costs on a device."""
    return (
        f"Localisation on composed clips of {IMAGE_SIZE} px: {SIZES['train']} to train on, {SIZES['validation']} to "
        f"choose the epoch and the learning rate, {SIZES['test']} to test; {EPOCHS} epochs, {BATCH} clips a step, one "
        f"schedule for all. Test clips show the same cut-outs and play the same recordings as training clips, in other "
        f"combinations and before other backgrounds: scores say nothing of unseen animals. No recipe of Mettle's, "
        f"MoLT's or the mean-pooled features' was chosen on these clips; read-outs, ladder and naive adapters were "
        f"mended after earlier runs on them, for what validation and training showed. Learning rates are a factor of "
        f"{FACTOR} apart; the better of two neighbours is followed until the next is no better. The head reads as many "
        f"tokens as a method has, 4 of Mettle and MoLT and one of all others; its rate, and the peers' ranks and "
        f"ratios, are one choice for all. Taps, and what frozen features read, are standardised by the first "
        f"{MEASURED} clips; read-outs of what moves follow it as a running mean over {FOLLOWED} batches. All compute "
        f"in float32, from inputs or taps that were stored in 16 bits. Costs are of one clip, straight from pixels and "
        f"sound: {where(device)}."
    )


def localization(
    sizes: dict[str, int], image_size: int, paths: dict[str, Path], device: torch.device = CPU
) -> Exercise:
    """Localisation with all methods: the demo's own from stored taps, the peers through the backbones."""
    studio = Studio(
        load_material(paths.get(STAMPS.name), paths.get(PHOTOS.name)),
        paths.get(VISION_WEIGHTS.name),
        paths.get(AUDIO_WEIGHTS.name),
        device,
    )
    splits = studio.clips(sizes, image_size, SEED)
    batches = standardize_batches(METTLE)
    exercise = exercises.localization(splits, weak=False, standardize_batches=batches)
    fewer = exercises.localization(splits, weak=False, standardize_batches=batches, num_tokens=1)
    exercise.methods.update({METTLE_ONE: fewer.methods[METTLE], MOLT_ONE: fewer.methods[MOLT]})
    visual, audio = splits["train"].visual.module, splits["train"].audio.module
    classes = studio.material.num_classes

    def peer(name: str) -> Callable[[], Model]:
        options = {"standardize_batches": standardize_batches(name)}
        options |= {"num_segments": SEGMENTS} if name == "dg-sct" else {}
        return lambda: Model(
            Live(create_baseline(name, visual=visual, audio=audio, width=WIDTH, audio_layout="clip", **options)),
            LocalizationTask(classes, num_tokens=1, width=WIDTH),
        )

    exercise.methods.update({name: peer(name) for name in RATES if name not in exercise.methods})
    return exercise


def outcomes(run: Callable[[float, int], Outcome], rate: float, seeds: int) -> list[Outcome]:
    """The runs of one method: the first seed at several rates, the others at the one that was best on validation.

    Of two neighbours the better one is followed, until the next is no better: no method's best is the outermost tried.

    Args:
        run: gives the outcome of a rate and a seed.
        rate: the one to begin with.
        seeds: how many.
    """
    best, other = run(rate, 0), run(FACTOR * rate, 0)
    factor = 1 / FACTOR
    if other.validation > best.validation:
        best, factor = other, FACTOR
    while (further := run(best.rate * factor, 0)).validation > best.validation:
        best = further
    return [best, *(run(best.rate, seed) for seed in range(1, seeds))]


def settings(method: str) -> dict[str, Any]:
    """What a run depends on beside method, rate, seed and code, as JSON gives it back."""
    name, own = ADAPTERS.get(method, (method, {}))
    defaults = default_options(name) if name in METHODS else {"layers": METTLE_TAPS}
    apart = {*DERIVED, "gradient_checkpointing"}  # which changes no bit
    options = {key: value for key, value in (defaults | own).items() if key not in apart}
    return json.loads(
        json.dumps(
            {
                "sizes": SIZES,
                "clips": SEED,
                "image_size": IMAGE_SIZE,
                "epochs": EPOCHS,
                "batch": BATCH,
                "standardize_batches": standardize_batches(method),
                "weight_decay": Exercise.weight_decay,
                "rate_of_heads": LEARNING_RATE,
                "warm_up": WARM_UP,
                "clip_norm": CLIP_NORM,
                "options": options,
                "fastav": fastav.__version__,
            }
        )
    )


def standardize_batches(method: str) -> int:
    """Over how many batches statistics of what a method reads are measured."""
    return FOLLOWED if method in BASELINES and BASELINES[method].moves else MEASURED // BATCH


def path_of(folder: Path, method: str, rate: float, seed: int) -> Path:
    """Where a run is kept."""
    return folder / "runs" / f"{method.replace(' ', '_')}-{rate:.3g}-{seed}.json"


def read(method: str, rate: float, seed: int, *, folder: Path) -> Outcome:
    """A run that was kept.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was run with other settings.
    """
    path = path_of(folder, method, rate, seed)
    values = json.loads(path.read_text())
    if (were := values.pop("settings")) != settings(method):
        raise ValueError(f"{path} was run with {were}, wanted {settings(method)}; give another --out, or delete it")
    return Outcome(**values)


def outcome(exercise: Exercise, method: str, rate: float, seed: int, *, folder: Path) -> Outcome:
    """One run: as it was kept, or run now and kept."""
    with suppress(FileNotFoundError):
        return read(method, rate, seed, folder=folder)
    begun = f"{where(exercise.examples['train'].split.device)}, commit {commit()}"
    run = train(
        f"{method}, rate {rate:.3g}",
        exercise.methods[method],
        exercise.examples,
        epochs=EPOCHS,
        batch=BATCH,
        weight_decay=exercise.weight_decay,
        seed=seed,
        rate=rate,
    )
    head = sum(p.numel() for p in run.model.task.parameters())
    found = Outcome(
        method,
        rate,
        seed,
        run.monitored,
        run.scores["test"],
        run.of_clips.tolist(),
        run.trainable - head,
        head,
        run.losses,
        run.seconds_per_epoch,
        begun,
    )
    path = path_of(folder, method, rate, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is broken off while it is written leaves no half of a file.
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({**asdict(found), "settings": settings(method)}, indent=1) + "\n")
    unfinished.replace(path)
    return found


if __name__ == "__main__":
    main()
