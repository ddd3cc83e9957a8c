"""The peers' methods as a whole, against loops over the backbones' blocks, written out."""

import pytest
import torch
import torch.nn.functional as F

from fastav import FrozenBackbone
from fastav.baselines import create_baseline
from tests.baselines.making import CLIPS, SEGMENTS, WIDTH, built, stirred

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")


def stem(vit, x):
    return vit._pos_embed(vit.patch_embed(x.flatten(0, 1)))


def read(read_out, x, places=None):
    x = F.layer_norm(x, x.shape[-1:])
    x = x.mean(1) if places is None else torch.einsum("bn,bnd->bd", places[:, 0], x)
    of = read_out.standardization
    x = (x - of.mean) / (of.variance + 1e-5).sqrt() * of.gain + of.offset
    return (x @ read_out.to_width.weight.T + read_out.to_width.bias).view(CLIPS, SEGMENTS, 1, WIDTH)


def check(model, clips, visual, audio, places=(None, None)):
    """What a method gives is what its last tokens give."""
    out = model(*clips)
    torch.testing.assert_close(out.visual, read(model.read_visual, visual, places[0]))
    torch.testing.assert_close(out.audio, read(model.read_audio, audio, places[1]))


def test_frozen_features_are_the_last_tokens(pair, clips):
    v, a = stem(pair[0], clips[0]), stem(pair[1], clips[1])
    model = stirred(built("frozen", pair))
    check(model, clips, pair[0].blocks(v), pair[1].blocks(a))


def test_naive_beside_by_hand(pair, clips):
    model, last = stirred(built("naive", pair, placement="beside")), []
    for vit, x, beside in zip(pair, clips, (model.adapters["visual"], model.adapters["audio"]), strict=True):
        x = stem(vit, x)
        for block, (first, second) in zip(vit.blocks, beside, strict=True):
            x = x + block.attn(block.norm1(x)) + first(x)
            x = x + block.mlp(block.norm2(x)) + second(x)
        last.append(x)
    check(model, clips, *last)


def test_naive_behind_by_hand(pair, clips):
    """Each is given what comes out of the attention and of the MLP, before that goes onto the tokens."""
    model, last = stirred(built("naive", pair)), []
    for vit, x, behind in zip(pair, clips, (model.adapters["visual"], model.adapters["audio"]), strict=True):
        x = stem(vit, x)
        for block, (first, second) in zip(vit.blocks, behind, strict=True):
            s = block.attn(block.norm1(x))
            x = x + (s + first(s))
            s = block.mlp(block.norm2(x))
            x = x + (s + second(s))
        last.append(x)
    check(model, clips, *last)
    shapes = [[p.shape for p in built("naive", pair, placement=each).parameters()] for each in ("beside", "behind")]
    assert shapes[0] == shapes[1]


def test_lavish_by_hand(pair, clips):
    """Both modalities through the visual backbone; each adapter is given both as they are before it."""
    model = stirred(built("lavish", pair))
    with torch.no_grad():
        model.pictures.norm.running_mean.fill_(0.3)
    norm = model.pictures.norm
    pictures = (clips[1] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    v, a = stem(pair[0], clips[0]), stem(pair[0], pictures.expand(-1, -1, 3, -1, -1))
    for block, (first, second) in zip(pair[0].blocks, model.adapters, strict=True):
        rv, ra = first["visual"](v, a), first["audio"](a, v)
        v, a = v + block.attn(block.norm1(v)) + rv, a + block.attn(block.norm1(a)) + ra
        rv, ra = second["visual"](v, a), second["audio"](a, v)
        v, a = v + block.mlp(block.norm2(v)) + rv, a + block.mlp(block.norm2(a)) + ra
    check(model, clips, v, a)


def test_dgsct_by_hand(pair, clips):
    """Three visual blocks, two audio ones: the first is by itself, or the pairs would not end together."""
    model = stirred(built("dg-sct", pair))
    assert model.pairs == [(0, 0), (2, 1)]
    v, a = stem(pair[0], clips[0]), stem(pair[1], clips[1])
    beside = iter(model.adapters)
    audio = iter(pair[1].blocks)
    for number, block in enumerate(pair[0].blocks):
        if number == 1:
            v = block(v)
            continue
        first, second = next(beside), next(beside)
        (rv, _), (ra, _) = first["visual"](v, a), first["audio"](a, v)
        v, a = v + block.attn(block.norm1(v)) + rv, next(audio)(a) + ra
        (rv, seen), (ra, heard) = second["visual"](v, a), second["audio"](a, v)
        v, a = v + block.mlp(block.norm2(v)) + rv, a + ra
    check(model, clips, v, a, (seen, heard))


@pytest.mark.parametrize(
    ("options", "maps"),
    [({}, ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]), ({"targets": "attention"}, ["attn.qkv", "attn.proj"])],
    ids=["all", "attention"],
)
def test_lora_by_hand(pair, clips, options, maps):
    """The same as the frozen backbones with W + (alpha / r) B A in all four maps of each block, or in two."""
    model = stirred(built("lora", pair, rank=2, alpha=6.0, **options))
    changed = []
    for vit, live in zip(pair, (model.visual, model.audio), strict=True):
        for name, module in live.module.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                with torch.no_grad():
                    vit.get_submodule(name).weight.add_(3 * b @ a)
                changed.append(name)
    assert changed == [f"blocks.{i}.{name}" for blocks in (3, 2) for i in range(blocks) for name in maps]
    v, a = stem(pair[0], clips[0]), stem(pair[1], clips[1])
    check(model, clips, pair[0].blocks(v), pair[1].blocks(a))


def test_ladder_by_hand(pair, clips):
    model, last = stirred(built("ladder", pair)), []
    for vit, x, ladder in zip(pair, clips, (model.beside_visual, model.beside_audio), strict=True):
        x, h = stem(vit, x), None
        for i, block in enumerate(vit.blocks):
            x = block(x)
            down = ladder.down[i]
            y = F.layer_norm(x, x.shape[-1:]) @ down.weight.T + down.bias
            if h is not None:
                gate = torch.sigmoid(ladder.gate[i - 1] / 0.1)
                y = gate * h + (1 - gate) * y
            layer = ladder.layers[i]
            z = layer.norm1(y)
            y = y + layer.self_attn(z, z, z, need_weights=False)[0]
            h = y + layer.linear2(F.gelu(layer.linear1(layer.norm2(y))))
        last.append(h)
    check(model, clips, *last)


def test_ladder_weighs_every_layer_but_the_first(pair, clips):
    """There is one gate less than layers, and all learn."""
    model = stirred(built("ladder", pair)).train()
    out = model(*clips)
    (out.visual.square().sum() + out.audio.square().sum()).backward()
    for ladder, blocks in ((model.beside_visual, 3), (model.beside_audio, 2)):
        assert ladder.gate.shape == (blocks - 1,)
        assert (ladder.gate.grad != 0).all()


def swin_window(swin, name):
    block = swin.get_submodule(name)
    return block.window_size[0], block.shift_size[0]


@pytest.mark.parametrize("size", [64, 56])
def test_ladder_follows_the_stages(tiny, size):
    """Between stages h is averaged and brought to the new width; the last windows of maps of 14 and 7 are not full."""
    torch.manual_seed(0)
    swin = timm.create_model(
        "swinv2_tiny_window8_256", img_size=size, embed_dim=8, depths=[2, 3], num_heads=[2, 2], window_size=4
    )
    model = create_baseline("ladder", visual=swin, audio=tiny.vit(in_chans=1), ratio=2)
    ladder = stirred(model).beside_visual
    taps = [3 * torch.randn(2, n, d) for n, d in zip(model.visual.tokens, model.visual.widths, strict=True)]
    normalised = [F.layer_norm(tap, tap.shape[-1:]) for tap in taps]

    def windowed(i, tokens):
        size, shift = swin_window(swin, model.visual.tap_names[i])
        across = int(tokens.shape[1] ** 0.5)
        maps, out = tokens.view(2, across, across, -1), torch.empty(2, across, across, tokens.shape[2])
        for top in range(0, across, size):
            for left in range(0, across, size):
                rows, columns = (
                    [(x + shift) % across for x in range(start, min(start + size, across))] for start in (top, left)
                )
                own = torch.stack([maps[:, r, c] for r in rows for c in columns], 1)
                done = ladder.layers[i](own)
                for k, (r, c) in enumerate((r, c) for r in rows for c in columns):
                    out[:, r, c] = done[:, k]
        return out.flatten(1, 2)

    h = windowed(0, ladder.down[0](normalised[0]))
    assert not torch.allclose(h, ladder.layers[0](ladder.down[0](normalised[0])), atol=1e-2)  # of all tokens
    for i in range(1, 5):
        y = ladder.down[i](normalised[i])
        if model.visual.stages[i] != model.visual.stages[i - 1]:
            side = int(taps[i].shape[1] ** 0.5)
            h = h.view(2, side, 2, side, 2, -1).mean((2, 4)).flatten(1, 2)  # of 2 x 2 places
            h = ladder.across[i](h)
        gate = torch.sigmoid(ladder.gate[i - 1] / 0.1)
        h = windowed(i, gate * h + (1 - gate) * y)
    torch.testing.assert_close(ladder(taps), h)


def test_ladders_layers_start_as_identities(pair, clips):
    """Half of what came before and half of the block's own, all the way up."""
    ladder = built("ladder", pair).beside_visual
    taps = FrozenBackbone(pair[0])(clips[0].flatten(0, 1))
    own = [down(F.layer_norm(tap, tap.shape[-1:])) for tap, down in zip(taps, ladder.down, strict=True)]
    h = own[0]
    for one in own[1:]:
        h = (h + one) / 2
    torch.testing.assert_close(ladder(taps), h)


def test_dgsct_gives_each_segment_its_own_span_of_a_clip_and_puts_it_back(tiny):
    torch.manual_seed(0)
    vit, whisper = tiny.vit(embed_dim=16), tiny.hf("Whisper", d_model=16)  # 100 tokens: 4 spans of 25
    model = built("dg-sct", (vit, whisper), audio_layout="clip", num_segments=4).float()
    assert len(model.pairs) == len(whisper.encoder.layers) > 1
    came: list[torch.Tensor] = []

    def note(_, args, kwargs):
        came.append(args[0] if args else kwargs["hidden_states"])

    for layer in whisper.encoder.layers[:2]:
        layer.register_forward_pre_hook(note, with_kwargs=True)
    adapter = model.adapters[0]["audio"]
    adapter.register_forward_pre_hook(lambda _, args: came.append(args[0]))
    inputs = torch.randn(2, 4, 3, 32, 32), torch.randn(2, 80, 200)
    model(*inputs)
    heard, spans, plain = came[:3]
    assert spans.shape == (2 * 4, 25, 16)
    for clip in range(2):
        for segment in range(4):
            assert torch.equal(spans[4 * clip + segment], heard[clip, 25 * segment : 25 * (segment + 1)])
    marks = torch.arange(8.0)[:, None, None].expand(8, 25, 16)
    adapter.register_forward_hook(lambda _, args, output: (marks, output[1]))
    came.clear()
    model(*inputs)
    marked = came[2] - plain
    for clip in range(2):
        torch.testing.assert_close(marked[clip, :, 0], torch.arange(4.0).repeat_interleave(25) + 4 * clip)


def test_maps_are_heard_as_tokens_are(tiny):
    """timm's Swin puts out (B, H, W, D)."""
    torch.manual_seed(0)
    ears = timm.create_model(
        "swinv2_tiny_window8_256", img_size=64, in_chans=1, embed_dim=8, depths=[2, 3], num_heads=[2, 2], window_size=4
    )
    model = stirred(create_baseline("dg-sct", visual=tiny.vit(embed_dim=16), audio=ears, ratio=2, groups=1))
    model.eval()
    frames, sound = torch.randn(1, 2, 3, 32, 32), torch.randn(1, 2, 1, 64, 64)
    assert model.pairs == [(0, 0), (1, 2), (2, 4)]
    eyes = model.visual.module
    v, maps = eyes._pos_embed(eyes.patch_embed(frames[0])), ears.patch_embed(sound[0])
    beside = iter(model.adapters)
    for number, block in enumerate(block for layer in ears.layers for block in layer.blocks):
        if number == 2:
            maps = ears.layers[1].downsample(maps)
        if number not in (0, 2, 4):
            maps = block(maps)
            continue
        seeing = eyes.blocks[number // 2]
        first, second = next(beside), next(beside)
        a = maps.flatten(1, 2)
        (rv, _), (ra, _) = first["visual"](v, a), first["audio"](a, v)
        v, a = v + seeing.attn(seeing.norm1(v)) + rv, block(maps).flatten(1, 2) + ra
        (rv, _), (ra, places) = second["visual"](v, a), second["audio"](a, v)
        v, a = v + seeing.mlp(seeing.norm2(v)) + rv, a + ra
        maps = a.view(maps.shape)
    torch.testing.assert_close(model(frames, sound).audio[0], model.read_audio(a, places))
    scrambled = maps.transpose(1, 2).flatten(1, 2)  # rows for columns
    assert not torch.allclose(model.read_audio(scrambled, places), model.read_audio(a, places))
