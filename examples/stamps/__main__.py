"""The demo: from real pictures and sounds to a trained, scored, saved and reloaded adapter, in one command."""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import default_collate

import fastav
from examples.stamps import pictures, report, weights
from examples.stamps.assets import AUDIO_WEIGHTS, PHOTOS, STAMPS, VISION_WEIGHTS, cache_folder, fetch_all
from examples.stamps.material import load_material
from examples.stamps.methods import Mettle, build
from examples.stamps.scenes import compose
from examples.stamps.taps import SECONDS, Split, prepare
from examples.stamps.training import Run, faster, predict, step_times, train
from fastav import FrozenBackbone, MettleAdapter
from fastav.tasks import decode_localization

IMAGE_SIZE = 126  # pixels, 9 x 9 patches: large enough to tell the animals apart, small enough for two cores
CLIPS = {"train": 600, "validation": 100, "test": 150, "cross": 100}
VISUAL_TAPS = range(1, 12, 2)  # every second of the 12 blocks; all four of the audio encoder's
BASELINE_EPOCHS = 4  # times Mettle's: they settle more slowly, an epoch costs next to nothing, and validation chooses


def main() -> None:
    """Run the demo; see ``--help``."""
    options = _options()
    start = time.perf_counter()
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)

    paths, missing = fetch_all([VISION_WEIGHTS, AUDIO_WEIGHTS, STAMPS, PHOTOS])
    for problem in missing:
        print(f"\nNOT AVAILABLE: {problem}\n")
    material = load_material(paths.get(STAMPS.name), paths.get(PHOTOS.name))
    visual, audio, source = _backbones(paths)
    print(f"clips: {material.source}; weights: {source}")
    print(f"{visual}\n{audio}")

    splits = {
        name: Split(compose(material, name, count, image_size=IMAGE_SIZE), visual, audio, cache_folder() / "taps")
        for name, count in CLIPS.items()
        if name != "cross" or material.held_out
    }
    runs: dict[str, list[Run]] = {}
    for name, make in build(splits["train"], visual, audio).items():
        epochs = options.epochs * (1 if name == "Mettle" else BASELINE_EPOCHS)
        runs[name] = [train(name, make, splits, epochs=epochs, seed=seed) for seed in range(options.seeds)]

    model = runs["Mettle"][0].model
    predicted = predict(model, splits["test"])
    drawn = pictures.draw(runs, splits["test"], predicted, folder)
    table = report.table(runs, splits)
    speed = faster(step_times(model, splits["train"]))
    notes = f"{_notes(material.source, source, options, start)}\n{speed}"
    (folder / "table.md").write_text(f"{table}\n\n{notes}\n")
    print(f"\n{table}\n\n{notes}\n")

    _save(model, folder / "mettle")
    print(_check_reloaded(folder / "mettle", visual, audio, splits["test"], predicted))
    print(f"written: {', '.join(str(path) for path in [*drawn, folder / 'table.md', folder / 'mettle'])}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.stamps", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each method")
    parser.add_argument(
        "--epochs",
        type=int,
        default=12,
        help="epochs of Mettle; the baselines, which settle more slowly, get four times as many",
    )
    parser.add_argument("--out", default="out", help="folder for the table, the pictures and the saved adapter")
    return parser.parse_args()


def _backbones(paths: dict[str, Path]) -> tuple[FrozenBackbone, FrozenBackbone, str]:
    """The two frozen backbones and where their weights are from; random ones where a package is out of reach."""
    vit, whisper = paths.get(VISION_WEIGHTS.name), paths.get(AUDIO_WEIGHTS.name)
    visual = weights.load_vit(vit, IMAGE_SIZE) if vit else weights.random_vit(IMAGE_SIZE)
    audio = weights.load_whisper_encoder(whisper, SECONDS) if whisper else weights.random_whisper_encoder(SECONDS)
    source = "; ".join(
        f"{name} {'pretrained' if path else 'RANDOM (package out of reach)'}"
        for name, path in (("DINOv2-architecture ViT-S/14", vit), ("Whisper-tiny encoder", whisper))
    )
    return FrozenBackbone(visual, list(VISUAL_TAPS)), FrozenBackbone(audio), source


def _notes(material: str, source: str, options: argparse.Namespace, start: float) -> str:
    spread = "mean ± standard deviation" if options.seeds > 1 else "one run"
    return (
        f"Percent of seconds, {spread} over {options.seeds} seed(s); {CLIPS['train']} training clips, epoch chosen on "
        f"validation. Clips {material}; {source}. Foreground, mismatched and background are on the test split.\n"
        f"Measured on {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, fastav {fastav.__version__}; "
        f"{(time.perf_counter() - start) / 60:.1f} minutes in all."
    )


def _save(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Mettle)
    model.adapter.save_pretrained(folder)
    save_file(model.head.state_dict(), folder / "head.safetensors")


def _check_reloaded(folder: Path, visual: FrozenBackbone, audio: FrozenBackbone, test: Split, predicted) -> str:
    """Build the model anew from its files and let it predict, from stored taps and from pixels and sound."""
    model = Mettle(visual, audio, test.clips.material.num_classes)
    model.adapter = MettleAdapter.from_pretrained(folder, visual=visual, audio=audio)
    model.head.load_state_dict(load_file(folder / "head.safetensors"))
    again = predict(model, test)
    if not torch.equal(again, predicted):
        raise RuntimeError(f"the reloaded adapter predicts {(again != predicted).sum()} seconds differently")
    count = min(10, len(test))
    clips = default_collate([test.clips[index] for index in range(count)])
    with torch.no_grad():
        out = model.adapter(*prepare(clips))
        direct = decode_localization(model.head(out.visual, out.audio))
    same = (direct == predicted[:count]).float().mean().item()
    return (
        f"reloaded from {folder}: the same prediction in every second of the test split; straight from pixels and "
        f"sound, without the 16-bit store, in {100 * same:.1f} % of the seconds of {count} clips"
    )


if __name__ == "__main__":
    main()
