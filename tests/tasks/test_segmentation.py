import pytest
import timm
import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from fastav.adapters import AdapterOutput, MettleAdapter, MettleConfig
from fastav.tasks import SegmentationHead, SegmentationTask, decode_segmentation, segmentation_loss
from fastav.tasks.segmentation_head import _pyramid

SIZES = (10, 9)


def scene(grids=((8, 8), (4, 4), (2, 2), (1, 1)), widths=(6, 8, 10, 12), clips=2, segments=3, tokens=2, width=5):
    """Random features of these grids and widths, and audio tokens."""
    features = [torch.randn(clips, segments, h, w, d) for (h, w), d in zip(grids, widths, strict=True)]
    return features, torch.randn(clips, segments, tokens, width)


def head(widths=(6, 8, 10, 12), **fields):
    torch.manual_seed(0)
    return SegmentationHead(widths, num_tokens=2, width=5, hidden=8, matching=12, heads=2, **fields).eval()


def test_the_default_head_is_light():
    """Counted by hand for four taps of width 384, K = 4, W = 128, 64 channels and 8 heads in 256."""
    lateral, query = 384 * 64 + 64, 384 * 256 + 256
    keys = 2 * (2 * 128 + 128 * 256 + 256)
    similar = 2 * 4 * 8 * 64 + 64
    merge = 2 * 64 + 64 * 64 * 9 + 64
    default = SegmentationHead((384,) * 4, num_tokens=4, width=128)
    assert count(default) == 4 * (2 * 384 + lateral + query + keys + similar + merge) + 64 + 1 == 927_041
    assert count(SegmentationHead((192, 384, 768, 1536), num_tokens=4, width=128)) < 2_000_000


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_one_guide_by_hand():
    """A pixel adds to its channels a linear map of its cosines with each token, in each subspace."""
    (features, *_), audio = scene()
    guide = head().guides[0]
    sounds = [audio.flatten(0, 1), audio.mean(1, keepdim=True).expand_as(audio).flatten(0, 1)]
    got = guide(features.flatten(0, 1), torch.stack(sounds))
    b, i, j = 4, 3, 5
    pixel = guide.norm(features.flatten(0, 1)[b, i, j])
    keys = torch.cat([own(tokens[b]) for own, tokens in zip(guide.keys, sounds, strict=True)])
    query, cosines = guide.query(pixel), []
    for part in (slice(6), slice(6, 12)):
        cosines += [torch.cosine_similarity(query[part], key[part], dim=0) for key in keys]
    expected = guide.lateral(pixel) + guide.similar(torch.stack(cosines))
    torch.testing.assert_close(got[b, :, i, j], expected)


def test_each_frame_hears_its_own_second_and_its_clip():
    features, audio = scene()
    model = head()
    before = model(features, audio, SIZES)
    assert before.shape == (2, 3, *SIZES)
    other = audio.clone()
    other[0, 1] += torch.randn(2, 5)
    changed = (model(features, other, SIZES) - before).abs().amax((2, 3))
    assert (changed[0] > 0).all()  # by way of the clip's tokens
    assert changed[0].argmax() == 1  # its own second the most
    assert (changed[1] == 0).all()


@pytest.mark.parametrize("scale", range(4))
def test_the_sound_reaches_every_scale(scale):
    features, audio = scene()
    model = head()
    for i, guide in enumerate(model.guides):
        if i != scale:
            nn.init.zeros_(guide.similar.weight)
    audio.requires_grad_()
    model(features, audio, SIZES).sum().backward()
    assert (audio.grad.flatten(2).norm(dim=-1) > 0).all()


def test_gradients_reach_every_parameter_and_the_features():
    features, audio = scene()
    features = [x.requires_grad_() for x in features]
    model = head()
    model(features, audio, SIZES).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(x.grad.abs().amax((2, 3, 4)).gt(0).all() for x in features)


def test_features_of_one_grid_become_a_pyramid():
    maps = [torch.randn(2, 3, 4, 6) for _ in range(4)]
    got = _pyramid(maps)
    assert [tuple(x.shape[2:]) for x in got] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert got[2] is maps[2]
    torch.testing.assert_close(got[3][:, :, 1, 2], maps[3][:, :, 2:, 4:].mean((2, 3)))
    assert [tuple(x.shape[2:]) for x in _pyramid(maps[:2])] == [(8, 12), (4, 6)]
    several = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)]
    assert all(a is b for a, b in zip(_pyramid(several), several, strict=True))
    plain = scene(grids=((4, 4),) * 4)
    assert head()(*plain, SIZES).shape == (2, 3, *SIZES)


def test_head_learns_which_of_two_halves_sounds():
    """Left and right show two things, one of them sounds: only who compares can tell, and on things never paired so."""
    torch.manual_seed(0)
    looks, sounds = torch.randn(6, 8), torch.randn(6, 2, 5)

    def draw(clips):
        pair = torch.stack([torch.randperm(6)[:2] for _ in range(clips)])
        which = torch.randint(2, (clips, 3))
        left_right = looks[pair][:, None, None, :, None].expand(-1, 3, 4, -1, 2, -1).flatten(3, 4)
        features = [left_right + 0.1 * torch.randn(clips, 3, 4, 4, 8) for _ in range(2)]
        audio = sounds[pair.gather(1, which)]
        masks = torch.zeros(clips, 3, 8, 8, dtype=torch.bool)
        masks[..., :4] = (which == 0)[..., None, None]
        masks[..., 4:] = (which == 1)[..., None, None]
        return features, audio, masks

    def accuracy(hears):
        model = SegmentationHead((8, 8), num_tokens=2, width=5, hidden=16, matching=32)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(60):
            features, audio, masks = draw(16)
            loss = segmentation_loss(model(features, hears * audio, (8, 8)), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        features, audio, masks = draw(64)
        return (decode_segmentation(model(features, hears * audio, (8, 8)))[0] == masks).float().mean()

    assert accuracy(1.0) > 0.9
    assert accuracy(0.0) < 0.6  # deaf it can but guess


def saved_elements(side, segments):
    """Elements of all tensors that a forward keeps for backward, and of the largest of them."""
    grids = [(side // s, side // s) for s in (1, 2, 4, 8)]
    features, audio = scene(grids, clips=1, segments=segments)
    features = [x.requires_grad_() for x in features]
    model = head()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = segmentation_loss(
            model(features, audio, (4 * side, 4 * side)),
            torch.zeros(1, segments, 4 * side, 4 * side, dtype=torch.bool),
        )
    del loss
    return sum(sizes.values()), max(sizes.values())


def test_memory_grows_with_pixels_and_frames_and_not_with_their_square():
    total, largest = saved_elements(side=16, segments=2)
    pixels = 2 * 16 * 16
    assert largest < pixels * 64  # the masks, 16 a pixel, and the features; a matrix of all pixels would have 512
    for side, segments, times in ((32, 2, 4), (16, 8, 4), (32, 8, 16)):
        more, larger = saved_elements(side, segments)
        assert more <= 1.01 * times * total  # the tokens' share does not grow with the grid
        assert larger <= times * largest


def test_loss_by_hand():
    """Over the frames that have a mask alone."""
    logits = torch.tensor([[[[0.0, 2.0]], [[9.0, -9.0]]], [[[-1.0, 0.5]], [[1.0, 1.0]]]])  # (2, 2, 1, 2)
    masks = torch.tensor([[[[0, 1]], [[0, 0]]], [[[1, 0]], [[0, 0]]]], dtype=torch.bool)
    has_mask = torch.tensor([[True, False], [True, True]])
    p = logits.sigmoid().double()
    frames = [
        -((1 - p[0, 0, 0, 0]).log() + p[0, 0, 0, 1].log()) / 2,
        -(p[1, 0, 0, 0].log() + (1 - p[1, 0, 0, 1]).log()) / 2,
        -((1 - p[1, 1, 0, 0]).log() + (1 - p[1, 1, 0, 1]).log()) / 2,
    ]
    dice = [
        1 - (2 * p[0, 0, 0, 1] + 1) / (p[0, 0].sum() + 1 + 1),
        1 - (2 * p[1, 0, 0, 0] + 1) / (p[1, 0].sum() + 1 + 1),
        1 - 1 / (p[1, 1].sum() + 1),
    ]
    expected, extra = sum(frames) / 3, sum(dice) / 3
    torch.testing.assert_close(segmentation_loss(logits, masks, has_mask), expected.float())
    with_dice = segmentation_loss(logits, masks, has_mask, dice_weight=0.5)
    torch.testing.assert_close(with_dice, (expected + 0.5 * extra).float())
    every = segmentation_loss(logits, masks)
    torch.testing.assert_close(every, segmentation_loss(logits, masks, torch.ones_like(has_mask)))
    assert every > expected  # the confident wrong frame counts here


def test_loss_without_any_mask_is_zero_and_has_a_graph():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    none = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    loss = segmentation_loss(logits, none, torch.zeros(2, 3, dtype=torch.bool), dice_weight=1.0)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_loss_is_in_float32_whatever_the_logits():
    """A frame of 512 x 512 pixels sums to more than float16 holds."""
    logits = torch.full((1, 1, 512, 512), 20.0, dtype=torch.float16, requires_grad=True)
    masks = torch.ones(1, 1, 512, 512, dtype=torch.bool)
    loss = segmentation_loss(logits, masks, dice_weight=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-6)  # log(1 + exp(-20)) = 2e-9
    assert logits.grad.isfinite().all()


def test_head_under_autocast_is_near_float32():
    inputs = scene()
    model = head()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*inputs, SIZES)
    # bfloat16 keeps 8 bits; the logits are sums of a few roundings of numbers near one.
    torch.testing.assert_close(half.float(), model(*inputs, SIZES), atol=0.05, rtol=0.05)


def test_decode_by_hand():
    masks, probabilities = decode_segmentation(torch.tensor([[[[-1.0, 0.0, 0.1]]]]))
    assert masks.tolist() == [[[[False, False, True]]]]  # one half is not above one half
    torch.testing.assert_close(probabilities, torch.tensor([[[[0.2689414, 0.5, 0.5249792]]]]))


def test_the_task_puts_them_together():
    features, audio = scene()
    out = AdapterOutput(torch.randn_like(audio), audio, torch.zeros(()), tuple(features))
    torch.manual_seed(0)
    task = SegmentationTask((6, 8, 10, 12), num_tokens=2, width=5, size=SIZES, hidden=8, dice_weight=0.5).eval()
    assert (task.name, task.monitor) == ("segmentation", "miou")
    batch = {"masks": torch.rand(2, 3, *SIZES) > 0.5, "has_mask": torch.tensor([[True, False, False]] * 2)}
    said = task(out, {})  # reads no target
    torch.testing.assert_close(said, task.head(features, audio, SIZES))
    expected = segmentation_loss(said, batch["masks"], batch["has_mask"], dice_weight=0.5)
    assert task.loss(said, batch) == expected
    decoded = task.decode(said)
    torch.testing.assert_close(decoded["probabilities"], said.sigmoid())
    assert torch.equal(decoded["masks"], said.sigmoid() > 0.5)
    metric = task.metric()
    task.update(metric, said, batch)
    first, truth = decoded["masks"][:, 0], batch["masks"][:, 0]
    iou = (first & truth).sum((1, 2)) / (first | truth).sum((1, 2))
    torch.testing.assert_close(metric.compute()[task.monitor], iou.mean())
    assert SegmentationTask((6,), num_tokens=2, width=5, hidden=8, scoring="avsbench").metric().mode == "avsbench"


def test_what_a_batch_lacks_is_said_and_has_mask_may_be_absent():
    torch.manual_seed(0)
    task = SegmentationTask((6, 8, 10, 12), num_tokens=2, width=5, size=SIZES, hidden=8).eval()
    said, masks = torch.randn(2, 3, *SIZES), torch.rand(2, 3, *SIZES) > 0.5
    with pytest.raises(
        ValueError, match=r"the batch has no 'masks', only 'visual', 'has_mask'; segmentation is learned"
    ):
        task.loss(said, {"visual": 0, "has_mask": 0})
    with pytest.raises(ValueError, match=r"the batch has no 'masks', only 'visual'; score a split whose frames have"):
        task.update(task.metric(), said, {"visual": 0})
    batch = {"masks": masks, "has_mask": torch.ones(2, 3, dtype=torch.bool)}
    assert task.loss(said, {"masks": masks}) == task.loss(said, batch)
    scores = [task.metric(), task.metric()]
    task.update(scores[0], said, {"masks": masks})
    task.update(scores[1], said, batch)
    assert scores[0].compute() == scores[1].compute()


def test_behind_an_adapter_the_loss_trains_both_and_no_backbone():
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=0)
    whisper = WhisperEncoder(
        WhisperConfig(
            num_mel_bins=8,
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=50,
        )
    )
    config = MettleConfig(num_tokens=2, width=8, rank=4, inject_stages="stages")
    adapter = MettleAdapter(vit, whisper, config).train()
    task = SegmentationTask((16,) * 4, num_tokens=2, width=8, size=32, hidden=8).train()
    frames, sound = torch.randn(2, 3, 3, 32, 32), torch.randn(2, 3, 8, 100)
    batch = {"masks": torch.rand(2, 3, 32, 32) > 0.5, "has_mask": torch.ones(2, 3, dtype=torch.bool)}
    task.loss(task(adapter(frames, sound), batch), batch).backward()
    trained = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"injection.to_keys", "injection.to_values", "injection.gates"} <= trained
    assert {"fusion_weights.0", "fusion_weights.1"} <= trained  # of what is seen and of what is heard
    assert all(p.grad.abs().sum() > 0 for p in task.parameters())
    assert all(p.grad is None for p in (*vit.parameters(), *whisper.parameters()))
    adapter.eval(), task.eval()
    with torch.no_grad():
        one, other = (task(adapter(frames, x), batch) for x in (sound, sound.roll(1, 1)))
    assert ((one - other).abs().amax((2, 3)) > 1e-4).all()  # every frame hears another second


def test_wrong_features_and_tokens_are_named():
    features, audio = scene()
    model = head()
    with pytest.raises(ValueError, match=r"there are no features.*inject_stages"):
        model((), audio, SIZES)
    with pytest.raises(ValueError, match=r"features are .*wanted \(B, T, h, w, D\)"):
        model(features[:3], audio, SIZES)
    with pytest.raises(ValueError, match=r"features are .*wanted \(B, T, h, w, D\)"):
        model([x[:1] for x in features], audio, SIZES)
    with pytest.raises(ValueError, match="wanted the finest grid first"):
        SegmentationHead((12, 10, 8, 6), num_tokens=2, width=5, hidden=8)(features[::-1], audio, SIZES)
    with pytest.raises(ValueError, match=r"wanted \(B, T, K, W\) with \(K, W\) = \(2, 5\)"):
        model(features, audio[..., :4], SIZES)
    with pytest.raises(ValueError, match="wanted 1 to 4"):
        head(widths=(6,) * 5)
    with pytest.raises(ValueError, match="multiples of 8 and of heads=8"):
        SegmentationHead((6,), num_tokens=2, width=5, hidden=20)


def test_wrong_masks_are_named():
    logits = torch.zeros(1, 2, 4, 4)
    with pytest.raises(TypeError, match=r"masks are torch.uint8.*anything but 0"):
        segmentation_loss(logits, torch.zeros(1, 2, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"logits are \(1, 2, 4, 4\), masks \(1, 2, 8, 8\)"):
        segmentation_loss(logits, torch.zeros(1, 2, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has_mask \(1, 3\)"):
        segmentation_loss(logits, torch.zeros(1, 2, 4, 4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))
