"""The calls that are compiled, counted, checked and timed: shapes, memory layouts and settings of each op.

A call is described without any tensor; :meth:`Case.tensors` makes them, empty or filled, on any device. The layouts
are those that adapters and backbones really hand over; a test compares them with what the Mettle adapter calls.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.layouts import Entries, New, short

#: (N, D) of each tap of one segment: Swin-V2-L at 192 px, then HTS-AT, all blocks.
AVE = (
    *[(2304, 192)] * 2, *[(576, 384)] * 2, *[(144, 768)] * 18, *[(36, 1536)] * 2,
    *[(4096, 96)] * 2, *[(1024, 192)] * 2, *[(256, 384)] * 6, *[(64, 768)] * 2,
)  # fmt: skip
#: ViT-B/16 at 224 px and the Audio Spectrogram Transformer, all blocks.
VIT_AST = ((197, 768),) * 12 + ((1214, 768),) * 12
#: The demo, examples/stamps: a ViT-S/14 at 126 px has 9 x 9 patches and a class token, and every second of its 12
#: blocks is tapped; all 4 blocks of the Whisper-tiny encoder are, whose 500 tokens of 10 seconds are cut into 10 spans.
STAMPS = (*[(82, 384)] * 6, *[(50, 384)] * 4)
#: The four stages of Swin-V2-L at 192 px.
SWIN_STAGES = ((2304, 192), (576, 384), (144, 768), (36, 1536))
#: Ragged, none of it a multiple of anything, and done in a moment on a CPU.
SMALL = ((33, 24), (65, 40), (3, 96), (17, 24))

SEGMENTS = 10  # of a clip


@dataclass(frozen=True)
class Case:
    """One call of one op, forward and backward.

    Attributes:
        name: what the reports call it.
        op: which op.
        lists: its tensor arguments in the op's order, None where there is none; ``"gate"`` is a list of one.
        settings: its other arguments, all of them.
        wanted: the lists whose gradients are asked for.
        taps, learned: the dtypes of frozen and of trained tensors.
        grads: how the gradients of its results lie in memory.
    """

    name: str
    op: str
    lists: dict[str, Entries | None]
    settings: dict[str, Any]
    wanted: tuple[str, ...]
    taps: torch.dtype = torch.float32
    learned: torch.dtype = torch.float32
    grads: str = "results"

    def tensors(self, new: New) -> dict[str, list[Tensor] | Tensor | None]:
        """The op's tensor arguments by name, in order, in memory that ``new`` makes."""
        dtypes = {"taps": self.taps, "learned": self.learned, "mask": torch.bool}
        made: dict[str, Any] = {n: e and e.tensors(dtypes[e.dtype], new) for n, e in self.lists.items()}
        if made.get("gate") is not None:
            (made["gate"],) = made["gate"]
        return made

    def upstream(self, outputs: Sequence[Tensor], new: New) -> list[Tensor]:
        """Gradients of a loss for ``outputs``, laid out as :attr:`grads` says."""
        shapes = tuple(tuple(o.shape) for o in outputs)
        return Entries(shapes, self.grads).tensors(outputs[0].dtype, new)

    @property
    def first_bytes(self) -> int:
        """Bytes of the op's first list: what must be read at least."""
        entries = next(iter(self.lists.values()))
        assert entries is not None
        size = (self.taps if entries.dtype == "taps" else self.learned).itemsize
        return sum(math.prod(shape) for shape in entries.shapes) * size


# ---- the calls ------------------------------------------------------------------------------------------------------

Sizes = Sequence[tuple[int, int]]

NORM: dict[str, Any] = {"norm": "layer", "eps": 1e-6}


def distill(
    shapes: Sizes,
    batch: int,
    *,
    rows: int = 16,
    per_sample: bool = False,
    affine: bool = True,
    mask: bool = False,
    layout: str = "flat",
    taps_layout: str = "own",
    wanted: tuple[str, ...] = ("queries", "weight", "bias"),
) -> Case:
    """Pool taps of these (N, D), with the adapter's layouts unless told otherwise."""
    leading = (batch, rows) if per_sample else (rows,)
    widths = Entries(tuple((d,) for _, d in shapes), layout) if affine else None
    lists = {
        "taps": Entries(tuple((batch, n, d) for n, d in shapes), taps_layout, "taps"),
        "queries": Entries(tuple((*leading, d) for _, d in shapes), "results" if per_sample else layout),
        "weight": widths,
        "bias": widths,
        "key_mask": Entries(tuple((batch, n) for n, _ in shapes), dtype="mask") if mask else None,
    }
    wanted = tuple(name for name in wanted if lists[name])
    grads = "columns" if layout == "flat" else "own"
    return Case("distill", "distill", lists, {"scale": None, **NORM}, wanted, grads=grads)


def attend(shapes: Sizes, batch: int, *, rows: int = 16, rank: int | None = None) -> Case:
    """Attention with key and value projections of every token: to the tap's own width, or to ``rank`` channels.

    Keys are (E, D) and values (D, E) matrices. There is no affine part: it folds into both.
    """
    inner = [rank or d for _, d in shapes]
    pairs = list(zip(inner, [d for _, d in shapes], strict=True))
    scale = pairs[0][1] ** -0.5
    lists: dict[str, Entries | None] = {
        "taps": Entries(tuple((batch, n, d) for n, d in shapes), dtype="taps"),
        "queries": Entries(tuple((rows, e) for e in inner)),
        "keys": Entries(tuple(pairs), scale=scale),
        "values": Entries(tuple((d, e) for e, d in pairs), scale=scale),
    }
    return Case("attend", "attend", lists, {"scale": None, **NORM}, ("queries", "keys", "values"), grads="own")


def project(
    outs: Sequence[int],
    widths: Sequence[int],
    leading: tuple[int, ...],
    *,
    tokens: str = "flat",
    biases: bool = False,
    residuals: str | None = None,
    cut: int = 0,
    stack: bool = False,
    activation: str | None = None,
    norm: str = "none",
) -> Case:
    """Map (*leading, D) tokens by (D, E) matrices."""
    sizes = list(zip(widths, outs, strict=True))
    lists = {
        "tokens": Entries(tuple((*leading, d) for d in widths), tokens, cut=cut),
        "weights": Entries(tuple(sizes), scale=widths[0] ** -0.5),
        "biases": Entries(tuple((e,) for e in outs)) if biases else None,
        "residuals": Entries(tuple((*leading, e) for e in outs), residuals, cut=cut) if residuals else None,
    }
    wanted = tuple(name for name in lists if lists[name])
    settings = {"norm": norm, "eps": 1e-6, "activation": activation, "stack": stack}
    return Case("project", "project", lists, settings, wanted)


def fuse(widths: Sequence[int], batch: int, *, tokens: int = 8, width: int = 128, gate: str | None = None,
         layout: str = "results", biases: bool = True, norm: str = "layer") -> Case:  # fmt: skip
    """Bring (B, K, D_l) tokens to one width and mix them."""
    lists = {
        "tokens": Entries(tuple((batch, tokens, d) for d in widths), layout),
        "weights": Entries(tuple((d, width) for d in widths), scale=widths[0] ** -0.5),
        "biases": Entries(((width,),) * len(widths)) if biases else None,
        "gate": Entries((({"layer": len(widths), "token": width}[gate],),)) if gate else None,
    }
    wanted = tuple(name for name in lists if lists[name])
    return Case("fuse", "fuse", lists, {"norm": norm, "eps": 1e-6, "gate_kind": gate}, wanted)


def inject(shapes: Sizes, batch: int, *, tokens: int = 16, wanted: tuple[str, ...] = ("keys", "values")) -> Case:
    """Let features of these (N, D) attend to meta-tokens."""
    meta = Entries(tuple((batch, tokens, d) for _, d in shapes), "results")
    features = Entries(tuple((batch, n, d) for n, d in shapes), dtype="taps")
    lists: dict[str, Entries | None] = {"features": features, "keys": meta, "values": meta}
    return Case("inject", "inject", lists, {"scale": None, **NORM}, wanted)


def orthogonality(widths: Sequence[int], batch: int, *, tokens: int = 8, layout: str = "results") -> Case:
    """The penalty on (B, K, D) tokens."""
    lists: dict[str, Entries | None] = {"tokens": Entries(tuple((batch, tokens, d) for d in widths), layout)}
    return Case("orthogonality", "orthogonality", lists, {}, ("tokens",))


# ---- sets of calls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A Mettle side branch's sizes: K tokens, H heads, inner rank, common width W, taps of each modality."""

    visual: Sizes
    audio: Sizes
    tokens: int = 8
    heads: int = 1
    rank: int = 16
    width: int = 128
    segments: int = SEGMENTS
    shapes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", (*self.visual, *self.audio))


SIDES = {
    "AVE": Side(AVE[:24], AVE[24:]),
    "ViT-AST": Side(VIT_AST[:12], VIT_AST[12:], tokens=4, heads=2),
}
#: One training step of the demo's Mettle: 16 clips of 10 segments, MettleConfig's defaults.
STAMPS_SIDE = Side(STAMPS[:6], STAMPS[6:], tokens=4, heads=2, segments=16 * SEGMENTS)
SMALL_SIDE = Side(SMALL[:2], SMALL[2:], tokens=3, heads=2, rank=4, width=20, segments=2)


def mettle(side: Side) -> Iterator[Case]:
    """Every op call of one forward of the Mettle side branch, in order."""
    widths, count = [d for _, d in side.shapes], len(side.shapes)
    k, hk, b = side.tokens, side.heads * side.tokens, side.segments
    ranks = [side.rank] * count
    query = project(ranks, widths, (k,), tokens="own", stack=True)
    key = project(widths, ranks, (hk,))
    value = project(ranks, widths, (b, hk), tokens="last rows", cut=k, stack=True, activation="gelu")
    output = project(widths, ranks, (b, k), residuals="first rows", cut=hk)
    yield replace(query, name="project queries")
    yield replace(key, name="project keys")
    yield replace(distill(side.shapes, b, rows=k + hk), name="distill")
    yield replace(value, name="project values", grads="own")
    yield replace(output, name="project outputs")
    yield replace(fuse([d for _, d in side.visual], b, tokens=k, width=side.width), name="fuse visual")
    yield replace(fuse([d for _, d in side.audio], b, tokens=k, width=side.width), name="fuse audio")


def forms(side: Side, stages: Sizes, meta: int = 16) -> Iterator[Case]:
    """The forms of the five ops that Mettle's own step does not use."""
    shapes, b, k = side.shapes, side.segments, side.tokens
    widths = [d for _, d in shapes]
    everything = ("taps", "queries", "weight", "bias")
    yield replace(distill(shapes, b, per_sample=True), name="distill per sample")
    yield replace(distill(shapes, b, affine=False), name="distill plain")
    yield replace(distill(shapes, b, mask=True), name="distill masked")
    yield replace(distill(shapes, b, layout="own", taps_layout="prefix"), name="distill own storages")
    yield replace(distill(shapes, b, wanted=everything), name="distill into taps")
    yield replace(
        distill(shapes, b, per_sample=True, mask=True, wanted=everything), name="distill into taps, per sample"
    )
    norm = project([side.width] * len(widths), widths, (b, k), tokens="results", biases=True, norm="layer",
                   activation="relu", stack=True)  # fmt: skip
    yield replace(norm, name="project norm, bias, relu")
    yield replace(fuse(widths, b, gate="layer", tokens=k, width=side.width), name="fuse by layer")
    yield replace(fuse(widths, b, gate="token", tokens=k, width=side.width), name="fuse by token")
    equal = [side.width] * len(widths)
    yield replace(fuse(equal, b, tokens=k, width=side.width, layout="own", norm="none"), name="fuse own storages")
    yield replace(inject(stages, b, tokens=meta), name="inject")
    yield replace(inject(stages, b, tokens=meta, wanted=("features", "keys", "values")), name="inject into features")
    yield replace(orthogonality(widths, b, tokens=k), name="orthogonality")
    yield replace(orthogonality(equal, b, tokens=k, layout="flat"), name="orthogonality stacked")


#: (taps, learned) dtypes of the common training set-ups.
DTYPES = (
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
)
HALVES = ((torch.float16, torch.float16), (torch.float16, torch.float32))


def compiled_cases() -> Iterator[Case]:
    """What the ahead-of-time gate compiles."""

    def typed(where: str, cases: Iterator[Case], dtypes: Sequence[tuple[torch.dtype, torch.dtype]]) -> Iterator[Case]:
        for case in cases:
            for taps, learned in dtypes:
                yield replace(
                    case, name=f"{where} {case.name} {short(taps)}/{short(learned)}", taps=taps, learned=learned
                )

    yield from typed("AVE", mettle(SIDES["AVE"]), DTYPES)
    yield from typed("ViT-AST", mettle(SIDES["ViT-AST"]), (*DTYPES[::2], HALVES[0]))
    yield from typed("AVE", forms(SIDES["AVE"], SWIN_STAGES), DTYPES[::2])
