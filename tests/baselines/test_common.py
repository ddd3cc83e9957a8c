"""What all the peers' methods have in common: where gradients run, state, modes, and what they are given."""

import pytest
import torch

import fastav
from fastav import FrozenBackbone, MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig
from fastav.baselines import BASELINES, create_baseline
from tests.baselines.making import SEGMENTS, WIDTH, built, stirred

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


def test_full_fine_tuning_leaves_whispers_positions_alone(tiny):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_attention_heads": 2,
    }
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(num_mel_bins=8, max_source_positions=50, decoder_layers=1, **sizes)
    )
    model = create_baseline("full", visual=tiny.vit(), audio=whisper, width=WIDTH)
    left = {name for name, p in model.audio.module.named_parameters() if not p.requires_grad}
    assert "embed_positions.weight" in left
    assert model.audio.module.layers[0].fc1.weight.requires_grad


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


def test_weight_decay_leaves_latent_tokens_and_gates_alone(pair):
    spared = built("lavish", pair).no_weight_decay()
    assert {"adapters.0.1.audio.attention.tokens", "adapters.2.0.visual.bottleneck.gate"} <= spared
    assert len(spared) == 3 * 3 * 4  # tokens and two gates in four adapters of three blocks


def test_they_are_public():
    assert fastav.baselines.create_baseline is create_baseline
