"""Peers' methods made for tests: all alike, and with nothing left at zero."""

import torch

from fastav.baselines import create_baseline

CLIPS, SEGMENTS, WIDTH = 2, 3, 6
RATIOS = {"naive": 2, "lavish": 2, "dg-sct": 2, "ladder": 4}


def built(name, pair, **options):
    torch.manual_seed(2)
    options = {"ratio": RATIOS[name], **options} if name in RATIOS else options
    return create_baseline(name, visual=pair[0], audio=pair[1], width=WIDTH, **options).double().eval()


def stirred(model):
    """All that trains drawn at random, also what starts at zero; norms over samples with statistics of their own."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        for part in (model.read_visual, model.read_audio):
            width = part.standardization.mean.shape[-1]
            part.standardization.measure([2 * torch.randn(50, 1, width, dtype=torch.float64) + 1])
    return model
