"""MettleAdapter against the method's formulas, written down layer by layer and head by head in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fastav
from fastav import FrozenBackbone, MettleAdapter, MettleConfig
from fastav.adapters.distillation import LayerCentricDistillation

# float64 results of two orders of summation: some hundred roundings of 1e-16 on numbers of order one.
EXACT = {"rtol": 1e-10, "atol": 1e-11}


def batch(clips=2, segments=3, size=32):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(clips, segments, 3, size, size, generator=generator)
    return frames, torch.randn(clips, segments, 8, 100, generator=generator)


def stir(module):
    """Random values everywhere, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("standardization.mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            if name.endswith("standardization.inverse_std"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    module.load_state_dict(module.state_dict())  # what follows from the statistics is made when they are loaded


def rows_normalized(x, norm, eps):
    if norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) if norm != "none" else x


def attention_pool(x, q):
    """x (N, D), q (K, D) -> (K, D)."""
    scores = q @ x.T / math.sqrt(x.shape[1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ x


def activate(x, activation):
    if activation == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return np.maximum(x, 0) if activation == "relu" else x


def distilled(parameters, tap, group, start, config):
    """T_l of one tap (B, N, D), literally: two branches and a residual."""
    d = tap.shape[-1]
    width, heads = config.rank // config.heads, config.heads
    m = parameters[f"distillation.meta_tokens.{group}"]
    out = []
    for x in tap:
        x = rows_normalized(x, config.norm, config.eps)
        if config.standardize:
            mean = parameters["distillation.standardization.mean"][start : start + d]
            inverse_std = parameters["distillation.standardization.inverse_std"][start : start + d]
            gain, offset = (parameters[f"distillation.standardization.{n}"][group] for n in ("gain", "offset"))
            x = (x - mean) * inverse_std * gain + offset
        t = np.zeros_like(m)
        if config.residual:
            t = t + m
        if "preservation" in config.branches:
            t = t + attention_pool(x, m)
        if "adaptation" in config.branches:
            wq, wk, wv, wo = (parameters[f"distillation.to_{n}.{group}"] for n in ("query", "key", "value", "output"))
            inner = []
            for h in range(heads):
                own = slice(h * width, (h + 1) * width)
                inner.append(attention_pool(x, m @ wq[:, own] @ wk[own]) @ wv[:, own])
            t = t + activate(np.concatenate(inner, -1), config.activation) @ wo
        out.append(t)
    return np.stack(out)


def expected(adapter, visual_taps, audio_taps):
    config = adapter.config
    parameters = {name: value.double().numpy() for name, value in adapter.state_dict().items()}
    widths = adapter.visual.widths + adapter.audio.widths
    if config.standardize:  # cut the flat affine into its groups
        sizes = [dict(zip(adapter.groups, widths, strict=True))[g] for g in sorted(set(adapter.groups))]
        for name in ("gain", "offset"):
            flat = parameters[f"distillation.standardization.{name}"]
            parameters[f"distillation.standardization.{name}"] = np.split(flat, np.cumsum(sizes)[:-1])
    mapped, start = [], 0
    for tap, group in zip((*visual_taps, *audio_taps), adapter.groups, strict=True):
        t = distilled(parameters, tap.double().numpy(), group, start, config)
        start += tap.shape[-1]
        u, b = parameters[f"fusion_weights.{group}"], parameters[f"fusion_biases.{group}"]
        mapped.append(rows_normalized(t, config.norm, config.eps) @ u + b)
    layers = len(visual_taps)
    return np.mean(mapped[:layers], 0), np.mean(mapped[layers:], 0)


CONFIGS = [
    MettleConfig(),
    MettleConfig(num_tokens=1, rank=6, heads=3, width=20, activation=None),
    MettleConfig(branches=("preservation",), norm="rms"),
    MettleConfig(branches=("preservation",), residual=False),
    MettleConfig(branches=("adaptation",), residual=False, activation="relu", heads=1),
    MettleConfig(branches=("adaptation",), standardize=False),
    MettleConfig(residual=False, norm="none", num_tokens=2),
    MettleConfig(share="stage"),
    MettleConfig(share="width", num_tokens=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.branches}-{c.residual}-{c.norm}-{c.share}-{c.heads}")
def test_formulas(swin, whisper, config):
    adapter = MettleAdapter(swin, whisper, config)
    adapter = adapter.double().eval()
    stir(adapter)
    frames, mel = batch(size=64)
    visual_taps, audio_taps = adapter.visual(frames.flatten(0, 1)), adapter.audio(mel.flatten(0, 1))
    assert {tap.dtype for tap in visual_taps + audio_taps} == {torch.float64}
    out = adapter.forward_taps(visual_taps, audio_taps, num_segments=3)
    visual, audio = expected(adapter, visual_taps, audio_taps)
    shape = (2, 3, config.num_tokens, config.width)
    np.testing.assert_allclose(out.visual.detach().numpy(), visual.reshape(shape), **EXACT)
    np.testing.assert_allclose(out.audio.detach().numpy(), audio.reshape(shape), **EXACT)
    assert out.aux_loss.item() == 0
    whole = adapter(frames, mel)
    assert torch.equal(whole.visual, out.visual)
    assert torch.equal(whole.audio, out.audio)


@pytest.mark.parametrize(
    ("groups", "options"),
    [
        ((0, 1, 2), {}),
        ((0, 0, 1), {}),  # two taps share
        ((0, 0, 1), {"residual": True}),
        ((0, 1, 2), {"residual": True, "branches": ("preservation",)}),
        ((0, 1, 2), {"residual": True, "branches": ("adaptation",), "standardize": False}),
        ((0, 1, 2), {"branches": ("adaptation",), "heads": 4}),
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(groups, options):
    torch.manual_seed(0)
    config = MettleConfig(num_tokens=2, rank=4, **options)
    module = LayerCentricDistillation((5, 5, 3), groups, config)
    module = module.double().eval()
    stir(module)
    taps = [torch.randn(2, n, d, dtype=torch.float64) for n, d in ((4, 5), (3, 5), (6, 3))]
    names = [name for name, _ in module.named_parameters()]

    def run(*values):
        return tuple(torch.func.functional_call(module, dict(zip(names, values, strict=True)), (taps,)))

    assert torch.autograd.gradcheck(run, tuple(module.parameters()))


def test_adaptation_starts_as_nothing(vit, whisper):
    torch.manual_seed(0)
    both = MettleAdapter(vit, whisper).eval()
    alone = MettleAdapter(vit, whisper, MettleConfig(branches=("preservation",))).eval()
    alone.load_state_dict(both.state_dict(), strict=False)
    one, other = both(*batch()), alone(*batch())
    torch.testing.assert_close(one.visual, other.visual)


def test_trains_without_touching_the_backbones(vit, whisper):
    torch.manual_seed(0)
    adapter = MettleAdapter(vit, whisper)
    before = {name: value.clone() for name, value in adapter.named_parameters()}
    head = nn.Linear(2 * 4 * 128, 5)
    optimizer = torch.optim.AdamW([p for p in [*adapter.parameters(), *head.parameters()] if p.requires_grad], 1e-3)
    target = torch.tensor([[0, 1, 2], [3, 4, 0]])
    losses = []
    for _ in range(25):
        out = adapter(*batch())
        tokens = torch.cat([out.visual, out.audio], -2)
        loss = nn.functional.cross_entropy(head(tokens.flatten(2)).flatten(0, 1), target.flatten()) + out.aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in adapter.named_parameters():
        frozen = name.startswith(("visual.", "audio."))
        assert parameter.requires_grad is not frozen, name
        assert (parameter.grad is None) is frozen, name
        assert torch.equal(parameter, before[name]) is frozen, name


def graph_leaves(*outputs):
    """The ids of all tensors that gradients of the outputs end in."""
    seen, queue, leaves = set(), [x.grad_fn for x in outputs], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        queue.extend(parent for parent, _ in node.next_functions)
    return leaves


def test_graph_ends_at_the_taps(vit, whisper):
    adapter = MettleAdapter(vit, whisper)
    taps = adapter.visual(batch()[0].flatten(0, 1))
    assert all(tap.grad_fn is None and not tap.requires_grad for tap in taps)
    out = adapter(*batch())
    assert graph_leaves(out.visual, out.audio) == {id(p) for p in adapter.parameters() if p.requires_grad}


def test_saves_taps_and_little_else_for_backward(vit, whisper):
    """What the side branch keeps for backward does not grow with the number of tokens, the taps themselves apart."""
    adapter = MettleAdapter(vit, whisper)

    def saved(tokens):
        taps = [torch.randn(6, tokens, 48) for _ in range(3)], [torch.randn(6, tokens, 32) for _ in range(2)]
        own = {tap.data_ptr() for tap in (*taps[0], *taps[1])}
        storages = {}

        def pack(t):
            if t.data_ptr() not in own:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = adapter.forward_taps(*taps, num_segments=3)
        assert out.visual.requires_grad
        return sum(storages.values())

    saved(7)  # measures the taps, which the first batches do
    adapter.eval()
    assert saved(7) == saved(70)


def test_clip_layout_is_the_segment_layout_cut(vit, whisper):
    torch.manual_seed(0)
    clip = MettleAdapter(vit, whisper, MettleConfig(audio_layout="clip")).eval()
    frames, _ = batch(segments=5)
    mel = torch.randn(2, 8, 100)
    out = clip(frames, mel)
    segment = MettleAdapter(vit, whisper).eval()
    segment.load_state_dict(clip.state_dict())
    spans = [tap.unflatten(1, (5, 10)).flatten(0, 1) for tap in clip.audio(mel)]
    cut = segment.forward_taps(clip.visual(frames.flatten(0, 1)), spans, num_segments=5)
    assert torch.equal(out.audio, cut.audio)
    assert out.audio.shape == (2, 5, 4, 128)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(vit, whisper, backend):
    adapter = MettleAdapter(vit, whisper).eval()
    taps = adapter.visual(batch()[0].flatten(0, 1)), adapter.audio(batch()[1].flatten(0, 1))
    compiled = torch.compile(adapter.forward_taps, fullgraph=True, backend=backend)
    eager, fast = adapter.forward_taps(*taps, num_segments=3), compiled(*taps, num_segments=3)
    # The same arithmetic in float32, with the elementwise parts fused.
    torch.testing.assert_close(fast.visual, eager.visual, rtol=1e-5, atol=1e-5)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(eager.visual.square().sum() + eager.audio.sum(), trained)
    got = torch.autograd.grad(fast.visual.square().sum() + fast.audio.sum(), trained)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_op_call_depends_on_the_number_of_taps(vit, whisper, monkeypatch):
    """The calls of the side branch: three projections, one distil, one projection out, two fusions."""
    calls = []
    for name in ("distill", "project", "fuse"):
        function = getattr(fastav.ops, name)
        monkeypatch.setattr(
            fastav.ops, name, lambda *a, _f=function, _n=name, **k: calls.append((_n, len(a[0]))) or _f(*a, **k)
        )
    for taps in ("all", 1):
        MettleAdapter(FrozenBackbone(vit, taps), FrozenBackbone(whisper, taps)).eval()(*batch())
    names = [name for name, _ in calls]
    assert names[:7] == ["project", "project", "distill", "project", "project", "fuse", "fuse"] == names[7:]
    assert calls[2] == ("distill", 5)
    assert calls[9] == ("distill", 2)


def test_wrong_inputs_are_named(vit, whisper):
    adapter = MettleAdapter(vit, whisper)
    frames, mel = batch()
    with pytest.raises(ValueError, match=r"visual_input has shape \(6, 3, 32, 32\), wanted \(B, T, 3, H, W\)"):
        adapter(frames.flatten(0, 1), mel)
    with pytest.raises(ValueError, match=r"audio_input has shape .* wanted \(2, 3\) first"):
        adapter(frames, mel[:, :2])
    taps = adapter.visual(frames.flatten(0, 1)), adapter.audio(mel.flatten(0, 1))
    with pytest.raises(ValueError, match=r"visual_taps holds 2 taps, wanted 3: \('blocks.0', 'blocks.1', 'blocks.2'\)"):
        adapter.forward_taps(taps[0][:2], taps[1], num_segments=3)
    with pytest.raises(ValueError, match="6 segments, which num_segments=4 does not divide"):
        adapter.forward_taps(*taps, num_segments=4)
    with pytest.raises(ValueError, match="audio_taps hold 3 segments and visual_taps 6"):
        adapter.forward_taps(taps[0], [tap[:3] for tap in taps[1]], num_segments=3)
    clip = MettleAdapter(vit, whisper, MettleConfig(audio_layout="clip"))
    with pytest.raises(ValueError, match=r"audio_taps\[0\] has 50 tokens a clip, which do not divide into 3"):
        clip(frames, mel[:, 0])


def test_clip_layout_refuses_tokens_that_are_not_in_time_order(vit):
    from transformers import ASTConfig, ASTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ast = ASTModel(ASTConfig(**sizes, max_length=100, num_mel_bins=32))
    with pytest.raises(ValueError, match="not in order of time; use audio_layout='segment'"):
        MettleAdapter(vit, ast, MettleConfig(audio_layout="clip"))


def test_half_precision_backbone_keeps_float32_adapter(vit, whisper):
    adapter = MettleAdapter(vit.bfloat16(), whisper)
    out = adapter(*batch())
    assert adapter.visual(batch()[0].flatten(0, 1))[0].dtype == torch.bfloat16
    assert out.visual.dtype == torch.float32
    assert {p.dtype for p in adapter.parameters() if p.requires_grad} == {torch.float32}
    out.visual.sum().backward()


def test_autocast_changes_nothing(vit, whisper):
    adapter = MettleAdapter(vit, whisper).eval()
    taps = adapter.visual(batch()[0].flatten(0, 1)), adapter.audio(batch()[1].flatten(0, 1))
    plain = adapter.forward_taps(*taps, num_segments=3)
    with torch.autocast("cpu", torch.bfloat16):
        cast = adapter.forward_taps(*taps, num_segments=3)
    assert torch.equal(plain.visual, cast.visual)


def test_parameter_count_and_report(vit, whisper, capsys):
    adapter = MettleAdapter(vit, whisper)
    k, r, w = 4, 16, 128
    own = sum((k + 4 * r + 2 + w) * d + w for d in (48, 48, 48, 32, 32))
    frozen = sum(p.numel() for p in vit.parameters()) + sum(p.numel() for p in whisper.parameters())
    assert adapter.get_nb_trainable_parameters() == (own, own + frozen)
    adapter.print_trainable_parameters()
    total = own + frozen
    line = f"trainable params: {own:,d} || all params: {total:,d} || trainable%: {100 * own / total:.4f}"
    assert capsys.readouterr().out.strip() == line
    assert adapter.get_base_model() == (vit, whisper)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapter.merge_and_unload()


def test_no_weight_decay_names_exist(vit, whisper):
    adapter = MettleAdapter(vit, whisper)
    names = adapter.no_weight_decay()
    parameters = dict(adapter.named_parameters())
    assert names <= set(parameters)
    assert sum("meta_tokens" in name for name in names) == 5
    assert not any("to_query" in name or "fusion_weights" in name for name in names)
