"""``fastav train``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastav.data import ClipDataset
from fastav.training.arguments import train_config, train_parser
from fastav.training.cli import plainly
from fastav.training.module import AudioVisualModule
from fastav.training.run import set_up_training

_OPTIMISTIC = (
    "note: the test split chooses the epoch. Published figures of the peers did the same; such a score is optimistic, "
    "and is not to be compared with one whose epoch was chosen on validation"
)


def main(arguments: Sequence[str]) -> int:
    """Train a run."""
    with plainly():
        parser = train_parser(arguments)
        config = train_config(parser.parse_args(list(arguments)))
        training = set_up_training(config)
    if training.trainer.is_global_zero:
        if config.select_on_test:
            print(_OPTIMISTIC, file=sys.stderr)
        if differing := differing_sources(training.clips.train, training.clips.validation):
            print(differing, file=sys.stderr)
        print(describe_parameters(training.module))
        trainer = training.trainer
        print(f"on {trainer.world_size} x {trainer.strategy.root_device.type}, precision {trainer.precision}")
    record = training.fit()
    if training.trainer.is_global_zero:
        if said := training.say_clips():
            print(said)
        print(
            f"best {record['chosen_by']}: {record['score']:.4f}, epoch {record['epoch'] + 1} of "
            f"{config.optimizer.epochs}; adapter and head are in {training.folder.best}"
        )
    return 0


def differing_sources(train: ClipDataset | None, judge: ClipDataset | None) -> str:
    """What the training split and the one that chooses the epoch read from different places, as a note; or nothing."""
    if train is None or judge is None or train.sources == judge.sources:
        return ""
    differing = [
        f"{kind} of {train.split} are {one}, of {judge.split} {other}"
        for kind, one, other in zip(("pictures", "sounds"), train.sources, judge.sources, strict=True)
        if one != other
    ]
    return (
        f"note: the splits in {train.root} are not read from the same places: {'; '.join(differing)}. Each is read "
        "from where most of its clips are: add what is missing, or choose by --data.media video or frames"
    )


def describe_parameters(module: AudioVisualModule) -> str:
    """How many parameters train, how many there are, and the share, in a line."""
    adapter, everything = module.adapter.get_nb_trainable_parameters()
    head = [parameter.numel() for parameter in module.task.parameters()]
    own = sum(parameter.numel() for parameter in module.task.parameters() if parameter.requires_grad)
    everything += sum(head)
    return (
        f"trainable: {adapter + own:,} of {everything:,} parameters, {100 * (adapter + own) / everything:.2f} %: "
        f"{adapter:,} of the adapter, {own:,} of the head"
    )
