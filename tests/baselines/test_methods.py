"""The peers' methods as a whole: against loops over the backbones' blocks, written out, and what all have in common."""

import pytest
import torch
import torch.nn.functional as F

import fastav
from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from fastav.baselines import BASELINES, create_baseline
from fastav.baselines.paired import pair_blocks

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
peft = pytest.importorskip("peft")

CLIPS, SEGMENTS, WIDTH = 2, 3, 6
INSIDE = ("lora", "naive", "lavish", "dg-sct")  # all that change what the blocks put out, from nothing on
RATIOS = {"naive": 2, "lavish": 2, "dg-sct": 2, "ladder": 4}


@pytest.fixture
def pair(tiny):
    """A ViT of three blocks that sees 32 x 32 and one of two that hears spectrograms of that size, in float64."""
    torch.manual_seed(0)
    return tiny.vit(embed_dim=16).double(), tiny.vit(embed_dim=16, depth=2, in_chans=1).double()


@pytest.fixture
def clips():
    torch.manual_seed(1)
    return [torch.randn(CLIPS, SEGMENTS, channels, 32, 32).double() for channels in (3, 1)]


def built(name, pair, **options):
    torch.manual_seed(2)
    options = {"ratio": RATIOS[name], **options} if name in RATIOS else options
    return create_baseline(name, visual=pair[0], audio=pair[1], width=WIDTH, **options).double().eval()


def stirred(model):
    """All that trains drawn at random, also what starts at zero; batch norms with statistics of their own."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def stem(vit, x):
    return vit._pos_embed(vit.patch_embed(x.flatten(0, 1)))


def read(read_out, x, places=None):
    x = F.layer_norm(x, x.shape[-1:], read_out.norm.weight, read_out.norm.bias)
    x = x.mean(1) if places is None else torch.einsum("bn,bnd->bd", places[:, 0], x)
    return (x @ read_out.to_width.weight.T + read_out.to_width.bias).view(CLIPS, SEGMENTS, 1, WIDTH)


def check(model, clips, visual, audio, places=(None, None)):
    """What a method gives is what its last tokens give."""
    out = model(*clips)
    torch.testing.assert_close(out.visual, read(model.read_visual, visual, places[0]))
    torch.testing.assert_close(out.audio, read(model.read_audio, audio, places[1]))


# By hand


def test_frozen_features_are_the_last_tokens(pair, clips):
    v, a = stem(pair[0], clips[0]), stem(pair[1], clips[1])
    model = stirred(built("frozen", pair))
    check(model, clips, pair[0].blocks(v), pair[1].blocks(a))


def test_naive_by_hand(pair, clips):
    model, last = stirred(built("naive", pair)), []
    for vit, x, beside in zip(pair, clips, (model.beside["visual"], model.beside["audio"]), strict=True):
        x = stem(vit, x)
        for block, (first, second) in zip(vit.blocks, beside, strict=True):
            x = x + block.attn(block.norm1(x)) + first(x)
            x = x + block.mlp(block.norm2(x)) + second(x)
        last.append(x)
    check(model, clips, *last)


def test_lavish_by_hand(pair, clips):
    """Both modalities through the visual backbone; each adapter is given both as they are before it."""
    model = stirred(built("lavish", pair))
    with torch.no_grad():
        model.pictures.norm.running_mean.fill_(0.3)
    norm = model.pictures.norm
    pictures = (clips[1] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    v, a = stem(pair[0], clips[0]), stem(pair[0], pictures.expand(-1, -1, 3, -1, -1))
    for block, (first, second) in zip(pair[0].blocks, model.beside, strict=True):
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
    beside = iter(model.beside)
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


def test_lora_by_hand(pair, clips):
    """The same as the frozen backbones with W + (alpha / r) B A in all four maps of each block."""
    model = stirred(built("lora", pair, rank=2, alpha=6.0))
    changed = 0
    for vit, live in zip(pair, (model.visual, model.audio), strict=True):
        for name, module in live.module.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                with torch.no_grad():
                    vit.get_submodule(name).weight.add_(3 * b @ a)
                changed += 1
    assert changed == 4 * (3 + 2)
    v, a = stem(pair[0], clips[0]), stem(pair[1], clips[1])
    check(model, clips, pair[0].blocks(v), pair[1].blocks(a))


def test_ladder_by_hand(pair, clips):
    model, last = stirred(built("ladder", pair)), []
    for vit, x, ladder in zip(pair, clips, (model.beside_visual, model.beside_audio), strict=True):
        x, h = stem(vit, x), None
        for i, block in enumerate(vit.blocks):
            x = block(x)
            gate, down = torch.sigmoid(ladder.gate[i] / 0.1), ladder.down[i]
            y = x @ down.weight.T + down.bias
            y = y if h is None else gate * h + (1 - gate) * y
            layer = ladder.layers[i]
            z = layer.norm1(y)
            y = y + layer.self_attn(z, z, z, need_weights=False)[0]
            h = y + layer.linear2(F.gelu(layer.linear1(layer.norm2(y))))
        last.append(h)
    check(model, clips, *last)


def test_ladder_follows_the_stages(tiny):
    """Between stages h is averaged over 2 x 2 places and brought to the new width."""
    torch.manual_seed(0)
    swin = tiny.swin()
    model = create_baseline("ladder", visual=swin, audio=tiny.vit(in_chans=1), ratio=2)
    ladder = model.beside_visual.eval()
    taps = [torch.randn(2, n, d) for n, d in zip(model.visual.tokens, model.visual.widths, strict=True)]
    h = ladder.layers[0](ladder.down[0](taps[0]))
    for i in range(1, 5):
        y = ladder.down[i](taps[i])
        if model.visual.stages[i] != model.visual.stages[i - 1]:
            side = int(taps[i].shape[1] ** 0.5)
            h = h.view(2, side, 2, side, 2, -1).mean((2, 4)).flatten(1, 2)
            h = ladder.across[i](h)
        h = ladder.layers[i]((h + y) / 2)
    torch.testing.assert_close(ladder(taps), h)


# What all have in common


@pytest.mark.parametrize("name", INSIDE)
def test_at_the_start_the_blocks_put_out_what_frozen_ones_do(pair, clips, name):
    model, plain = built(name, pair), FrozenBackbone(pair[0], taps=1)
    inputs = clips[0].flatten(0, 1), clips[1].flatten(0, 1)
    torch.testing.assert_close(model._run(*inputs, SEGMENTS).visual[-1], plain(inputs[0])[-1])
    if name != "lavish":  # which hears with its eyes
        heard = model._run(*inputs, SEGMENTS).audio
        torch.testing.assert_close(heard, FrozenBackbone(pair[1], taps=1)(inputs[1])[-1])
    assert not torch.allclose(stirred(model)._run(*inputs, SEGMENTS).visual[-1], plain(inputs[0])[-1])


def reached(model, clips):
    """Of the first visual block's output, whether a training step brings a gradient to it."""
    found = []
    first = next(m for m in model.visual.module.modules() if isinstance(m, timm.models.vision_transformer.Block))

    def note(module, args, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: found.append(gradient.abs().sum().item() > 0))

    handle = first.register_forward_hook(note)
    out = model(*clips)
    (out.visual.square().sum() + out.audio.square().sum()).backward()
    handle.remove()
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_run_through_the_backbones_where_it_says_so(pair, clips, name):
    model = stirred(built(name, pair)).train()
    assert reached(model, clips) == [True] * model.through
    for key, p in model.named_parameters():
        if p.requires_grad and not key.endswith("unread"):
            assert p.grad is not None, key
            assert p.grad.abs().sum() > 0 or "bias" in key, key
    frozen = [
        p for backbone in (model.visual, getattr(model, "audio", None)) if backbone for p in backbone.parameters()
    ]
    if name not in ("lora", "full"):
        assert not any(p.requires_grad for p in frozen)
    assert all(p.grad is None for p in frozen if not p.requires_grad)


@pytest.mark.parametrize(("method", "config"), [(MettleAdapter, MettleConfig), (MoLTAdapter, MoLTConfig)])
def test_no_gradient_runs_through_ours(pair, clips, method, config):
    model = method(*(m.float() for m in pair), config(layers="all", standardize=False))
    assert reached(model, [x.float() for x in clips]) == []


def test_full_fine_tuning_trains_what_runs_in_copies_of_the_backbones(pair, clips):
    model = built("full", pair)
    for vit, live in zip(pair, (model.visual, model.audio), strict=True):
        trained = {name for name, p in live.module.named_parameters() if p.requires_grad}
        assert trained == {name for name, _ in vit.named_parameters() if not name.startswith(("norm.", "head", "fc_"))}
        assert not any(p is q for p, q in zip(vit.parameters(), live.module.parameters(), strict=True))
    assert "visual.module.blocks.0.attn.qkv.weight" in model.state_dict()


@pytest.mark.parametrize("name", BASELINES)
def test_a_state_brings_all_that_was_learned_to_the_same_backbones(pair, clips, name):
    one, other = stirred(built(name, pair)), built(name, pair)
    state = one.state_dict()
    if name != "full":
        assert not any(key.startswith(("visual.", "audio.")) for key in state)
    other.load_state_dict(state)
    for a, b in zip(one(*clips)[:2], other(*clips)[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", BASELINES)
def test_backbones_stay_in_eval_mode_and_their_tokens_alike(pair, clips, name):
    model = built(name, pair).train()
    assert not model.visual.module.training
    model.eval()
    for one, other in zip(model(*clips)[:2], model(*clips)[:2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", BASELINES)
def test_whole_clips_of_sound_and_dense_features(tiny, name):
    """Whisper's tokens of a clip are cut into spans; spectrograms are, where they are seen."""
    torch.manual_seed(0)
    vit, whisper = tiny.vit(embed_dim=16), tiny.hf("Whisper", d_model=16)  # 100 positions: 200 frames of sound
    options = {"num_segments": 4} if name == "dg-sct" else {}
    model = built(name, (vit, whisper), audio_layout="clip", dense=True, **options).float()
    frames, sound = torch.randn(2, 4, 3, 32, 32), torch.randn(2, 80, 200)
    out = model(frames, sound)
    assert out.visual.shape == out.audio.shape == (2, 4, 1, WIDTH)
    assert [tuple(found.shape) for found in out.features] == [(2, 4, 2, 2, 16)] * 3
    if name == "frozen":
        maps = FrozenBackbone(vit)(frames.flatten(0, 1))
        for found, tap in zip(out.features, maps, strict=True):
            torch.testing.assert_close(found.flatten(0, 1).flatten(1, 2), tap[:, 1:])
        heard = FrozenBackbone(whisper, taps=1)(sound)[0].view(8, 25, 16)
        torch.testing.assert_close(out.audio.flatten(0, 1)[:, 0], model.read_audio(heard)[:, 0])
    later = sound.clone()
    later[..., 150:] = 0
    if name == "lavish":  # what is heard later is not in earlier spans
        changed = model(frames, later).audio
        torch.testing.assert_close(changed[:, :3], out.audio[:, :3])
        assert not torch.allclose(changed[:, 3], out.audio[:, 3])


def test_backbones_in_half_precision_are_read_out_in_float32(pair, clips):
    halves = [m.bfloat16() for m in pair]
    for name in BASELINES:
        model = create_baseline(name, visual=halves[0], audio=halves[1], **({"ratio": 2} if name in RATIOS else {}))
        out = model.train()(*(x.float() for x in clips))
        assert out.visual.dtype == out.audio.dtype == torch.float32
        (out.visual.sum() + out.audio.sum()).backward()


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
    model = create_baseline(name, visual=swin, audio=transformers.ClapAudioModel(transformers.ClapAudioConfig()))
    assert sum(p.numel() for p in model.beside.parameters()) == count
    read_outs = [p for part in (model.read_visual, model.read_audio) for p in part.parameters()]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count + sum(p.numel() for p in read_outs)


def test_weight_decay_leaves_latent_tokens_and_gates_alone(pair):
    spared = built("lavish", pair).no_weight_decay()
    assert {"beside.0.1.audio.attention.tokens", "beside.2.0.visual.bottleneck.gate"} <= spared
    assert len(spared) == 3 * 3 * 4  # tokens and two gates in four adapters of three blocks


def test_mistakes_are_named(tiny, pair):
    vit, audio = pair
    with pytest.raises(ValueError, match=r"there is no baseline 'x'; choose one of \['dg-sct', 'frozen'"):
        create_baseline("x", visual=vit, audio=audio)
    with pytest.raises(ValueError, match=r"FrozenFeatures: audio_layout='clip' cuts the audio tokens .*'segment'"):
        built("frozen", pair, audio_layout="clip")
    with pytest.raises(ValueError, match="audio_layout is 'clips', wanted one of"):
        built("frozen", pair, audio_layout="clips")
    with pytest.raises(ValueError, match=r"visual backbone is of torch\.float32, the audio backbone of torch\.float64"):
        create_baseline("naive", visual=tiny.vit(), audio=audio)
    with pytest.raises(ValueError, match="Lavish hears spectrograms, but HubertModel takes raw sound"):
        create_baseline("lavish", visual=tiny.vit(), audio=tiny.hf("Hubert"))
    with pytest.raises(ValueError, match=r"ratio=5 must divide the widths \[16\]"):
        built("ladder", pair, ratio=5)
    whisper = tiny.hf("Whisper")
    for wrong in (None, 3):
        with pytest.raises(ValueError, match=rf"num_segments is {wrong}, wanted .* divides its 100 audio tokens"):
            create_baseline(
                "dg-sct", visual=tiny.vit(), audio=whisper, audio_layout="clip", num_segments=wrong, ratio=2, groups=1
            )
    model = create_baseline(
        "dg-sct", visual=tiny.vit(), audio=whisper, audio_layout="clip", num_segments=4, ratio=2, groups=1
    )
    with pytest.raises(ValueError, match="visual_input has 2 segments a clip, num_segments is 4"):
        model(torch.randn(1, 2, 3, 32, 32), torch.randn(1, 80, 200))
    model = create_baseline("lavish", visual=tiny.vit(), audio=whisper, audio_layout="clip", ratio=2, groups=1)
    with pytest.raises(ValueError, match="audio_input has 200 frames a clip, which do not divide into 3"):
        model(torch.randn(1, 3, 3, 32, 32), torch.randn(1, 80, 200))
    with pytest.raises(ValueError, match=r"audio_input has shape \(2, 4, 1, 32, 32\), wanted \(2, 3\) first"):
        built("frozen", pair)(torch.randn(2, 3, 3, 32, 32), torch.randn(2, 4, 1, 32, 32))


def test_they_are_public():
    assert fastav.baselines.create_baseline is create_baseline
