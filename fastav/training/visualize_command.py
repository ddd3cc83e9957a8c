"""``fastav visualize``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastav.data.clips import Clip, ClipDataset
from fastav.data.errors import MediaError
from fastav.training.arguments import SECTIONS, run_parser
from fastav.training.attention import frame_maps, sound_maps, spectrograms, token_attention
from fastav.training.cli import plainly
from fastav.training.pictures import draw_attention
from fastav.training.run import Loaded, load_run

_DESCRIPTION = (
    "Draw where each query token of a run's adapter looks in one clip, over the frames and over the sound. Colours run "
    "from nothing to the largest share in the token's row; how many times an even share that is stands beside it."
)


def main(arguments: Sequence[str]) -> int:
    """Draw one clip."""
    with plainly():
        parser = run_parser(arguments, "visualize", _DESCRIPTION, "data")
        parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="where the clip is")
        parser.add_argument("--id", type=str, default=None, help="the clip; by default the split's first")
        parser.add_argument("--index", type=int, default=None, help="the clip by its place in the split's list, from 0")
        parser.add_argument("--video", type=str, default=None, help="a media file, instead of a data set's clip")
        layer = "which of the distilled {} blocks; negative from the end"
        parser.add_argument("--visual_layer", type=int, default=-1, help=layer.format("visual"))
        parser.add_argument("--audio_layer", type=int, default=-1, help=layer.format("audio"))
        parser.add_argument(
            "--output", type=str, default=None, help="the PNG; by default RUN/attention-ID.png, or -ID-INDEX.png"
        )
        values = parser.parse_args(list(arguments))
        if sum(value is not None for value in (values.id, values.index, values.video)) > 1:
            raise ValueError("--id and --index name a clip of a split and --video a media file: give one of them")
        run = load_run(values.run, SECTIONS["data"](**values.data.as_dict()))
        clip = _clip(run, values)
        name = str(clip["id"]).replace("/", "-")  # AVSBench's are category/name
        name += "" if values.index is None else f"-{values.index}"
        path = Path(values.output or run.folder.path / f"attention-{name}.png")
        path = path if path.suffix else path.with_suffix(".png")
        draw_clip(run, clip, path, visual_layer=values.visual_layer, audio_layer=values.audio_layer)
    print(path)
    return 0


def draw_clip(run: Loaded, clip: Clip, path: Path, *, visual_layer: int = -1, audio_layer: int = -1) -> None:
    """Draw a clip that was read raw.

    Raises:
        ValueError: there are no such layers, or their tokens have no known place.
    """
    adapter, segments = run.adapter, len(clip["frames"])
    prepared = run.open.preprocess(clip)
    inputs = {name: prepared[name][None] for name in ("visual", "audio")}
    seen = token_attention(adapter, "visual", inputs["visual"], num_segments=segments, layer=visual_layer)
    heard = token_attention(adapter, "audio", inputs["audio"], num_segments=segments, layer=audio_layer)
    draw_attention(
        path,
        frames=clip["frames"],
        frame_attention=frame_maps(seen)[0],
        frame_prefix=seen.prefix[0],
        spectrograms=spectrograms(adapter, inputs["audio"], num_segments=segments)[0],
        sound_attention=sound_maps(heard, adapter.audio)[0],
        sound_prefix=heard.prefix[0],
        title=f"{clip['id']}: attention in {seen.block} (visual) and {heard.block} (audio)",
        columns=_columns(run, clip),
    )


def _clip(run: Loaded, values: Any) -> Clip:
    if values.video is not None:
        return run.open.video(values.video, raw=True)
    split = run.open(values.split, raw=True)
    position = _position(split, values)
    split.on_error = "raise"  # nothing is left of one clip that is left out
    try:
        clip = split[position]
    except MediaError as error:
        name = split.id_of(split.rows[position])
        raise MediaError(f"{name}: {error}; to draw another clip, name it by --id") from error
    assert clip is not None  # only "skip" gives None
    return clip


def _position(split: ClipDataset[Any], values: Any) -> int:
    """Where in the split the wanted clip is; of an id that several rows share the first, with a note."""
    if values.index is not None:
        if values.index not in split.indices:
            raise ValueError(
                f"{values.split} has no clip of index {values.index}: one of 0 ... {split.indices[-1]} is wanted that "
                "is not left out"
            )
        return split.indices.index(values.index)
    if values.id is None:
        return 0
    ids = [split.id_of(row) for row in split.rows]
    found = [position for position, name in enumerate(ids) if name == values.id]
    if not found:
        raise ValueError(f"{values.split} has no clip {values.id!r}; it has {', '.join(ids[:3])} and so on")
    if len(found) > 1:
        first, *others = (split.indices[position] for position in found)
        print(
            f"note: {len(found)} rows of {values.split} are called {values.id}; drawn is that of index {first}, and "
            f"--index draws another: {', '.join(map(str, others))}",
            file=sys.stderr,
        )
    return found[0]


def _columns(run: Loaded, clip: Clip) -> list[str]:
    """Above each frame its number, and where the clip says so its label."""
    numbers = [str(segment + 1) for segment in range(len(clip["frames"]))]
    labels: torch.Tensor | None = clip.get("labels")
    if labels is None:
        return numbers
    names = (*run.record["class_names"], "background")
    return [f"{number}: {names[int(label)].partition(',')[0]}" for number, label in zip(numbers, labels, strict=True)]
