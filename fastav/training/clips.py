"""Loaders of clips: each clip once per epoch, on one device or shared out to several."""

from __future__ import annotations

import shlex
from collections.abc import Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastav.data import ClipDataset, collate
from fastav.training.config import DataConfig

try:
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise ImportError('fastav.training needs lightning: pip install "fastav[training]"') from error


class Clips(LightningDataModule):
    """The splits' loaders for Lightning, which is to be told ``use_distributed_sampler=False``.

    Where clips are scored, each is scored once: with several processes each takes its share, and some take one clip
    less. (Lightning's own sampler repeats clips until all shares are equal, and they would count twice.) In training
    the shares are made equal by repeating a few clips.

    Args:
        config: batch size and workers.
        train: the split to train on.
        validation: the split that chooses the epoch.
        test: the split to score or predict.
        seed: of the training clips' order, which is another one in each epoch.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        train: ClipDataset | None = None,
        validation: ClipDataset | None = None,
        test: ClipDataset | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.train, self.validation, self.test = train, validation, test

    def describe(self, stage: str) -> tuple[str, str]:
        """In words, the split of a stage ("train", "validation" or "test"), and the command that checks it."""
        clips, config = getattr(self, stage), self.config
        command = ["fastav", "check-data", config.name or clips.name.lower(), config.root, "--deep"]
        command += [] if config.media == "auto" else ["--media", config.media]
        command += ["--questions", str(config.options["questions"])] if config.options.get("questions") else []
        return f"{clips.name} {clips.split} in {clips.root}", shlex.join(command)

    def train_dataloader(self) -> DataLoader:
        """Batches of shuffled training clips."""
        assert self.train is not None
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        # Lightning tells this sampler the epoch, with one process too.
        return self._loader(self.train, DistributedSampler(self.train, world, rank, seed=self.seed))

    def val_dataloader(self) -> DataLoader:
        """This process' share of the clips that choose the epoch, in order."""
        assert self.validation is not None
        return self._loader(self.validation, self._share(self.validation))

    def test_dataloader(self) -> DataLoader:
        """This process' share of the clips to be scored, in order."""
        assert self.test is not None
        return self._loader(self.test, self._share(self.test))

    predict_dataloader = test_dataloader

    def _share(self, clips: ClipDataset) -> Sequence[int | None]:
        """This process' clips; None stands for none: Lightning does not wait for processes without any batch."""
        assert self.trainer is not None
        return range(self.trainer.global_rank, len(clips), self.trainer.world_size) or [None]

    def _loader(self, clips: ClipDataset, order: Any) -> DataLoader:
        workers = self.config.num_workers
        return DataLoader(
            Numbered(clips),
            batch_size=self.config.batch_size,  # by name: Lightning makes the loader anew to predict
            sampler=order,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
        )


def count_left_out(clips: Sized, used: int) -> int:
    """How many clips of a split were left out: those that lack files, and of the others those that were not used."""
    return len(clips) - used + (clips.num_left_out if isinstance(clips, ClipDataset) else 0)


def say_clips(clips: Sized, used: int, of: str = "") -> str:
    """How many clips were used, and if any were left out how many, in words; ``of`` follows the first number."""
    left_out = count_left_out(clips, used)
    return f"{used} clip{'' if used == 1 else 's'}{of}" + (f", {left_out} left out" if left_out else "")


def say_none(split: str, check: str, purpose: str) -> str:
    """That no clip of a split is left for something, in words; ``check`` is the command that says why."""
    return f"all clips of {split} were left out, there is none to {purpose}: {check} says why"


class Numbered(Dataset):
    """Clips with their position in the data set as "index", for scores that depend on the clips' order."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int | None) -> dict[str, Any] | None:
        """The clip, or None where it was left out, and of no index."""
        clip = None if index is None else self.clips[index]
        return None if clip is None else {**clip, "index": index}
