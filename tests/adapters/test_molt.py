"""MoLTAdapter against the method's formulas, written down layer by layer and sample by sample in float64."""

import numpy as np
import pytest
import torch

from fastav import FrozenBackbone, MettleAdapter, MoLTAdapter, MoLTConfig, ops
from tests.adapters.test_mettle import EXACT, attention_pool, batch, distilled, rows_normalized, stir


def softmax(x, axis):
    weights = np.exp(x - x.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def expected(adapter, visual_taps, audio_taps):
    """Z of both modalities, router, fusion and orthogonality, by loops over layers and samples."""
    config, layers = adapter.config, len(visual_taps)
    p = {name: value.double().numpy() for name, value in adapter.state_dict().items()}
    taps = [tap.double().numpy() for tap in (*visual_taps, *audio_taps)]
    ends = np.cumsum([tap.shape[-1] for tap in taps])[:-1]
    for name in ("gain", "offset"):
        flat = p[f"distillation.standardization.{name}"]
        p[f"distillation.standardization.{name}"] = np.split(flat, ends)
    uni, start = [], 0
    for number, tap in enumerate(taps):
        t = distilled(p, tap, number, start, config)
        start += tap.shape[-1]
        uni.append(rows_normalized(t, "layer", config.eps) @ p[f"uni_weights.{number}"] + p[f"uni_biases.{number}"])
    summaries = [np.mean(uni[layers:], 0)] * layers + [np.mean(uni[:layers], 0)] * (len(taps) - layers)
    cross, start = [], 0
    for number, (tap, summary) in enumerate(zip(taps, summaries, strict=True)):
        d, found = tap.shape[-1], []
        mean, inverse_std = (p[f"distillation.standardization.{n}"][start : start + d] for n in ("mean", "inverse_std"))
        gain, offset = (p[f"distillation.standardization.{n}"][number] for n in ("gain", "offset"))
        start += d
        for x, s in zip(tap, summary, strict=True):
            x = (rows_normalized(x, "layer", config.eps) - mean) * inverse_std * gain + offset
            condition = rows_normalized(s, "layer", config.eps) @ p[f"cross_conditions.{number}"]
            found.append(attention_pool(x, p[f"cross_tokens.{number}"] + condition))
        found = rows_normalized(np.stack(found), "layer", config.eps)
        cross.append(found @ p[f"cross_weights.{number}"] + p[f"cross_biases.{number}"])
    router, mixed = [], []
    for number, (u, x) in enumerate(zip(uni, cross, strict=True)):
        r = softmax(np.concatenate([u.mean(1), x.mean(1)], -1) @ p["routers"][number].reshape(-1, 2), -1)
        if config.router == "hard":
            r = (r == r.max(-1, keepdims=True)).astype(float)
        router.append(r)
        mixed.append(r[:, 0, None, None] * u + r[:, 1, None, None] * x)
    fused = []
    for part, gate in zip((mixed[:layers], mixed[layers:]), p["gates"].T, strict=True):
        part = np.stack(part)
        shares = softmax(part @ gate, 0)
        fused.append(((shares[..., None] * part).sum(0), np.moveaxis(shares, 0, -1)))
    penalties = []
    for u, x in zip(uni, cross, strict=True):
        for t in np.concatenate([u, x], 1):  # the tokens of both kinds
            unit = t / np.linalg.norm(t, axis=-1, keepdims=True)
            k = len(t)
            penalties.append(((unit @ unit.T - np.eye(k)) ** 2).sum() / (k * (k - 1)))
    return fused, np.stack(router, 1), np.mean(penalties)


@pytest.mark.parametrize(
    "config",
    [MoLTConfig(), MoLTConfig(router="hard", num_tokens=3, width=20, aux_weight=2.0), MoLTConfig(residual=True)],
    ids=str,
)
def test_formulas(swin, whisper, config):
    adapter = MoLTAdapter(swin, whisper, config).double().eval()
    stir(adapter)
    frames, mel = batch(size=64)
    taps = adapter.visual(frames.flatten(0, 1)), adapter.audio(mel.flatten(0, 1))
    out = adapter.forward_taps(*taps, num_segments=3)
    ((visual, visual_shares), (audio, audio_shares)), router, penalty = expected(adapter, *taps)
    for got, wanted in (
        (out.visual, visual),
        (out.audio, audio),
        (out.router, router),
        (out.fusion[0], visual_shares),
        (out.fusion[1], audio_shares),
    ):
        np.testing.assert_allclose(got.flatten(0, 1).detach().numpy(), wanted, **EXACT)
    np.testing.assert_allclose(out.aux_loss.item(), config.aux_weight * penalty, **EXACT)
    assert out.visual.shape == (2, 3, config.num_tokens, config.width)
    assert out.router.shape == (2, 3, 6, 2)  # Swin's four blocks and Whisper's two
    assert [shares.shape[-1] for shares in out.fusion] == [4, 2]
    whole = adapter(frames, mel)
    assert torch.equal(whole.visual, out.visual)
    assert torch.equal(whole.audio, out.audio)


def test_layers_of_both_modalities_are_two_distill_calls(vit, whisper, monkeypatch):
    calls, distill = [], ops.distill
    monkeypatch.setattr(ops, "distill", lambda *a, **k: calls.append([q.ndim for q in a[1]]) or distill(*a, **k))
    MoLTAdapter(vit, whisper).eval()(*batch())
    # Shared queries within the modality, queries of each sample across modalities.
    assert calls == [[2] * 5, [3] * 5]


def test_the_default_taps_late_layers(whisper):
    import timm

    deep = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=20, num_heads=2, num_classes=0)
    shallow = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=8, depth=6, num_heads=2)
    assert MoLTAdapter(deep, whisper).visual.tap_names == tuple(f"blocks.{i}" for i in range(15, 20))  # a quarter
    assert MoLTAdapter(shallow, whisper).visual.tap_names == tuple(f"blocks.{i}" for i in range(2, 6))  # at least 4
    assert MoLTAdapter(FrozenBackbone(shallow, [0, 5]), whisper).distilled["visual"] == (
        0,
        1,
    )  # what was chosen by hand


def test_each_modality_hears_of_the_other(vit, whisper):
    """Another sound changes the visual tokens, through the cross-modal queries and nothing else."""
    torch.manual_seed(0)
    adapter = MoLTAdapter(vit, whisper).eval()
    frames, mel = batch()
    one, other = adapter(frames, mel), adapter(frames, mel.flip(0))
    assert not torch.allclose(one.visual, other.visual, atol=1e-3)
    with torch.no_grad():
        for condition in adapter.cross_conditions:
            condition.zero_()
    one, other = adapter(frames, mel), adapter(frames, mel.flip(0))
    assert torch.equal(one.visual, other.visual)


def test_hard_router_has_the_soft_ones_gradient(vit, whisper):
    grads = {}
    for kind in ("soft", "hard"):
        torch.manual_seed(0)
        adapter = MoLTAdapter(vit, whisper, MoLTConfig(router=kind, aux_weight=0)).eval()
        with torch.no_grad():
            adapter.routers.normal_()
        out = adapter(*batch())
        grads[kind] = torch.autograd.grad(out.router[..., 0].sum(), adapter.routers)[0]
        if kind == "hard":
            assert set(out.router.detach().round(decimals=6).unique().tolist()) == {0.0, 1.0}
    assert grads["soft"].abs().max() > 0.01
    # The straight-through form adds and takes away the softmax in float32.
    torch.testing.assert_close(grads["hard"], grads["soft"], rtol=1e-6, atol=1e-7)


def test_router_and_gates_start_undecided(vit, whisper):
    torch.manual_seed(0)
    out = MoLTAdapter(vit, whisper).eval()(*batch())
    assert torch.equal(out.router, torch.full((2, 3, 5, 2), 0.5))
    torch.testing.assert_close(out.fusion[0], torch.full((2, 3, 4, 3), 1 / 3))
    torch.testing.assert_close(out.fusion[1], torch.full((2, 3, 4, 2), 1 / 2))


def test_no_weight_decay(vit, whisper):
    adapter = MoLTAdapter(vit, whisper)
    names = adapter.no_weight_decay()
    assert sum("cross_tokens" in name for name in names) == sum("meta_tokens" in name for name in names) == 5
    assert "gates" in names
    assert not any("weights" in name or "routers" in name or "conditions" in name for name in names)


def test_autocast_changes_nothing(vit, whisper):
    torch.manual_seed(0)
    adapter = MoLTAdapter(vit, whisper).eval()
    stir(adapter)
    taps = adapter.visual(batch()[0].flatten(0, 1)), adapter.audio(batch()[1].flatten(0, 1))
    plain = adapter.forward_taps(*taps, num_segments=3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = adapter.forward_taps(*taps, num_segments=3)
    for name in ("visual", "audio", "aux_loss", "router"):
        assert torch.equal(getattr(plain, name), getattr(cast, name)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [({"router": "sparse"}, "router is 'sparse'"), ({"aux_weight": -1}, "aux_weight is -1, wanted a number of at lea")],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MoLTConfig(**options)


def test_compiles_whole(vit, whisper):
    torch.manual_seed(0)
    adapter = MoLTAdapter(vit, whisper, MoLTConfig(inject_stages="stages")).eval()
    stir(adapter)
    taps = adapter.visual(batch()[0].flatten(0, 1)), adapter.audio(batch()[1].flatten(0, 1))
    compiled = torch.compile(adapter.forward_taps, fullgraph=True, backend="aot_eager")
    eager, fast = adapter.forward_taps(*taps, num_segments=3), compiled(*taps, num_segments=3)
    trained = [p for p in adapter.parameters() if p.requires_grad]

    def loss(out):
        return out.visual.square().sum() + out.audio.sum() + out.aux_loss + out.features[0].square().sum()

    # The same arithmetic in float32, with sums in other orders.
    torch.testing.assert_close(fast.visual, eager.visual, rtol=1e-5, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(loss(out), trained) for out in (fast, eager)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_saved_and_read_back(vit, whisper, tmp_path):
    torch.manual_seed(0)
    adapter = MoLTAdapter(vit, whisper, MoLTConfig(router="hard", num_tokens=2)).eval()
    stir(adapter)
    adapter.save_pretrained(tmp_path)
    again = MoLTAdapter.from_pretrained(tmp_path, visual=vit, audio=whisper)
    assert again.config == adapter.config
    for one, other in zip(adapter(*batch())[:2], again(*batch())[:2], strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="of the method 'molt', MettleConfig is 'mettle'"):
        MettleAdapter.from_pretrained(tmp_path, visual=vit, audio=whisper)
