"""Tiny backbones and data sets on disk, in which what is seen and heard says what the label is."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch

# No test may ask a hub for anything; set before any test imports transformers or timm.
os.environ["HF_HUB_OFFLINE"] = "1"

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("lightning")

COLOURS = ((230, 30, 30), (30, 230, 30), (30, 30, 230))
TONES = (300, 900, 2500)  # Hz
AVE_NAMES = ("Church bell", "Bark", "Cat")
RATE = 16000

FAST = [
    "--adapter.num_tokens=2",
    "--adapter.width=16",
    "--adapter.rank=4",
    "--adapter.standardize_batches=2",
    "--data.num_workers=0",
    "--data.batch_size=4",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--optimizer.lr=0.01",
]


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory):
    """A Whisper of two tiny layers, as save_pretrained leaves it."""
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "max_source_positions": 600, "vocab_size": 60, "num_mel_bins": 80}
    layers = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 16))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    model = transformers.WhisperModel(transformers.WhisperConfig(**sizes, **layers, **tokens))
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone_flags(whisper_folder, tmp_path_factory):
    """Flags for two tiny backbones whose weights are files, so that a later command loads the same ones."""
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "depth": 4, "embed_dim": 12, "num_heads": 2}
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("vit") / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).state_dict(), weights)
    words = ", ".join(f'"{name}": {value}' for name, value in options.items())
    return [
        "--visual.name=vit_tiny_patch16_224",
        f"--visual.checkpoint={weights}",
        f"--visual.options={{{words}}}",
        f"--audio.name={whisper_folder}",
    ]


def write_clip(root, name, seen, heard, seconds=10):
    """Ten frames of a colour each and ten seconds of a tone each; -1 is grey, or silence."""
    frames = root / "frames" / name
    frames.mkdir(parents=True)
    generator = np.random.default_rng(len(name) + sum(map(ord, name)))
    for second, value in enumerate(seen):
        colour = (128, 128, 128) if value < 0 else COLOURS[value]
        noise = generator.integers(-20, 20, (40, 40, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(frames / f"{second:04d}.jpg")
    time = np.arange(RATE) / RATE
    tones = [np.zeros(RATE) if value < 0 else np.sin(2 * np.pi * TONES[value] * time) / 3 for value in heard]
    (root / "audio").mkdir(exist_ok=True)
    soundfile.write(root / "audio" / f"{name}.wav", np.concatenate(tones).astype(np.float32), RATE)


@pytest.fixture(scope="session")
def ave_root(tmp_path_factory):
    """An AVE of three classes: 12 clips to train on, 5 to validate, 7 to test; events last some of the seconds."""
    root = tmp_path_factory.mktemp("ave")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5), ("test", 7)):
        lines = []
        for number in range(count):
            category = number % 3
            start = int(generator.integers(0, 5))
            end = start + int(generator.integers(3, 6))
            name = f"{split}{number:07d}"
            events = [category if start <= second < end else -1 for second in range(10)]
            write_clip(root, name, events, events)
            lines.append(f"{AVE_NAMES[category]}&{name}&good&{start}&{end}")
        (root / f"{split}Set.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def spoilt_ave(ave_root, tmp_path):
    """Copies the AVE and breaks the sounds of these clips, numbers by split."""

    def copy(**broken):
        root = tmp_path / "-".join(["ave", *broken])
        shutil.copytree(ave_root, root)
        for split, numbers in broken.items():
            for number in numbers:
                (root / "audio" / f"{split}{number:07d}.wav").write_bytes(b"RIFF")
        return root

    return copy


@pytest.fixture(scope="session")
def llp_root(tmp_path_factory):
    """An LLP in which "Dog" is red and low, "Cat" green and high; one of each clip's is heard, one seen."""
    root = tmp_path_factory.mktemp("llp")
    names = ("Dog", "Cat", "Speech")
    audio, visual = ["filename\tonset\toffset\tevent_labels"], ["filename\tonset\toffset\tevent_labels"]
    for split, count, file in (("train", 8, "train"), ("val", 4, "val_pd"), ("test", 4, "test_pd")):
        lines = ["filename\tevent_labels"]
        for number in range(count):
            video, seen, heard = f"{split:_<6}{number:05d}", number % 2, (number // 2) % 2
            name = f"{video}_30_40"
            write_clip(root, video, [seen] * 5 + [-1] * 5, [-1] * 2 + [heard] * 8)
            lines.append(f"{name}\t{','.join(dict.fromkeys((names[seen], names[heard])))}")
            if split != "train":
                visual.append(f"{name}\t0\t5\t{names[seen]}")
                audio.append(f"{name}\t2\t10\t{names[heard]}")
        (root / f"AVVP_{file}.csv").write_text("\n".join(lines) + "\n")
    (root / "AVVP_eval_audio.csv").write_text("\n".join(audio) + "\n")
    (root / "AVVP_eval_visual.csv").write_text("\n".join(visual) + "\n")
    return root


@pytest.fixture(scope="session")
def avs_root(tmp_path_factory):
    """Both halves of AVSBench: what sounds is the left half of the frame in red, or the right one in green."""
    root = tmp_path_factory.mktemp("avs")
    for folder, short in (("Single-source", "s4"), ("Multi-sources", "ms3")):
        single, data = short == "s4", root / folder / f"{short}_data"
        lines = ["name,start_time,category,split" if single else "name,split"]
        for split, count in (("train", 4), ("val", 2), ("test", 3)):
            for number in range(count):
                name, side = f"{split}{number}", number % 2
                category = "dog_barking" if single else ""
                lines.append(f"{name},0,{category},{split}" if single else f"{name},{split}")
                kept = [split, category] if single else []
                frames = data.joinpath("visual_frames", *kept, name)
                masks = data.joinpath("gt_masks", split, category, name)
                for place in (frames, masks, data / "audio_wav" / split / category):
                    place.mkdir(parents=True, exist_ok=True)
                picture, mask = np.full((40, 40, 3), 128, np.uint8), np.zeros((24, 24), np.uint8)
                picture[:, 20 * side : 20 * side + 20] = COLOURS[side]
                mask[:, 12 * side : 12 * side + 12] = 255
                stem = name if single else f"{name}.mp4"
                for second in range(1, 6):
                    Image.fromarray(picture).save(frames / f"{stem}_{second}.png")
                    if not (single and split == "train" and second > 1):
                        Image.fromarray(mask).save(masks / f"{name}_{second}.png")
                tone = np.sin(2 * np.pi * TONES[side] * np.arange(5 * RATE) / RATE) / 3
                soundfile.write(data / "audio_wav" / split / category / f"{name}.wav", tone.astype(np.float32), RATE)
        (root / folder / f"{short}_meta_data.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def qa_root(tmp_path_factory):
    """A MUSIC-AVQA of two templates: whether a colour is seen, and which tone is heard."""
    root = tmp_path_factory.mktemp("qa")
    (root / "json").mkdir()
    number = 0
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        entries = []
        for clip in range(count):
            video, seen, heard = f"{split}{clip:04d}", clip % 2, (clip // 2) % 2
            write_clip(root, video, [seen] * 10, [heard] * 10)
            asked = (
                (["Visual", "Counting"], "Is there a <Object> in the video?", ["red"], ("yes", "no")[seen]),
                (["Audio", "Comparative"], "Is the <Object> louder ？", ["flute"], ("one", "two")[heard]),
            )
            for kind, text, values, answer in asked:
                number += 1
                entries.append(
                    {
                        "video_id": video,
                        "question_id": number,
                        "type": json.dumps(kind),
                        "question_content": text,
                        "templ_values": json.dumps(values),
                        "anser": answer,
                    }
                )
        (root / "json" / f"avqa-{split}.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="session")
def flags(backbone_flags):
    return [*backbone_flags, *FAST]


@pytest.fixture(scope="session")
def run(tmp_path_factory, ave_root, flags):
    """A finished run; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "ave"
    arguments = ["--task=localization", f"--data.root={ave_root}", f"--output={folder}", "--optimizer.epochs=5"]
    from fastav.training.cli import main

    assert main(["train", *arguments, *flags]) == 0
    return folder


def epochs(run, logs="logs"):
    """What was logged, by name: a list of numbers, one an epoch."""
    columns = {}
    with (run / logs / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    columns.setdefault(name, []).append(float(value))
    return columns


@pytest.fixture(scope="session")
def qa_run(tmp_path_factory, qa_root, flags):
    """A finished run on questions; not to be written to."""
    from fastav.training.cli import main

    folder = tmp_path_factory.mktemp("runs") / "qa"
    arguments = ["--task=question_answering", f"--data.root={qa_root}", f"--output={folder}"]
    assert main(["train", *arguments, *flags, "--optimizer.epochs=1", "--head.swap_unasked=0.5"]) == 0
    return folder
