"""Which blocks DG-SCT pairs, and how many parameters the released adapters have."""

import pytest

from fastav.baselines import create_baseline
from fastav.baselines.paired import pair_blocks

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")


@pytest.mark.parametrize(
    ("visual", "audio", "pairs"),
    [
        # Swin-V2-L and HTS-AT: every third block of the long stage
        (
            (0, 0, 1, 1, *[2] * 18, 3, 3),
            (0, 0, 1, 1, *[2] * 6, 3, 3),
            [(0, 0), (1, 1), (2, 2), (3, 3), (6, 4), (9, 5), (12, 6), (15, 7), (18, 8), (21, 9), (22, 10), (23, 11)],
        ),
        ([0] * 12, [0] * 4, [(2, 0), (5, 1), (8, 2), (11, 3)]),
        ([0] * 2, [0] * 6, [(0, 2), (1, 5)]),
        ((0, 0, 1, 1), [0] * 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    ],
)
def test_blocks_are_paired_evenly(visual, audio, pairs):
    assert pair_blocks(visual, audio) == pairs


@pytest.mark.parametrize(("name", "count"), [("lavish", 8_447_808), ("dg-sct", 188_538_864)])
def test_published_numbers_of_parameters(name, count):
    """On the backbones themselves: Swin-V2-L at 192 px and HTS-AT."""
    transformers = pytest.importorskip("transformers")
    swin = timm.create_model("swinv2_large_window12_192", num_classes=0)
    assert sum(p.numel() for p in swin.parameters()) == 228_772_549 - (1536 + 1) * 21_841  # but for its classes' head
    model = create_baseline(name, visual=swin, audio=transformers.ClapAudioModel(transformers.ClapAudioConfig()))
    assert sum(p.numel() for p in model.adapters.parameters()) == count
    read_outs = [p for part in (model.read_visual, model.read_audio) for p in part.parameters()]
    unread = sum(name.endswith("unread") for name, _ in model.named_parameters())  # one number each
    assert unread == {"lavish": 0, "dg-sct": 48}[name]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == count - unread + sum(p.numel() for p in read_outs)
