import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from fastav.standardization import TapStandardization


def taps(batches, widths=(6, 4)):
    generator = torch.Generator().manual_seed(0)
    return [
        [5 * torch.randn(3, 7 + d, d, generator=generator) + torch.arange(d) for d in widths] for _ in range(batches)
    ]


def pooled(batches, layer):
    rows = torch.cat([batch[layer].flatten(0, 1) for batch in batches])
    return F.layer_norm(rows, rows.shape[-1:], eps=1e-6)


def test_statistics_are_those_of_the_first_batches():
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=3)
    batches = taps(5)
    for batch in batches:
        if module.measuring:
            module.measure(batch)
    assert not module.measuring
    assert module.measured == 3
    for layer, channels in enumerate((slice(0, 6), slice(6, 10))):
        z = pooled(batches[:3], layer)
        # float32 sums over some hundred rows
        torch.testing.assert_close(module.mean[channels], z.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(module.inverse_std[channels], 1 / z.std(0, unbiased=False), rtol=1e-4, atol=0)
        weight, bias = (values[layer] for values in module())
        standard = z * weight + bias
        torch.testing.assert_close(standard.mean(0), torch.zeros_like(weight), rtol=0, atol=1e-5)
        torch.testing.assert_close(standard.std(0, unbiased=False), torch.ones_like(weight), rtol=1e-4, atol=0)


def test_measuring_resumes_after_loading():
    first = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=2)
    batches = taps(2)
    for batch in batches:
        first.measure(batch)
    second = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=2)
    second.load_state_dict(first.state_dict())
    assert not second.measuring
    for (_, again), (_, before) in zip(second(), first(), strict=True):  # weight, then bias
        assert torch.equal(again, before)
        assert before.any()


def test_shared_affine_is_spread_over_its_taps():
    module = TapStandardization((4, 6, 4), (0, 1, 0), "layer", 1e-6, batches=1)
    with torch.no_grad():
        module.gain.copy_(torch.arange(10.0))
        module.inverse_std.fill_(0.5)
    weight, _ = module()
    torch.testing.assert_close(weight[0], torch.arange(4.0) / 2)
    torch.testing.assert_close(weight[1], torch.arange(4.0, 10.0) / 2)
    assert torch.equal(weight[2], weight[0])


def _measure_one_rank(rank, path, out):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=1)
    module.measure(taps(2)[rank])
    torch.save(module.state_dict(), f"{out}{rank}")
    dist.destroy_process_group()


def test_processes_measure_together(tmp_path):
    mp.spawn(_measure_one_rank, (str(tmp_path / "meet"), str(tmp_path / "rank")), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]
    z = pooled(taps(2), 1)
    for state in ranks:
        torch.testing.assert_close(state["mean"][6:], z.mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(ranks[0]["inverse_std"], ranks[1]["inverse_std"])


def _measure_with_gaps(rank, path, out):
    """The second process has nothing of the first batch, none of the second, and the third is the second one's."""
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=2)
    first, last = taps(2)
    measuring = []
    for batch in [(first, ()), ((), ()), ((), last)]:
        module.measure(batch[rank])
        measuring.append(module.measuring)
    torch.save((module.state_dict(), measuring), f"{out}{rank}")
    dist.destroy_process_group()


def test_processes_without_clips_take_part(tmp_path):
    mp.spawn(_measure_with_gaps, (str(tmp_path / "meet"), str(tmp_path / "rank")), nprocs=2)
    alone = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=2)
    for batch in taps(2):
        alone.measure(batch)
    for rank in range(2):
        state, measuring = torch.load(tmp_path / f"rank{rank}")
        assert measuring == [True, True, False]  # the batch of nothing does not count
        for name, value in alone.state_dict().items():
            assert torch.equal(state[name], value), name  # with shares of one and zero not even rounded otherwise


def test_a_batch_of_nothing_changes_nothing():
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.measure(())
    assert module.measuring
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_a_huge_channel_with_a_small_spread(norm):
    """The case it is made for: a channel far from zero that hardly moves. Sums of squares would lose it in float32."""
    generator = torch.Generator().manual_seed(0)
    module = TapStandardization((64,), (0,), norm, 1e-6, batches=4)
    batches = [torch.randn(8, 50, 64, generator=generator) * 0.01 + 500 * (torch.arange(64) == 3) for _ in range(4)]
    for batch in batches:
        module.measure([batch])
    rows = torch.cat(batches).flatten(0, 1).double()
    z = F.layer_norm(rows, (64,), eps=1e-6) if norm == "layer" else rows
    wanted = torch.rsqrt(z.var(0, unbiased=False) + 1e-6)
    # The values themselves are rounded to float32: 500 to 3e-5, a three-hundredth of the spread.
    torch.testing.assert_close(module.inverse_std.double(), wanted, rtol=1e-2, atol=0)


def test_two_forwards_before_one_backward():
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=3)
    weights = []
    for batch in taps(2):
        module.measure(batch)
        weights.append(module()[0][0])
    (weights[0] * weights[1]).sum().backward()
    torch.testing.assert_close(module.gain.grad[:6], 2 * (weights[0] * weights[1]).detach())


def test_batches_that_are_not_finite_are_refused():
    module = TapStandardization((6, 4), (0, 1), "layer", 1e-6, batches=3)
    (batch,) = taps(1)
    batch[1][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="tap 1 holds NaN or infinite numbers"):
        module.measure(batch)
    assert module.measured == 0
    assert torch.isfinite(module.mean).all()


def test_what_moves_is_followed():
    """After the first batches each counts for one of as many; loading changes nothing of that."""
    module = TapStandardization((6,), (0,), "none", 1e-6, batches=2, follow=True)
    batches = [[scale * taps(5)[number][0]] for number, scale in enumerate((1.0, 1.0, 3.0, 5.0))]
    rows = [batch[0].flatten(0, 1).double() for batch in batches]
    first = torch.cat(rows[:2])
    mean, variance = first.mean(0), first.var(0, unbiased=False)
    for number, batch in enumerate(batches):
        assert module.measuring
        module.measure(batch)
        if number == 2:
            state = module.state_dict()
            module = TapStandardization((6,), (0,), "none", 1e-6, batches=2, follow=True)
            module.load_state_dict(state)
        if number >= 2:  # half of what was and half of the batch, as of two sets of points of one size
            variance = (variance + rows[number].var(0, unbiased=False)) / 2 + (mean - rows[number].mean(0)).square() / 4
            mean = (mean + rows[number].mean(0)) / 2
    torch.testing.assert_close(module.mean.double(), mean, rtol=1e-5, atol=1e-5)  # float32 sums of some hundred rows
    torch.testing.assert_close(module.variance.double(), variance, rtol=1e-5, atol=0)
    assert module.measured == 4
