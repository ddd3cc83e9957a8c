"""Backbones of no known family, whose blocks the user names, and what cannot be tapped."""

import pytest
import torch
from torch import nn

from fastav.backbones import FrozenBackbone


class Turn(nn.Module):
    """Hands its input on with the axes in another order."""

    def __init__(self, *axes):
        super().__init__()
        self.axes, self.weight = axes, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.permute(self.axes)


@pytest.mark.parametrize(
    ("axes", "shape", "tokens"),
    [
        ((1, 0, 2), (2, 5, 6), lambda x: x),
        ((0, 1, 2, 3), (2, 4, 4, 6), lambda x: x.flatten(1, 2)),
        ((0, 3, 1, 2), (2, 4, 4, 6), lambda x: x.flatten(1, 2)),
    ],
)
def test_named_blocks_of_other_layouts(axes, shape, tokens):
    x = torch.randn(shape)
    backbone = FrozenBackbone(nn.Sequential(Turn(*axes)), "0", example_input=x)
    assert torch.equal(backbone(x)[0], tokens(x))
    assert backbone(x)[0].data_ptr() == x.data_ptr()
    assert backbone.widths == (6,)
    assert backbone.tokens_in_time_order is None


def test_the_first_item_of_a_tuple_is_the_tap():
    trunk, x = nn.Sequential(nn.LSTM(6, 4, batch_first=True)), torch.randn(2, 5, 6)
    with torch.no_grad():
        assert torch.equal(FrozenBackbone(trunk, "0", example_input=x)(x)[0], trunk[0](x)[0])


def test_example_input_is_needed_for_unknown_modules():
    with pytest.raises(ValueError, match="example_input"):
        FrozenBackbone(nn.Sequential(nn.Linear(6, 6)), "0")


class Named(nn.Module):
    """Puts out a dictionary."""

    def forward(self, x):
        return {"tokens": x}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (nn.ReLU(inplace=True), "block '0': .* overwrites its output in place"),
        (nn.Unflatten(1, (5, 1)), "block '1' .*cannot be told apart"),
        (Named(), "block '1' puts out dict"),
    ],
)
def test_blocks_that_cannot_be_tapped_are_refused(step, message):
    trunk = nn.Sequential(nn.Linear(6, 6), step)
    with pytest.raises(ValueError, match=message):
        FrozenBackbone(trunk, ["0", "1"], example_input=torch.zeros(1, 5, 6))


def test_a_block_that_runs_twice_is_refused():
    shared = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="'0' runs more than once"):
        FrozenBackbone(nn.Sequential(shared, shared, nn.Linear(6, 6)), ["0", "2"], example_input=torch.zeros(1, 5, 6))


def test_a_tap_that_loses_the_batch_is_refused():
    backbone = FrozenBackbone(nn.Sequential(nn.Linear(6, 6), nn.Flatten(0, 1)), "0", example_input=torch.zeros(1, 5, 6))
    backbone.module[0].register_forward_hook(lambda block, args, output: output.flatten(0, 1)[None])
    with pytest.raises(ValueError, match=r"block '0' puts out \(1, 10, 6\) for a batch of 2"):
        backbone(torch.zeros(2, 5, 6))


def test_a_block_that_never_runs_is_refused():
    trunk = nn.Sequential(nn.Linear(6, 6))
    trunk[0].spare = nn.Linear(6, 6)
    with pytest.raises(ValueError, match=r"never runs \['0.spare'\]"):
        FrozenBackbone(trunk, ["0", "0.spare"], example_input=torch.zeros(1, 5, 6))
