"""A frozen backbone whose blocks' tokens are read from the side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastav.backbones.blocks import as_tokens, count_prefix_tokens, example_for, select_taps, time_order, token_layout
from fastav.backbones.whisper import whisper_encoder


class _LastTapRead(BaseException):
    """Leaves the backbone after its last tap. Control flow, not an error, so no ``except Exception`` may catch it."""


class FrozenBackbone(nn.Module):
    """Runs a backbone without gradients and hands out the tokens of some of its blocks, the taps.

    The backbone is frozen and stays in eval mode, whatever ``train()`` is called on, so that drop-path, dropout and
    SpecAugment are off. It stops right after the last tap. Taps are the backbone's own memory where it allows that;
    do not write to them.

    Args:
        module: the backbone. Of a whole Whisper model only the encoder is kept.
        taps: which blocks to read: "all" transformer blocks; an int for the last n; ints, negative from the end; or
            module names, where "*" stands for one component ("layers.*.blocks.*"). Taps come in network order.
            Blocks of timm's ViT, EVA, BEiT and Swin families and of Hugging Face's ViT, DINOv2, DINOv3, Swin, AST,
            CLAP (HTS-AT), Whisper, HuBERT, wav2vec 2.0 and WavLM are found; in other modules they must be named.
        example_input: what the backbone takes, at least one item, for a trial run of one item that measures the taps;
            needed only for backbones whose configuration does not tell.
        in_state_dict: keep the backbone's tensors in ``state_dict()``. By default they are left out, and loading a
            state without them is no error.
        chunk: how many items go through the backbone at a time; None for all of a batch. Beside its taps a frozen
            backbone needs memory for what it is computing alone, which then is that of so few items. Taps are the
            same but for rounding, copied once, and portions are handed out at the end. May be set later.

    Attributes:
        module: the backbone.
        tap_names: the tapped blocks' names inside ``module``.
        example_input: one item that the backbone takes.
        widths: D of each tap.
        tokens: N of each tap of the trial run; longer inputs may have more.
        stages: number of the stage of each tap, a run of consecutive taps alike in N and D.
        portions: the taps' numbers in ranges that are handed out at a time, see :meth:`forward`: those of a stage, or
            where there is one stage, a quarter of all.
        tokens_in_time_order: True where tokens are a sequence over time (Whisper, HuBERT, wav2vec 2.0, WavLM), False
            where they are patches of a picture or a spectrogram, None where the blocks are of no known family.
        prefix_tokens: how many tokens of each tap stand before those of the patches, a class token for example; known
            for timm's and Hugging Face's families, 0 for others.

    Raises:
        TypeError: the backbone is not a module.
        ValueError: a chunk of less than one item, no such blocks, an input that cannot be guessed, or a block whose
            output cannot be read as tokens.
    """

    def __init__(
        self,
        module: nn.Module,
        taps: str | int | Sequence[int] | Sequence[str] = "all",
        *,
        example_input: Tensor | None = None,
        in_state_dict: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"the backbone must be a torch module, got {type(module).__name__}; build it first, by "
                f"timm.create_model(...) or transformers.AutoModel.from_pretrained(...)"
            )
        encoder = whisper_encoder(module)
        self.module = module if encoder is None else encoder
        self.in_state_dict = in_state_dict
        self.register_load_state_dict_pre_hook(_supply_backbone)
        self.tap_names = select_taps(self.module, taps)
        orders = {time_order(self.module.get_submodule(name)) for name in self.tap_names}
        self.tokens_in_time_order = orders.pop() if len(orders) == 1 else None
        self.prefix_tokens = count_prefix_tokens(self.module)
        self.requires_grad_(False)
        self.eval()
        self.example_input = example_for(self.module) if example_input is None else example_input[:1]
        self._measure()

    @property
    def chunk(self) -> int | None:
        """How many items go through the backbone at a time."""
        return self._chunk

    @chunk.setter
    def chunk(self, items: int | None) -> None:
        if items is not None and (isinstance(items, bool) or not isinstance(items, int) or items < 1):
            raise ValueError(f"chunk is {items!r}, wanted a number of items of at least 1, or None for all at once")
        self._chunk = items

    def _measure(self) -> None:
        """Run one item through the backbone to learn each tap's layout, width and stage."""
        outputs = self._outputs(self.example_input.to(self.device))
        self._layouts = tuple(
            token_layout(output, channels_last=time_order(self.module.get_submodule(name)) is False, name=name)
            for name, output in outputs.items()
        )
        sizes = [as_tokens(*pair).shape[1:] for pair in zip(outputs.values(), self._layouts, strict=True)]
        self.tokens = tuple(count for count, _ in sizes)
        self.widths = tuple(width for _, width in sizes)
        runs = enumerate(run for _, run in groupby(sizes))
        self.stages = tuple(stage for stage, run in runs for _ in run)
        self.portions = _portions(self.stages)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the backbone's parameters, and of the taps."""
        return next(parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the backbone's first parameter."""
        return next(self.module.parameters()).device

    def forward(self, x: Tensor, ready: Callable[[list[Tensor]], None] | None = None) -> list[Tensor]:
        """Read the taps of a batch.

        Args:
            x: (B, ...), what the backbone takes; a Hugging Face backbone gets it as its ``main_input_name``. Floating
                inputs are cast to the backbone's dtype, integers are left alone.
            ready: called with the next portion of taps, in network order, as soon as its last block has run, before
                the next block does; under the caller's grad mode.

        Returns:
            One (B, N, D) tensor a tap, of the backbone's dtype, without gradient; strides are the backbone's own, the
            last is 1.

        Raises:
            ValueError: the input lies on another device, or a tap does not hold the batch that went in.
        """
        if x.device != self.device:
            raise ValueError(
                f"the input is on {x.device}, the backbone on {self.device}: "
                f"move one of them, input.to({str(self.device)!r}) or backbone.to({str(x.device)!r})"
            )
        if self.chunk is not None and len(x) > self.chunk:
            return self._in_chunks(x, self.chunk, ready)
        return self._at_once(x, ready)

    def _in_chunks(self, x: Tensor, size: int, ready: Callable[[list[Tensor]], None] | None) -> list[Tensor]:
        """Run some items after the others."""
        taps: list[Tensor] = []
        for start in range(0, len(x), size):
            some = self._at_once(x[start : start + size], None)
            taps = taps or [tap.new_empty(len(x), *tap.shape[1:]) for tap in some]
            for whole, tap in zip(taps, some, strict=True):
                whole[start : start + size] = tap
        if ready is not None:
            for portion in self.portions:
                ready([taps[i] for i in portion])
        return taps

    def _at_once(self, x: Tensor, ready: Callable[[list[Tensor]], None] | None) -> list[Tensor]:
        """Run all items together."""
        taps: list[Tensor] = []
        waiting = list(self.portions)
        grad_mode = torch.is_grad_enabled()  # the backbone itself runs without

        def hand_out(outputs: dict[str, Tensor]) -> None:
            while waiting and all(self.tap_names[i] in outputs for i in waiting[0]):
                portion = [self._tap(i, outputs, len(x)) for i in waiting.pop(0)]
                taps.extend(portion)
                if ready is not None:
                    with torch.set_grad_enabled(grad_mode):
                        ready(portion)

        self._outputs(x, hand_out)
        return taps

    def _tap(self, i: int, outputs: dict[str, Tensor], batch: int) -> Tensor:
        """Tap number ``i`` of a batch of so many items, from the blocks' outputs."""
        output = outputs[self.tap_names[i]]
        tap = as_tokens(output, self._layouts[i]).to(self.dtype)
        if tap.shape[0] != batch:
            raise ValueError(f"block {self.tap_names[i]!r} puts out {tuple(output.shape)} for a batch of {batch}")
        return tap

    def _grad_mode(self) -> bool:
        """Whether the backbone runs with gradients."""
        return False

    def _outputs(self, x: Tensor, each: Callable[[dict[str, Tensor]], None] | None = None) -> dict[str, Tensor]:
        """Run the backbone as far as its last tap; what the tapped blocks put out, by name in network order.

        After each of these blocks ``each`` is called with what there is so far.
        """
        if any(child.training for child in self.module.modules()):  # somebody called train() past us
            self.module.eval()
        if x.is_floating_point():
            x = x.to(self.dtype)
        keyword = getattr(self.module, "main_input_name", None)
        reading = _Reading(len(self.tap_names), each)
        # Never inference_mode: the side branch saves taps for its backward.
        with ExitStack() as hooks, suppress(_LastTapRead), torch.set_grad_enabled(self._grad_mode()):
            for name in self.tap_names:
                block = self.module.get_submodule(name)
                hooks.callback(block.register_forward_hook(partial(reading.hook, name)).remove)
            self.module(**{keyword: x}) if keyword else self.module(x)
        missing = [name for name in self.tap_names if name not in reading.outputs]
        if missing:
            raise ValueError(f"the backbone's forward never runs {missing}")
        reading.check_untouched()
        return {name: reading.outputs[name] for name in self.tap_names}

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stay in eval mode, whatever ``mode`` says."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return the backbone's tensors if ``in_state_dict``, nothing otherwise."""
        if self.in_state_dict:
            return super().state_dict(*args, destination=destination, **kwargs)
        return OrderedDict() if destination is None else destination

    def __repr__(self) -> str:
        """One line: this may be printed inside a parent that the user builds."""
        widths = ", ".join(f"{len(list(run))} x {width}" for width, run in groupby(self.widths))
        ends = " ... ".join(dict.fromkeys((self.tap_names[0], self.tap_names[-1])))
        size = sum(parameter.numel() for parameter in self.module.parameters()) / 1e6
        return (
            f"FrozenBackbone({type(self.module).__name__}, {len(self.tap_names)} taps "
            f"{ends} of width {widths}; {size:.2f} M parameters, {self.dtype})"
        )


class _Reading:
    """One forward of the backbone: keeps the tapped blocks' outputs and ends the forward when all are there."""

    def __init__(self, wanted: int, each: Callable[[dict[str, Tensor]], None] | None) -> None:
        self.wanted, self.each = wanted, each
        self.outputs: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}

    def hook(self, name: str, block: nn.Module, args: Any, output: Any) -> Any:
        """Read one block's output, as a forward hook once ``name`` is bound."""
        tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(tensor, Tensor):
            raise ValueError(f"block {name!r} puts out {type(tensor).__name__}, not a tensor or a tuple with one first")
        if name in self.outputs:
            raise ValueError(f"block {name!r} runs more than once in one forward, so that its tap is ambiguous")
        # Whisper's stem hands on transposed memory, which all later blocks would keep: copied once here and passed on.
        packed = tensor.contiguous() if tensor.dim() == 3 and tensor.stride(-1) != 1 else tensor
        self.outputs[name] = packed
        self.versions[name] = _version(packed)
        if self.each is not None:
            self.each(self.outputs)
        if len(self.outputs) == self.wanted:
            raise _LastTapRead
        if packed is tensor:
            return None
        return (packed, *output[1:]) if isinstance(output, tuple) else packed

    def check_untouched(self) -> None:
        """Raise ValueError if a later block wrote into an earlier one's output, as taps share the backbone's memory."""
        for name, output in self.outputs.items():
            if _version(output) != self.versions[name]:
                raise ValueError(
                    f"block {name!r}: a later block overwrites its output in place, so it cannot be tapped"
                )


def _portions(stages: Sequence[int]) -> tuple[range, ...]:
    """Numbers of consecutive taps that are handed out together: a stage's; of a single stage, a quarter."""
    count = len(stages)
    starts = [i for i in range(count) if i == 0 or stages[i] != stages[i - 1]]
    if len(starts) == 1:
        parts = min(4, count)
        starts = [count * part // parts for part in range(parts)]
    return tuple(range(*ends) for ends in pairwise([*starts, count]))


def _version(tensor: Tensor) -> int:
    """How often the tensor's memory was written to; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _supply_backbone(backbone: FrozenBackbone, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: let the backbone's own tensors stand in for those that a state without the backbone lacks."""
    if not backbone.in_state_dict:
        for name, value in backbone.module.state_dict().items():
            state_dict.setdefault(f"{prefix}module.{name}", value)
