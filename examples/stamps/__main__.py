"""The demo: from real pictures and sounds to four trained and scored tasks with both methods, in one command."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fastav
from examples.stamps import exercises, pictures, report
from examples.stamps.assets import AUDIO_WEIGHTS, PHOTOS, STAMPS, TEXT_WEIGHTS, VISION_WEIGHTS, fetch_all
from examples.stamps.examples import Examples
from examples.stamps.exercises import BASELINES, METTLE, Exercise
from examples.stamps.material import load_material
from examples.stamps.methods import Adapted, Model
from examples.stamps.splits import Studio
from examples.stamps.taps import prepare
from examples.stamps.training import Run, faster, predict, step_times, train


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        clips: ten-second clips of each split.
        scenes: five-second scenes of each split, of each kind.
        seeds: runs of each method.
        variants: also weakly supervised localisation and multi-source segmentation, beside one exercise a task.
    """

    clips: dict[str, int]
    scenes: dict[str, int]
    seeds: int
    variants: bool


SUBSET = Size({"train": 240, "validation": 60, "test": 80}, {"train": 120, "validation": 40, "test": 60}, 1, False)
ALL = Size(
    {"train": 600, "validation": 100, "test": 150, "cross": 100},
    {"train": 400, "validation": 60, "test": 80},
    3,
    True,
)


def main() -> None:
    """Run the demo; see ``--help``."""
    options = _options()
    size, start = ALL if options.all else SUBSET, time.perf_counter()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)

    paths, missing = fetch_all([VISION_WEIGHTS, AUDIO_WEIGHTS, TEXT_WEIGHTS, STAMPS, PHOTOS])
    for problem in missing:
        print(f"\nNOT AVAILABLE: {problem}\n")
    material = load_material(paths.get(STAMPS.name), paths.get(PHOTOS.name))
    studio = Studio(material, paths.get(VISION_WEIGHTS.name), paths.get(AUDIO_WEIGHTS.name))
    text = paths.get(TEXT_WEIGHTS.name)
    source = "; ".join(
        f"{name} {'pretrained' if path else without}"
        for name, path, without in (
            ("DINOv2-architecture ViT-S/14", studio.vit, "RANDOM (package out of reach)"),
            ("Whisper-tiny encoder", studio.whisper, "RANDOM (package out of reach)"),
            ("MiniLM for the questions", text, "replaced by an LSTM (package out of reach)"),
        )
    )
    print(f"clips: {material.source}; weights: {source}")

    some = _exercises(studio, size, text)
    runs: dict[str, dict[str, list[Run]]] = {}
    for exercise in some.values():
        runs[exercise.name] = {
            method: [_train(exercise, method, seed) for seed in range(size.seeds)] for method in exercise.methods
        }
        # After each, so that a run that is broken off leaves what it had found.
        done = [some[name] for name in runs]
        found = _write(folder, done, runs, _notes(material.source, source, size, done, start))

    first = some["localisation"]
    model = runs[first.name][METTLE][0].model
    drawn = pictures.draw(some, runs, material.class_names, folder)
    speed = faster(step_times(model, first.examples["train"], first.batch), first.batch)
    (folder / "table.md").write_text(f"{found}\n{speed}\n")
    print(f"\n{found}\n{speed}\n")

    _save(model, folder / "mettle")
    print(_check_reloaded(folder / "mettle", first, model))
    written = [*drawn, folder / "table.md", folder / "scores.json", folder / "mettle"]
    print(f"written: {', '.join(map(str, written))}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.stamps", description=__doc__)
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"all clips and exercises and {ALL.seeds} runs of each method, instead of a subset that takes minutes",
    )
    parser.add_argument("--out", default="out", help="folder for the tables, the pictures and a saved adapter")
    return parser.parse_args()


def _exercises(studio: Studio, size: Size, text: Path | None) -> dict[str, Exercise]:
    clips = studio.clips(size.clips)
    made = [
        exercises.localization(clips, weak=False),
        exercises.parsing(clips),
        exercises.questions(clips, text),
        exercises.segmentation("segmentation, single", studio.scenes("single", size.scenes)),
    ]
    if size.variants:
        made += [
            exercises.localization(clips, weak=True),
            exercises.segmentation("segmentation, multiple", studio.scenes("multiple", size.scenes)),
        ]
    return {exercise.name: exercise for exercise in made}


def _train(exercise: Exercise, method: str, seed: int) -> Run:
    epochs = exercise.settling if method in BASELINES else exercise.epochs
    name = f"{exercise.name}: {method}"
    make = exercise.methods[method]
    return train(
        name,
        make,
        exercise.examples,
        epochs=epochs,
        batch=exercise.batch,
        weight_decay=exercise.weight_decay,
        seed=seed,
    )


def _write(folder: Path, done: list[Exercise], runs: report.Runs, notes: str) -> str:
    """Write the tables and all scores of the exercises that are done; the tables with the notes."""
    tables = [table(done, runs) for table in (report.scores, report.leads, report.costs)]
    found = "\n\n".join([*tables, notes])
    (folder / "table.md").write_text(found + "\n")
    (folder / "scores.json").write_text(json.dumps(report.everything(done, runs), indent=1) + "\n")
    return found


def _notes(material: str, source: str, size: Size, some: list[Exercise], start: float) -> str:
    spread = "mean ± standard deviation over" if size.seeds > 1 else "over"
    chances = "; ".join(f"{exercise.name}: {exercise.chance[0]}" for exercise in some)
    return (
        f"Percent, {spread} {size.seeds} seed(s), on the test split: {size.clips['test']} clips, {size.scenes['test']} "
        f"scenes of each kind, after training on {size.clips['train']} and {size.scenes['train']}; validation chooses "
        f"the epoch. Nothing learned is {chances}.\n"
        f"Clips {material}; {source}.\n"
        f"Measured on {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, fastav {fastav.__version__}; "
        f"{(time.perf_counter() - start) / 60:.1f} minutes in all."
    )


def _save(model: Model, folder: Path) -> None:
    assert isinstance(model.source, Adapted)
    model.source.adapter.save_pretrained(folder)
    save_file(model.task.state_dict(), folder / "head.safetensors")


def _check_reloaded(folder: Path, exercise: Exercise, model: Model) -> str:
    """Build the model anew from its files and let it predict, from stored taps and from pixels and sound."""
    test: Examples = exercise.examples["test"]
    again = exercise.methods[METTLE]()
    assert isinstance(again.source, Adapted)
    adapter = again.source.adapter
    again.source.adapter = type(adapter).from_pretrained(folder, visual=adapter.visual, audio=adapter.audio)
    again.task.load_state_dict(load_file(folder / "head.safetensors"))
    before, after = (predict(one, test)["labels"] for one in (model, again))
    if not torch.equal(before, after):
        raise RuntimeError(f"the reloaded adapter predicts {(before != after).sum()} seconds differently")
    count = min(10, len(test))
    with torch.no_grad():
        out = again.source.adapter(*prepare([test.split.clips[index] for index in range(count)]))
        direct = again.task.decode(again.task(out, {}))["labels"]
    same = (direct == before[:count]).float().mean().item()
    return (
        f"reloaded from {folder}: the same prediction in every second of the test split; straight from pixels and "
        f"sound, without the 16-bit store, in {100 * same:.1f} % of the seconds of {count} clips"
    )


if __name__ == "__main__":
    main()
