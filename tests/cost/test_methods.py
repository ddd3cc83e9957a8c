"""How methods are built: for the inputs that they get, with options, and without touching others' random numbers."""

import pytest
import torch

from fastav.cost import METHODS, Cost, build_step, random_inputs
from fastav.cost.methods import _seeded, check_options, method_options
from fastav.cost.profile import profile

pytest.importorskip("timm")


@pytest.mark.parametrize(("family", "layout"), [("Hubert", "segment"), ("Hubert", "clip"), ("Wav2Vec2", "segment")])
def test_dgsct_is_built_for_sounds_of_any_length(tiny, family, layout):
    pytest.importorskip("greenlet")
    eyes = tiny.vit(embed_dim=16, depth=2)
    # A token for every 20 samples, as each kernel is as long as its stride.
    ears = tiny.hf(family, hidden_size=16, num_hidden_layers=1, conv_kernel=(5, 4))
    inputs = random_inputs(eyes, ears, clips=2, segments=2, audio_layout=layout, seconds=2)
    assert inputs[1].shape[-1] == 32_000
    (cost,) = profile(["dg-sct"], eyes, ears, inputs, rounds=2, audio_layout=layout)
    assert isinstance(cost, Cost), cost
    step = build_step("dg-sct", eyes, ears, inputs, audio_layout=layout)
    heard = {"segment": 1600, "clip": 800}[layout]
    assert step.method.adapters[0]["visual"].to_tokens.in_features == heard


def test_random_numbers_of_others_stay_as_they_are(pair, monkeypatch):
    """Those of the CPU, of the step's GPU, and of a GPU that has no part in it."""
    gpus = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpus[device.index].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpus[device.index].set_state(state))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: [gpu.manual_seed(seed) for gpu in gpus])
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    others = [torch.default_generator, *gpus]
    before = [one.get_state() for one in others]
    wanted = torch.rand(3, generator=torch.Generator().manual_seed(0))
    with _seeded(torch.device("cuda", 1)):
        assert torch.equal(torch.rand(3), wanted)
        assert torch.equal(torch.rand(3, generator=gpus[1]), wanted)
    assert all(torch.equal(a, one.get_state()) for a, one in zip(before, others, strict=True))
    build_step("mettle", *pair, random_inputs(*pair, clips=1, segments=2))
    assert all(torch.equal(a, one.get_state()) for a, one in zip(before, others, strict=True))


def test_options_are_those_that_the_user_chooses():
    assert method_options("frozen") == ["dense", "width"]
    assert method_options("lora") == ["alpha", "dense", "gradient_checkpointing", "rank", "targets", "width"]
    assert {"num_tokens", "rank", "layers", "heads"} <= set(method_options("mettle"))
    assert not {"audio_layout", "standardize_batches", "num_segments"} & {o for m in METHODS for o in method_options(m)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metle": {}}, "options for 'metle', which is not measured; measured are mettle, lora, ladder"),
        ({"molt": {"num_tokens": 8}}, "options for 'molt', which is not measured; measured are mettle, lora, ladder"),
        ({"mettle": {"tokens": 8}}, "options for mettle: there is no tokens; choose among activation, branches"),
        ({"lora": {"audio_layout": "clip"}}, "options for lora: there is no audio_layout; choose among alpha, dense"),
        (
            {"ladder": {"gradient_checkpointing": True}},
            "options for ladder: there is no gradient_checkpointing; choose",
        ),
        ({"mettle": {"num_tokens": 0}}, "options for mettle: MettleConfig: num_tokens is 0, wanted an integer of at"),
        ({"mettle": {"layers": 1.5}}, "options for mettle: "),
    ],
)
def test_options_that_there_are_not_are_refused(options, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        check_options(options, ["mettle", "lora", "ladder"])


def test_options_that_there_are_pass():
    check_options({"mettle": {"num_tokens": 8, "layers": {"visual": [0, 2], "audio": "all"}}}, METHODS)
    check_options({"lora": {"rank": 4}}, ["lora"])
