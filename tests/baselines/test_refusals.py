"""What peers' methods refuse, and in which words."""

import pytest
import torch

from fastav import FrozenBackbone, MettleAdapter, MettleConfig
from fastav.baselines import BASELINES, create_baseline
from tests.baselines.making import SEGMENTS, WIDTH, built

timm = pytest.importorskip("timm")
pytest.importorskip("greenlet")
pytest.importorskip("peft")


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("option", "value"), [("width", 0), ("standardize_batches", 0), ("standardize_batches", -2), ("width", True)]
)
def test_counts_below_one(pair, name, option, value):
    with pytest.raises(ValueError, match=f": {option} is {value}, wanted an integer of at least 1"):
        create_baseline(name, visual=pair[0], audio=pair[1], **{option: value})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, option) for name in ("lavish", "dg-sct") for option in ("num_tokens", "ratio", "groups")),
        ("naive", "ratio"),
        ("naive", "groups"),
        ("ladder", "ratio"),
        ("lora", "rank"),
    ],
)
@pytest.mark.parametrize("value", [0, 2.0])
def test_counts_of_their_own(pair, name, option, value):
    with pytest.raises(ValueError, match=f": {option} is {value}, wanted an integer of at least 1"):
        create_baseline(name, visual=pair[0], audio=pair[1], **{option: value})


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_no_backbone(pair, name):
    with pytest.raises(TypeError, match="str"):
        create_baseline(name, visual="vit", audio=pair[1])


@pytest.mark.parametrize("name", BASELINES)
def test_backbones_that_want_to_be_in_the_state(pair, name):
    with pytest.raises(ValueError, match=r"in_state_dict=True, but a method's state holds what it trains alone"):
        create_baseline(name, visual=FrozenBackbone(pair[0], in_state_dict=True), audio=pair[1])


def test_frames_of_whole_numbers(pair, clips):
    """Which every other method's backbone refuses by itself."""
    model = built("lavish", pair)
    with pytest.raises(TypeError, match=r"visual_input is torch\.uint8, wanted floating numbers, normalised"):
        model(torch.zeros_like(clips[0], dtype=torch.uint8), clips[1])


def test_a_waveform_for_a_spectrogram(pair, clips):
    """Of one clip of one segment too, whose only axis could be taken for a spectrogram's."""
    model = built("lavish", pair)
    with pytest.raises(ValueError, match=r"audio_input has sounds of shape \(1024,\), wanted spectrograms"):
        model(clips[0][:1, :1], clips[1][:1, :1].reshape(1, 1, -1)[..., :1024])


def test_inputs_without_anything_to_hear(pair, clips):
    with pytest.raises(ValueError, match=r"audio_input has shape \(2, 3\), wanted \(2, 3\) first, .* and then what"):
        built("frozen", pair)(clips[0], torch.zeros(2, 3))


def test_maps_of_frames_that_are_not_square(tiny):
    """4 x 9 patches are as many as 6 x 6."""
    eyes, ears = tiny.vit(img_size=(64, 144)), tiny.vit(in_chans=1)
    frames, sound = torch.randn(1, SEGMENTS, 3, 64, 144), torch.randn(1, SEGMENTS, 1, 32, 32)
    for name in ("frozen", "lavish"):
        options = {"ratio": 2} if name == "lavish" else {}
        model = create_baseline(name, visual=eyes, audio=ears, width=WIDTH, dense=True, **options)
        with pytest.raises(ValueError, match="frames of 64 x 144 pixels, but feature maps"):
            model(frames, sound)
    adapter = MettleAdapter(eyes, ears, MettleConfig(inject_stages="stages", rank=4, width=8))
    with pytest.raises(ValueError, match="frames of 64 x 144 pixels, but feature maps"):
        adapter(frames, sound)
    plain = create_baseline("frozen", visual=eyes, audio=ears, width=WIDTH)
    assert plain(frames, sound).visual.shape == (1, SEGMENTS, 1, WIDTH)


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
