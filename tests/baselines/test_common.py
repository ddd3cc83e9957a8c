"""What all the peers' methods have in common: state, dtypes, modes, what they are given and what they refuse."""

import copy

import pytest
import torch

import fastav
from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from fastav.baselines import BASELINES, create_baseline
from fastav.baselines.paired import pair_blocks
from tests.baselines.making import RATIOS, SEGMENTS, WIDTH, built, stirred

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")

INSIDE = ("lora", "naive", "lavish", "dg-sct")  # all that change what the blocks put out, from nothing on


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
        if p.requires_grad:
            assert p.grad is not None, key
            # Biases before a softmax or a norm change nothing, so their gradient may be zero.
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
def test_backbones_stay_in_eval_mode_and_their_tokens_alike(tiny, clips, name):
    """Drop path would be drawn anew each time."""
    pair = [tiny.vit(embed_dim=16, drop_path_rate=0.5, **options).double() for options in ({}, {"in_chans": 1})]
    model = built(name, pair).train()
    backbones = [part for part in (model.visual, getattr(model, "audio", None)) if part is not None]
    assert not any(module.training for backbone in backbones for module in backbone.modules())
    for child in model.children():  # batch norms' moving statistics
        child.eval()
    for one, other in zip(model(*clips)[:2], model(*clips)[:2], strict=True):
        assert torch.equal(one, other)
    for vit in pair:
        vit.train()
    for backbone in backbones:
        backbone.module.train()
    again = model(*clips)
    for one, other in zip(model(*clips)[:2], again[:2], strict=True):
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
    maps = FrozenBackbone(vit)(frames.flatten(0, 1))  # to which nobody adds anything at the start
    for found, tap in zip(out.features, maps, strict=True):
        torch.testing.assert_close(found.flatten(0, 1).flatten(1, 2), tap[:, 1:])
    if name in ("frozen", "naive", "lora", "full"):
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
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert [m.blocks[0].norm1.weight.dtype for m in halves] == [torch.bfloat16] * 2


def test_lavish_brings_spectrograms_to_their_size_before_they_are_rounded(pair, clips):
    """On a CPU PyTorch does not resize in bfloat16 at all."""
    model = create_baseline("lavish", visual=pair[0].bfloat16(), audio=pair[1].bfloat16(), ratio=2).train()
    frames, sound = clips[0].float(), clips[1].float().repeat(1, 1, 1, 2, 3)
    given = []
    model.visual.module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    assert model(frames, sound).audio.isfinite().all()
    wanted = type(model.pictures)()(sound.flatten(0, 1), 1, frames.shape[-2:])
    assert torch.equal(given[0][-len(wanted) :], wanted.bfloat16())


def read_outs(model, clips):
    """What both read-outs of a run are given and what they give."""
    found = []
    hooks = [
        part.register_forward_hook(lambda _, args, out: found.append((args, out)))
        for part in (model.read_visual, model.read_audio)
    ]
    model(*clips)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", BASELINES)
def test_under_autocast_the_backbones_round_and_the_read_outs_do_not(pair, clips, name):
    """Tokens lose at most twice what they lose where all is bfloat16.

    That rounds the same products and the sums of the branches besides; twice, as either is one draw of roundings.
    """
    model = stirred(built(name, [m.float() for m in pair]).float())
    clips = [x.float() for x in clips]
    exact = read_outs(model, clips)
    with torch.autocast("cpu", torch.bfloat16):
        rough = read_outs(model, clips)
    half = copy.deepcopy(model)
    for child in half.children():
        if child not in (half.read_visual, half.read_audio):
            child.bfloat16()
    rounded = read_outs(half, clips)
    for (given, out), (wanted, _), (coarse, _), read in zip(
        rough, exact, rounded, (model.read_visual, model.read_audio), strict=True
    ):
        loss, allowed = ((tokens[0].float() - wanted[0]).norm() for tokens in (given, coarse))
        assert 0 < loss < 2 * allowed
        assert out.dtype == torch.float32
        assert torch.equal(out, read(*given))


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_given_is_left_as_it_is_where_it_is_copied(pair, name):
    for vit in pair:
        vit.train().requires_grad_(True)
    model = built(name, pair)
    copied = name in ("lora", "full")
    assert type(model).copies == copied
    for vit in pair:
        assert vit.training == copied
        assert all(p.requires_grad == copied for p in vit.parameters())


def test_only_what_a_method_adds_is_cast(tiny):
    """A backbone in half precision whose norms are not."""
    vit, ears = tiny.vit(embed_dim=16).bfloat16(), tiny.vit(embed_dim=16, in_chans=1).bfloat16()
    vit.norm.float()
    model = create_baseline("naive", visual=vit, audio=ears, ratio=2)
    assert vit.norm.weight.dtype == torch.float32
    assert {p.dtype for p in model.adapters.parameters()} == {torch.bfloat16}


def test_frozen_backbones_settings_count(tiny, pair, clips):
    """Its example and chunk; the taps where nothing else tells what the blocks are."""
    vit, audio = pair
    wrapped = FrozenBackbone(vit, 1, chunk=2)
    model = built("frozen", (wrapped, audio))
    assert (model.visual.chunk, model.audio.chunk) == (2, None)
    plain = built("frozen", pair)
    for one, other in zip(model(*clips)[:2], plain(*clips)[:2], strict=True):
        torch.testing.assert_close(one, other)
    for name in ("naive", "lavish"):
        with pytest.raises(ValueError, match="chunk is 2, but gradients run through this backbone"):
            built(name, (wrapped, audio))
    own = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)).double()
    named = FrozenBackbone(own, ["0", "1"], example_input=torch.zeros(1, 5, 4).double())
    assert built("ladder", (named, audio)).beside_visual.width == 2
    hubert = tiny.hf("Hubert")
    longer = FrozenBackbone(hubert, example_input=torch.zeros(1, 24000))
    model = create_baseline("dg-sct", visual=tiny.vit(embed_dim=16), audio=longer, ratio=2, groups=1)
    out = model(torch.randn(1, 2, 3, 32, 32), torch.randn(1, 2, 24000))
    assert out.audio.shape == (1, 2, 1, 128)


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


def test_nothing_is_left_behind_by_a_run_that_fails(pair, clips):
    """Though somebody keeps the error, and with it all that was going on."""
    model = built("dg-sct", pair)
    kept = []

    def broken(module, args, output):
        raise RuntimeError("no more")

    handle = model.adapters[3]["audio"].register_forward_hook(broken)
    try:
        model(*clips)
    except RuntimeError as error:
        kept.append(error)
    handle.remove()
    assert str(kept[0]) == "no more"
    for vit in pair:
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())
    built("naive", pair)(*clips)
    model(*clips)


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


def test_weight_decay_leaves_latent_tokens_and_gates_alone(pair):
    spared = built("lavish", pair).no_weight_decay()
    assert {"adapters.0.1.audio.attention.tokens", "adapters.2.0.visual.bottleneck.gate"} <= spared
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
    own = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)).double()
    unknown = FrozenBackbone(own, ["0", "1"], example_input=torch.zeros(1, 6, 4).double())
    assert built("lavish", (vit, unknown))(torch.randn(1, 3, 3, 32, 32), torch.randn(1, 3, 6, 4)).audio.shape[1] == 3
    with pytest.raises(ValueError, match=r"Lavish: audio_layout='clip' .* blocks of Sequential are of no known family"):
        built("lavish", (vit, unknown), audio_layout="clip")
    with pytest.raises(ValueError, match=r"placement is 'after', wanted one of \('behind', 'beside'\)"):
        built("naive", pair, placement="after")
    with pytest.raises(ValueError, match=r"targets is 'qkv', wanted one of \('all', 'attention'\)"):
        built("lora", pair, targets="qkv")
    block = timm.models.vision_transformer.ParallelScalingBlock  # one map for attention and MLP
    fused = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, block_fn=block).double()
    with pytest.raises(ValueError, match=r"targets is 'attention', but the blocks of VisionTransformer call no such"):
        built("lora", (fused, audio), targets="attention")
    assert len(built("lora", (fused, audio)).changes) == 2 * (3 + 2 * 4)  # one down and one up each
    with pytest.raises(ValueError, match=r"ratio=5 must divide the widths \[16\]"):
        built("ladder", pair, ratio=5)
    for name in ("ladder", "naive"):
        with pytest.raises(ValueError, match="ratio is 0, wanted an integer of at least 1"):
            built(name, pair, ratio=0)
    with pytest.raises(ValueError, match="DGSCT wants two backbones that go side by side, was given one for both"):
        built("dg-sct", (vit, vit))
    for name in ("naive", "lavish", "dg-sct"):
        with pytest.raises(ValueError, match="adapters cannot be put into Dinov2Layer"):
            create_baseline(name, visual=tiny.hf("Dinov2"), audio=tiny.vit(in_chans=1), ratio=2)
    with pytest.raises(ValueError, match=r"audio_input has sounds of shape \(3, 32, 32\), wanted spectrograms of one"):
        built("lavish", pair)(torch.randn(1, 2, 3, 32, 32), torch.randn(1, 2, 3, 32, 32))
    whisper = tiny.hf("Whisper")
    for wrong in (None, 3, -4, 4.0):
        with pytest.raises(ValueError, match=rf"num_segments is {wrong}, wanted .* divides its 100 audio tokens"):
            create_baseline(
                "dg-sct", visual=tiny.vit(), audio=whisper, audio_layout="clip", num_segments=wrong, ratio=2, groups=1
            )
    model = create_baseline(
        "dg-sct", visual=tiny.vit(), audio=whisper, audio_layout="clip", num_segments=4, ratio=2, groups=1
    )
    with pytest.raises(ValueError, match="visual_input has 2 segments a clip, num_segments is 4"):
        model(torch.randn(1, 2, 3, 32, 32), torch.randn(1, 80, 200))
    model = built("dg-sct", (tiny.vit(dynamic_img_size=True), tiny.hf("Hubert")), groups=1).float()
    heard = (
        r"block of the audio backbone puts out 1199 tokens a segment, .* built for 799, as inputs of shape \(16000,\)"
    )
    with pytest.raises(ValueError, match=heard + r".*FrozenBackbone\(\.\.\., example_input=one of them\)"):
        model(torch.randn(1, 2, 3, 32, 32), torch.randn(1, 2, 24000))
    seen = (
        r"block of the visual backbone puts out 10 tokens a segment, .* built for 5, as inputs of shape \(3, 32, 32\)"
    )
    with pytest.raises(ValueError, match=seen):
        model(torch.randn(1, 2, 3, 48, 48), torch.randn(1, 2, 16000))
    model = create_baseline("lavish", visual=tiny.vit(), audio=whisper, audio_layout="clip", ratio=2, groups=1)
    with pytest.raises(ValueError, match="audio_input has 200 frames a clip, which do not divide into 3"):
        model(torch.randn(1, 3, 3, 32, 32), torch.randn(1, 80, 200))
    with pytest.raises(ValueError, match=r"audio_input has shape \(2, 4, 1, 32, 32\), wanted \(2, 3\) first"):
        built("frozen", pair)(torch.randn(2, 3, 3, 32, 32), torch.randn(2, 4, 1, 32, 32))


def test_they_are_public():
    assert fastav.baselines.create_baseline is create_baseline


@pytest.mark.parametrize("batches", [1, 2])
def test_read_outs_are_standardised_by_the_first_training_batches(pair, clips, batches):
    model = built("frozen", pair, standardize_batches=batches).train()
    first, other = clips, [3 * x.flip(0) for x in clips]
    model(*first)
    model(*other)
    measured = model.state_dict()
    model.eval()(*other)
    model.train()(*other)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, measured[name], rtol=0, atol=0)
    pooled = []
    for frames in (first[0], other[0])[:batches]:
        tokens = FrozenBackbone(pair[0], taps=1)(frames.flatten(0, 1))[0]
        pooled.append(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]).mean(1))
    pooled = torch.cat(pooled)
    found = model.read_visual.standardization
    torch.testing.assert_close(found.mean, pooled.mean(0))
    torch.testing.assert_close(found.variance, pooled.var(0, correction=0))
    assert int(found.measured) == batches


@pytest.mark.parametrize("name", BASELINES)
def test_standardisation_follows_what_moves(pair, clips, name):
    """All that a read-out is given moves with what is trained, but for frozen features."""
    model = built(name, pair, standardize_batches=1).train()
    for _ in range(3):
        model(*clips)
    model.eval()(*clips)
    assert int(model.read_visual.standardization.measured) == (1 if name == "frozen" else 3)
    (seen, _), *_ = read_outs(model.train(), clips)
    tokens, places = seen[0], seen[1] if len(seen) > 1 else None
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    means = (tokens.mean(1, keepdim=True) if places is None else places @ tokens)[:, 0]
    torch.testing.assert_close(model.read_visual.standardization.mean, means.mean(0).detach())


@pytest.mark.parametrize("name", ["naive", "lavish", "dg-sct", "lora", "full"])
def test_checkpointed_blocks_are_refused_where_adapters_stand_in_them_by_hooks(tiny, clips, name):
    """They run once more in backward, when the hooks are gone; LoRA's maps are still there."""
    pair = [tiny.vit(embed_dim=16).double(), tiny.vit(embed_dim=16, in_chans=1).double()]
    pair[0].set_grad_checkpointing()
    if name in ("naive", "lavish", "dg-sct"):
        for given in [pair, pair[::-1]][: 1 + (name != "lavish")]:
            with pytest.raises(ValueError, match=r"checkpoints gradients.*call its set_grad_checkpointing\(False\)"):
                built(name, given)
        return
    gradients = []
    for on in (True, False):
        pair[0].set_grad_checkpointing(on)
        model = built(name, pair)
        model(*clips).visual.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
