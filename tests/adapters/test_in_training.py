"""What training frameworks do with a module: copy it, pickle it, scale its gradients, run it on several processes."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastav import MettleAdapter, create_adapter


@pytest.fixture
def adapter(vit, whisper):
    torch.manual_seed(0)
    return MettleAdapter(vit, whisper)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(2, 3, 3, 32, 32, generator=generator)
    return frames, torch.randn(2, 3, 8, 100, generator=generator)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_whole(adapter, duplicate):
    adapter(*inputs())  # one batch measured
    other = duplicate(adapter)
    assert torch.equal(other.eval()(*inputs()).visual, adapter.eval()(*inputs()).visual)
    other.load_state_dict(adapter.state_dict())
    assert other.distillation.standardization.measuring


def test_aux_loss_is_the_callers_own(adapter):
    loss = adapter(*inputs()).aux_loss
    loss += 3
    assert adapter(*inputs()).aux_loss == 0


def test_two_forwards_before_one_backward(adapter):
    """As in a contrastive loss, while the taps are still being measured."""
    one, two = adapter(*inputs(0)), adapter(*inputs(1))
    (one.visual * two.visual).sum().backward()
    assert all(p.grad is not None for p in adapter.distillation.meta_tokens)


def test_gradient_scaler(adapter):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], 0.1)
    before = adapter.fusion_weights[0].detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = adapter(*inputs()).visual.square().mean()
    plain = torch.autograd.grad(loss, adapter.fusion_weights[0], retain_graph=True)[0]
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(adapter.fusion_weights[0], before - 0.1 * plain)


def test_non_reentrant_checkpointing(adapter):
    adapter.eval()
    taps = adapter.visual(inputs()[0].flatten(0, 1)), adapter.audio(inputs()[1].flatten(0, 1))
    trained = [p for p in adapter.parameters() if p.requires_grad]

    def run(visual, audio):
        out = adapter.forward_taps(visual, audio, num_segments=3)
        return out.visual.square().sum() + out.audio.sum()

    wanted = torch.autograd.grad(run(*taps), trained)
    again = torch.utils.checkpoint.checkpoint(run, *taps, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(again, trained), wanted, strict=True):
        assert torch.equal(a, b)


def _step(rank, world, path, vit, whisper, config):
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = create_adapter(config.pop("name"), visual=vit, audio=whisper, standardize_batches=1, **config)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    frames, mel = inputs()
    if world > 1:
        frames, mel = frames[rank : rank + 1], mel[rank : rank + 1]
    out = wrapped(frames, mel)
    dense = sum(x.square().mean() for x in out.features)
    (out.visual.square().mean() + out.audio.square().mean() + out.aux_loss + dense).backward()
    torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, f"{path}/{world}{rank}")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "config", [{"name": "mettle"}, {"name": "molt"}, {"name": "molt", "inject_stages": "stages"}], ids=str
)
def test_two_processes_get_the_gradients_of_one(vit, whisper, tmp_path, config):
    path = str(tmp_path)
    mp.spawn(_step, (2, path, vit, nn.Module.share_memory(whisper), config), nprocs=2)
    _step(0, 1, path, vit, whisper, config)
    alone, first, second = (torch.load(f"{path}/{name}") for name in ("10", "20", "21"))
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name])
        # float32 sums in another order
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-5)


def test_compiles_whole_in_training(adapter):
    adapter.distillation.standardization.measured.fill_(8)
    adapter.load_state_dict(adapter.state_dict())
    taps = adapter.visual(inputs()[0].flatten(0, 1)), adapter.audio(inputs()[1].flatten(0, 1))
    compiled = torch.compile(adapter.forward_taps, fullgraph=True, backend="aot_eager")
    out, eager = compiled(*taps, num_segments=3), adapter.forward_taps(*taps, num_segments=3)
    torch.testing.assert_close(out.audio, eager.audio, rtol=1e-5, atol=1e-5)


def test_accepts_what_trainers_call(adapter):
    adapter.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        adapter.merge_adapter()
