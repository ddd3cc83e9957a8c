"""Schedules: the same bits in each of them, on streams that wait for one another where a device has streams."""

import copy

import pytest
import torch

from fastav import MettleAdapter, MettleConfig, MoLTAdapter, MoLTConfig

SCHEDULES = ("serial", "fused", "streamed")


def inputs(layout="segment", device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sound = (2, 5, 8, 100) if layout == "segment" else (2, 8, 100)
    return [torch.randn(*shape, generator=generator).to(device) for shape in ((2, 5, 3, 64, 64), sound)]


def of_each_schedule(adapter):
    """Copies of an adapter that differ in their schedule alone."""
    adapters = {schedule: copy.deepcopy(adapter) for schedule in SCHEDULES}
    for schedule, one in adapters.items():
        one.config.schedule = schedule
    return adapters


def trained(adapter, steps, *given):
    """Outputs of each step and all parameters after it."""
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], 0.1)
    found = []
    for _ in range(steps):
        out = adapter(*given)
        optimizer.zero_grad()
        (out.visual.square().mean() + out.audio.square().mean() + out.aux_loss).backward()
        optimizer.step()
        found += [out.visual.detach().clone(), out.audio.detach().clone()]
    state = adapter.state_dict()
    gradients = [p.grad for p in adapter.parameters() if p.requires_grad]
    return found + gradients + list(state.values())


def distilled(monkeypatch):
    """Counts the taps of each distil call."""
    from fastav import ops

    counts, distill = [], ops.distill
    monkeypatch.setattr(ops, "distill", lambda taps, *a, **k: counts.append(len(taps)) or distill(taps, *a, **k))
    return counts


CONFIGS = [
    MettleConfig(),
    MettleConfig(audio_layout="clip", share="stage", residual=True),
    MettleConfig(branches=("preservation",), standardize=False, norm="rms"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["default", "clip", "preservation"])
def test_all_schedules_give_the_same_bits(swin, whisper, config, monkeypatch):
    torch.manual_seed(0)
    adapter = MettleAdapter(swin, whisper, config)
    adapter.distillation.standardization and adapter.distillation.standardization.measured.fill_(7)
    adapters = of_each_schedule(adapter)
    counts = distilled(monkeypatch)
    found = {schedule: trained(one, 3, *inputs(config.audio_layout)) for schedule, one in adapters.items()}
    assert len(found["serial"]) > 30
    for schedule in ("fused", "streamed"):
        assert all(map(torch.equal, found[schedule], found["serial"]))
    # Swin's two stages and the halves of Whisper's one; but all at once in a batch that is measured.
    in_portions = [2, 2, 1, 1]
    assert counts[:6] == [6] * 6
    assert counts[6:] == ([6] + 2 * in_portions if config.standardize else 3 * in_portions)


OTHERS = [
    MoLTConfig(),
    MoLTConfig(inject_stages="stages", layers={"visual": [0, 3], "audio": 1}, audio_layout="clip"),
    MettleConfig(inject_stages="stages"),
]


def built(swin, whisper, config):
    torch.manual_seed(0)
    return {MettleConfig: MettleAdapter, MoLTConfig: MoLTAdapter}[type(config)](swin, whisper, config).eval()


@pytest.mark.parametrize("config", OTHERS, ids=["molt", "molt dense", "mettle dense"])
def test_other_methods_and_injection_in_all_schedules(swin, whisper, config):
    found = {}
    for schedule, adapter in of_each_schedule(built(swin, whisper, config)).items():
        out = adapter(*inputs(config.audio_layout))
        parts = [out.visual, out.audio, *out.features, out.aux_loss]
        sum(part.square().mean() for part in parts).backward()
        found[schedule] = parts + [p.grad for p in adapter.parameters() if p.requires_grad]
    for schedule in ("fused", "streamed"):
        assert all(map(torch.equal, found[schedule], found["serial"]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("config", OTHERS, ids=["molt", "molt dense", "mettle dense"])
def test_other_methods_and_injection_do_not_race(swin, whisper, fake_cuda, config, schedule):
    adapter = built(swin, whisper, config)
    adapter.config.schedule = schedule
    with fake_cuda:
        out = adapter(*(x.mul(1) for x in inputs(config.audio_layout)))
        torch.cat([out.visual, out.audio]).sum() + sum(x.sum() for x in out.features)
    home = fake_cuda.home
    pooling = fake_cuda.streams_of("fastav::distill")
    if isinstance(config, MoLTConfig):  # across modalities it pools when both are there
        assert pooling.pop() == home
    assert (home in pooling) is (schedule != "streamed")
    if config.inject_stages is not None:
        assert fake_cuda.streams_of("fastav::inject") == [home]


def test_streamed_pools_while_the_backbone_goes_on(vit, whisper, monkeypatch):
    adapter = MettleAdapter(vit, whisper, MettleConfig(schedule="streamed")).eval()
    order, pool = [], adapter.distillation.pool
    for i, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda *_, i=i: order.append(f"block {i}"))
    monkeypatch.setattr(adapter.distillation, "pool", lambda *given: order.append("pool") or pool(*given))
    frames, sound = inputs()
    assert adapter(frames[..., :32, :32], sound).visual.requires_grad
    assert order == ["block 0", "pool", "block 1", "pool", "block 2", "pool", "pool", "pool"]


def test_streamed_brings_taps_to_one_dtype(vit, whisper):
    frames, sound = inputs()
    adapters = of_each_schedule(MettleAdapter(vit.bfloat16(), whisper).eval())
    out = {schedule: one(frames[..., :32, :32], sound) for schedule, one in adapters.items()}
    assert torch.equal(out["streamed"].visual, out["serial"].visual)
    assert torch.equal(out["streamed"].audio, out["serial"].audio)


def test_streamed_names_the_tap_that_does_not_divide(vit, whisper):
    adapter = MettleAdapter(vit, whisper, MettleConfig(audio_layout="clip", schedule="streamed")).eval()
    with pytest.raises(ValueError, match=r"audio_taps\[0\] has 50 tokens a clip, which do not divide into 3"):
        adapter(torch.randn(2, 3, 3, 32, 32), inputs("clip")[1])


@pytest.mark.parametrize("layout", ["segment", "clip"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_races(swin, whisper, fake_cuda, schedule, layout):
    adapter = MettleAdapter(swin, whisper, MettleConfig(schedule=schedule, audio_layout=layout)).eval()
    with fake_cuda:
        out = adapter(*(x.mul(1) for x in inputs(layout)))  # made on the current stream just before
        torch.cat([out.visual, out.audio]).sum()
    home = fake_cuda.home
    backbones = set(fake_cuda.streams_of("aten::native_layer_norm"))
    pooling = fake_cuda.streams_of("fastav::distill")
    assert set(fake_cuda.streams_of("fastav::project")) == set(fake_cuda.streams_of("fastav::fuse")) == {home}
    if schedule == "serial":
        assert backbones == {home}
    else:
        assert len(backbones) == 2
        assert home not in backbones
    if schedule == "streamed":
        assert len(pooling) == 4
        assert len({*pooling, *backbones, home}) == 4
    else:
        assert pooling == [home]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_capture_stays_on_one_stream(vit, whisper, fake_cuda, schedule):
    adapter = MettleAdapter(vit, whisper, MettleConfig(schedule=schedule)).eval()
    fake_cuda.capturing = True
    frames, sound = inputs()
    with fake_cuda:
        adapter(frames[..., :32, :32], sound)
    assert {stream for _, stream in fake_cuda.calls} == {fake_cuda.home}
    assert not fake_cuda.recorded


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_input_on_another_device_is_named(vit, whisper, fake_cuda, schedule):
    adapter = MettleAdapter(vit, whisper, MettleConfig(schedule=schedule)).eval()
    frames, sound = inputs()
    with pytest.raises(ValueError, match="the input is on meta, the backbone on cpu"):
        adapter(frames[..., :32, :32], sound.to("meta"))


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match=r"schedule is 'parallel', wanted one of \('fused', 'streamed', 'serial'\)"):
        MettleConfig(schedule="parallel")


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=["default", "clip", "preservation"])
def test_all_schedules_give_the_same_bits_on_a_gpu(swin, whisper, config):
    torch.manual_seed(0)
    adapters = of_each_schedule(MettleAdapter(swin, whisper, config).cuda())
    given = inputs(config.audio_layout, "cuda")
    # Twenty steps, of which the first eight measure; on streams the host runs ahead of all but the first.
    found = {schedule: trained(one, 20, *given) for schedule, one in adapters.items()}
    torch.cuda.synchronize()
    for schedule in ("fused", "streamed"):
        assert all(map(torch.equal, found[schedule], found["serial"]))


@needs_gpu
@pytest.mark.parametrize("schedule", ["fused", "streamed"])
def test_waiting_for_every_call_changes_nothing_on_a_gpu(swin, whisper, schedule, monkeypatch):
    """What a race would change: the same step with the device brought to rest around every fork."""
    adapter = MettleAdapter(swin, whisper, MettleConfig(schedule=schedule)).cuda().eval()
    given = inputs(device="cuda")
    ahead = [adapter(*given) for _ in range(5)]
    wait_stream = torch.cuda.Stream.wait_stream

    def at_rest(stream, other):
        torch.cuda.synchronize()
        wait_stream(stream, other)

    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", at_rest)
    rested = adapter(*given)
    torch.cuda.synchronize()
    for out in ahead:
        assert torch.equal(out.visual, rested.visual)
        assert torch.equal(out.audio, rested.audio)


@needs_gpu
def test_schedules_go_into_a_graph_on_a_gpu(swin, whisper):
    """Under capture all is serial, and the graph gives what the eager forward gives."""
    for schedule in SCHEDULES:
        adapter = MettleAdapter(swin, whisper, MettleConfig(schedule=schedule)).cuda().eval()
        given = inputs(device="cuda")
        with torch.no_grad():
            wanted = adapter(*given)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = adapter(*given)
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out.visual, wanted.visual)
