"""The peers' adapters against their descriptions, written out, and against the counts of their released weights."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastav.baselines import Bottleneck, DGSCTAdapter, LatentAttention, LavishAdapter


def drawn(module):
    """Every parameter at random, the gates too, and batch norms with statistics of their own; in eval mode."""
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def grouped(x, weight, groups):
    """(..., C) through a matrix for each group of channels."""
    parts = zip(x.chunk(groups, -1), weight[..., 0].chunk(groups), strict=True)
    return torch.cat([part @ matrix.T for part, matrix in parts], -1)


def batch_norm(x, norm):
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def bottleneck(x, of, *, activate=True):
    inner = batch_norm(grouped(of.norm_before(x), of.down.weight, 2), of.norm_down)
    outer = grouped(inner.clamp(min=0) if activate else inner, of.up.weight, 2)
    return of.gate * of.norm_after(batch_norm(outer, of.norm_up))


def latent_attention(x, y, of):
    """Sample by sample, row by row."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        latent = torch.stack([t + torch.softmax(y[b] @ t, 0) @ y[b] for t in of.tokens])
        out[b] = torch.stack([row + of.gate * (torch.softmax(latent @ row, 0) @ latent) for row in x[b]])
    return out


@pytest.mark.parametrize("activate", [True, False])
def test_bottleneck_by_hand(activate):
    module = drawn(Bottleneck(16, ratio=4, groups=2, activate=activate))
    with torch.no_grad():
        module.norm_down.bias.neg_()  # so that the ReLU has something to cut
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(module(x), bottleneck(x, module, activate=activate))
    assert not torch.allclose(module(x), bottleneck(x, module, activate=not activate))


def test_bottleneck_without_batch_norm():
    module = drawn(Bottleneck(16, ratio=4, groups=2, batch_norm=False))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    inner = grouped(module.norm_before(x), module.down.weight, 2).relu()
    torch.testing.assert_close(module(x), module.gate * module.norm_after(grouped(inner, module.up.weight, 2)))


def test_batch_norm_is_over_samples_and_tokens():
    module = Bottleneck(8, ratio=2).double().train()
    seen = []
    module.norm_down.register_forward_hook(lambda _, inputs, output: seen.append(output))
    module(torch.randn(3, 5, 8, dtype=torch.float64) * 7)
    torch.testing.assert_close(seen[0].mean((0, 2)), torch.zeros(4, dtype=torch.float64))


def test_latent_attention_by_hand():
    module = drawn(LatentAttention(8, 3))
    x, y = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x, y), latent_attention(x, y, module))


def test_lavish_by_hand():
    module = drawn(LavishAdapter(16, num_tokens=3, ratio=4))
    x, y = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    expected = bottleneck(latent_attention(x, y, module.attention), module.bottleneck)
    torch.testing.assert_close(module(x, y), expected)


def test_dgsct_by_hand():
    module = drawn(DGSCTAdapter(16, 5, 12, 7, num_tokens=3, ratio=4, alpha=0.3, beta=0.05))
    x, y = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    prompt = torch.einsum("nm,bmd->bnd", module.to_tokens.weight, y) + module.to_tokens.bias[:, None]
    prompt = prompt @ module.to_width.weight.T + module.to_width.bias
    x_attended, mean = latent_attention(x, prompt, module.attention), prompt.mean(1)
    together = F.relu(module.channel_prompt(mean))[:, None] * F.relu(module.channel_own(x_attended))
    hidden = F.relu(module.channel[0](together.mean(1)))
    channels = torch.sigmoid(module.channel[2](hidden))[:, None]  # (B, 1, C)
    own = F.relu(module.place_own(x_attended * (1 + channels)))
    logits = module.place(own * F.relu(module.place_prompt(mean))[:, None])[..., 0]  # (B, N)
    weighed = x_attended * (0.3 * channels + 0.05 * torch.sigmoid(logits)[..., None] + 0.7)
    added, places = module(x, y)
    torch.testing.assert_close(added, bottleneck(weighed, module.bottleneck))
    torch.testing.assert_close(places[:, 0], torch.softmax(torch.tanh(logits), -1))
    assert places.shape == (2, 1, 5)


@pytest.mark.parametrize(
    "make",
    [partial(LavishAdapter, 16), partial(LavishAdapter, 16, zeros=True), partial(DGSCTAdapter, 16, 5, 16, 7)],
    ids=["lavish", "zeros", "dgsct"],
)
def test_adapters_add_nothing_at_the_start_and_learn(make):
    torch.manual_seed(0)
    module = make()
    out = module(torch.randn(2, 5, 16), torch.randn(2, 7, 16))
    added = out[0] if isinstance(out, tuple) else out
    assert (added == 0).all()
    (added * torch.randn_like(added)).sum().backward()  # the norm's rows sum to zero
    assert module.bottleneck.gate.grad != 0


def test_tokens_that_start_at_zero_stay_one_token():
    """Why K = 64 of them act as one: they get the same gradient."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    for zeros, spread in ((True, False), (False, True)):
        module = LatentAttention(8, 4, zeros=zeros)
        nn.init.ones_(module.gate)
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        for _ in range(20):
            optimizer.zero_grad()
            module(x, y).square().sum().backward()
            optimizer.step()
        assert (module.tokens != module.tokens[0]).any() == spread


@pytest.mark.parametrize(("ratio", "groups"), [(5, 1), (8, 3)])
def test_widths_that_do_not_divide_are_named(ratio, groups):
    with pytest.raises(ValueError, match=rf"ratio={ratio} and groups={groups} must divide the width 16"):
        Bottleneck(16, ratio=ratio, groups=groups)


# Counts of the released weights

SWIN = ((192, 2304, 2), (384, 576, 2), (768, 144, 18), (1536, 36, 2))  # width, tokens, blocks of Swin-V2-L at 192 px
HTSAT = ((96, 4096, 2), (192, 1024, 2), (384, 256, 6), (768, 64, 2))


def test_shapes_are_the_backbones():
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        swin = timm.create_model("swinv2_large_window12_192")
        htsat = transformers.ClapAudioModel(
            transformers.ClapAudioConfig(
                patch_embeds_hidden_size=96, depths=[2, 2, 6, 2], num_attention_heads=[4, 8, 16, 32]
            )
        )
    for backbone, shapes in ((swin, SWIN), (htsat.audio_encoder, HTSAT)):
        found = []
        for stage in backbone.layers:
            height, width = stage.blocks[0].input_resolution
            norm = next(module for module in stage.blocks[0].modules() if isinstance(module, nn.LayerNorm))
            found.append((*norm.normalized_shape, height * width, len(stage.blocks)))
        assert tuple(found) == shapes


def test_lavish_has_the_published_parameters():
    """96 adapters, four in each block."""
    with torch.device("meta"):
        counts = [4 * blocks * count(LavishAdapter(width)) for width, _, blocks in SWIN]
    assert sum(counts) == 8_447_808


def test_dgsct_has_the_published_parameters():
    """48 adapters, four beside each of HTS-AT's blocks and the Swin block that it is paired with."""
    with torch.device("meta"):
        total = sum(
            2 * blocks * (count(DGSCTAdapter(c, n, d, m)) + count(DGSCTAdapter(d, m, c, n)))
            for (c, n, _), (d, m, blocks) in zip(SWIN, HTSAT, strict=True)
        )
    assert total == 188_538_864
