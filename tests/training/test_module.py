"""What the Lightning module trains, and what it writes down."""

import math

import pytest
import torch
from torch import nn

from fastav import AdapterOutput, MettleAdapter, MettleConfig
from fastav.tasks import LocalizationTask
from fastav.training.config import OptimizerConfig, TrainerConfig
from fastav.training.errors import RunError
from fastav.training.module import AudioVisualModule, parameter_groups
from fastav.training.run import make_trainer

timm = pytest.importorskip("timm")


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 2, "embed_dim": 12, "num_heads": 2}
    backbones = (timm.create_model("vit_tiny_patch16_224", **options) for _ in range(2))
    return MettleAdapter(*backbones, MettleConfig(num_tokens=2, width=16, rank=4, standardize=False))


def make_task():
    torch.manual_seed(1)
    return LocalizationTask(3, num_tokens=2, width=16, dropout=0.0)


def clips(count):
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "id": str(number),
            "visual": torch.randn(2, 3, 32, 32, generator=generator),
            "audio": torch.randn(2, 3, 32, 32, generator=generator),
            "labels": torch.randint(4, (2,), generator=generator),
        }
        for number in range(count)
    ]


def loader(count, batch):
    return torch.utils.data.DataLoader(clips(count), batch_size=batch)


class Gradients:
    """What the optimizer was given at each step."""

    def __init__(self):
        from lightning.pytorch import Callback

        class Keep(Callback):
            def on_before_optimizer_step(_, trainer, module, optimizer):  # noqa: N805
                self.steps.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
                self.rates.append(optimizer.param_groups[0]["lr"])

        self.steps, self.rates, self.callback = [], [], Keep()


def fit(adapter, batches, **options):
    kept = Gradients()
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig(**options))
    cpu = TrainerConfig(accelerator="cpu", devices=1)
    trainer = make_trainer(cpu, module.optimizer_config, [kept.callback])
    trainer.fit(module, batches)
    return kept, module


def test_accumulated_batches_give_the_gradient_of_one_large_batch(adapter):
    """The peers zeroed the gradient after each batch and lost all but the last."""
    small, _ = fit(adapter, loader(8, 2), epochs=1, lr=0.0, weight_decay=0.0, clip_norm=0.0, accumulate=4)
    large, _ = fit(adapter, loader(8, 8), epochs=1, lr=0.0, weight_decay=0.0, clip_norm=0.0)
    assert len(small.steps) == len(large.steps) == 1
    assert len(small.steps[0]) == len(large.steps[0])
    for one, other in zip(small.steps[0], large.steps[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)  # float32 sums in another order
    assert sum(float(gradient.abs().sum()) for gradient in large.steps[0]) > 0.1


def test_the_gradient_is_clipped_to_its_norm(adapter):
    before, module = fit(adapter, loader(4, 4), epochs=1, clip_norm=1e-3)
    assert torch.cat([gradient.flatten() for gradient in before.steps[0]]).norm() > 0.1
    after = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert after.norm().item() == pytest.approx(1e-3, rel=1e-3)  # clipping adds 1e-6 to the norm it divides by


def test_the_rate_rises_and_falls_to_zero(adapter):
    kept, _ = fit(adapter, loader(4, 2), epochs=5, lr=0.4, warm_up=0.2)  # 10 steps, 2 of warm-up
    by_hand = [0.2] + [0.4 * (0.5 + 0.5 * math.cos(math.pi * step / 10)) for step in range(1, 10)]
    assert kept.rates == pytest.approx(by_hand)


def test_weight_decay_spares_all_but_matrices_and_what_the_adapter_names(adapter):
    task = make_task()
    decayed, spared = parameter_groups(adapter, task, 0.3)
    named = dict(adapter.named_parameters())
    biases = {id(p) for p in task.parameters() if p.ndim < 2}
    assert biases
    assert {id(p) for p in spared["params"]} == {id(named[name]) for name in adapter.no_weight_decay()} | biases
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    trainable = [p for p in (*adapter.parameters(), *task.parameters()) if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trainable)


def test_backbones_stay_frozen_and_in_eval_mode(adapter):
    before = {name: value.clone() for name, value in adapter.visual.module.state_dict().items()}
    _, module = fit(adapter, loader(4, 2), epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in adapter.visual.module.state_dict().items())
    module.train()
    assert not any(child.training for child in adapter.visual.module.modules())


class Weighted(nn.Module):
    """An adapter with a term of its own."""

    def __init__(self, adapter):
        super().__init__()
        self.adapter = adapter

    def forward(self, visual, audio):
        return self.adapter(visual, audio)._replace(aux_loss=torch.tensor(2.5))


def test_an_adapters_own_term_is_added_and_logged_apart(adapter):
    module = AudioVisualModule(Weighted(adapter), make_task(), OptimizerConfig())
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    batch = next(iter(loader(4, 4)))
    total = module.training_step(batch, 0)
    out = adapter(batch["visual"], batch["audio"])
    assert isinstance(out, AdapterOutput)
    loss = module.task.loss(module.task(out, batch), batch)
    torch.testing.assert_close(total, loss + 2.5)
    module.on_train_epoch_end()
    torch.testing.assert_close(logged["train/loss"], loss.detach())
    assert logged["train/aux_loss"] == 2.5


def test_a_loss_that_is_no_number_is_logged(adapter):
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig())
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    for number, batch in enumerate(loader(8, 4)):
        batch["visual"][0] += math.inf * number
        module.training_step(batch, number)
    module.on_train_epoch_end()
    assert logged["train/loss"].isnan()


def test_spoilt_weights_are_not_scored(adapter):
    """Nothing else would tell: a NaN is no class that wins, so that the first one does."""
    with torch.no_grad():
        next(p for p in adapter.parameters() if p.requires_grad)[0, 0] = math.nan
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig(epochs=1))
    trainer = make_trainer(TrainerConfig(accelerator="cpu", devices=1), module.optimizer_config)
    with pytest.raises(RunError, match=r"epoch 1: 1 of the trained weights are not finite any more, adapter\."):
        trainer.validate(module, loader(4, 4), verbose=False)


def test_an_epochs_loss_is_the_mean_over_its_clips(adapter):
    """Not over its batches, of which the last may be smaller."""
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig())
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    losses = [module.training_step(batch, number).item() for number, batch in enumerate(loader(5, 4))]
    module.on_train_epoch_end()
    assert losses[0] != losses[1]
    assert logged["train/loss"].item() == pytest.approx((4 * losses[0] + losses[1]) / 5, rel=1e-6)
    module.on_train_epoch_start()
    first = module.training_step(next(iter(loader(4, 4))), 0).item()
    module.on_train_epoch_end()
    assert logged["train/loss"].item() == pytest.approx(first, rel=1e-6)  # nothing is left of the epoch before


def test_a_batch_that_was_all_left_out_trains_nothing_and_counts_nothing(adapter):
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig())
    loss = module.training_step({}, 0)
    assert loss == 0
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    module.validation_step({}, 0)
    assert module.counted.compute() == 0
    assert module.predict_step({}, 0) is None


def test_an_epoch_without_a_clip_is_refused(adapter):
    """In any loop, whatever its loaders are."""
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig(epochs=2))
    trainer = make_trainer(TrainerConfig(accelerator="cpu", devices=1), module.optimizer_config)
    some, none = loader(4, 2), torch.utils.data.DataLoader(clips(4), batch_size=2, collate_fn=lambda _: {})
    says_why = "fastav check-data NAME ROOT --deep says why"
    for batches, stage, purpose in (((none, some), "train", "train on"), ((some, none), "validation", "score")):
        words = f"^epoch 1: all clips of the {stage} loader were left out, there is none to {purpose}: {says_why}$"
        with pytest.raises(RunError, match=words):
            trainer.fit(module, *batches)
        assert "validation/accuracy" not in trainer.callback_metrics
    words = f"^all clips of the test loader were left out, there is none to score: {says_why}$"
    with pytest.raises(RunError, match=words):
        trainer.test(module, none, verbose=False)


def test_one_clip_is_enough_for_an_epoch(adapter):
    module = AudioVisualModule(adapter, make_task(), OptimizerConfig(epochs=2))
    trainer = make_trainer(TrainerConfig(accelerator="cpu", devices=1), module.optimizer_config)

    def keep_the_last(some):
        return torch.utils.data.default_collate(some) if some[0]["id"] == "3" else {}

    batches = torch.utils.data.DataLoader(clips(4), batch_size=1, collate_fn=keep_the_last)
    trainer.fit(module, batches, batches)
    assert module.num_scored == 1
    assert trainer.callback_metrics["train/loss"] > 0


def test_a_batch_that_was_all_left_out_takes_part_in_measuring(adapter):
    """The statistics are exchanged: a process that stayed away would leave the others waiting."""
    config = MettleConfig(num_tokens=2, width=16, rank=4, standardize_batches=1)
    module = AudioVisualModule(MettleAdapter(adapter.visual, adapter.audio, config), make_task(), OptimizerConfig())
    distillation, taken = module.adapter.distillation, []
    measure = distillation.measure
    distillation.measure = lambda taps: (taken.append(len(taps)), measure(taps))
    module.training_step({}, 0)
    assert taken == [0]
    module.log = lambda *_, **__: None
    module.training_step(next(iter(loader(4, 4))), 0)
    module.training_step({}, 0)
    assert taken == [0, 4]  # measured, so there is nothing to take part in
    assert not distillation.measuring


def test_the_adapter_sees_and_hears_what_the_task_says(adapter):
    class Crossed(LocalizationTask):
        def pairing(self, batch, clips):
            return clips, clips.flip(0)

    module = AudioVisualModule(adapter, Crossed(3, num_tokens=2, width=16), OptimizerConfig()).eval()
    batch = torch.utils.data.default_collate(clips(3))
    out, _ = module(batch)
    right, wrong = (adapter(batch["visual"], sound) for sound in (batch["audio"].flip(0), batch["audio"]))
    torch.testing.assert_close(out.audio, right.audio)
    torch.testing.assert_close(out.visual, wrong.visual)
    assert not torch.equal(out.audio, wrong.audio)
