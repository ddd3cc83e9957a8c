"""A run's folder: its configuration, its checkpoints, and the best epoch's adapter and head."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import yaml
from torch import nn

from fastav.adapters import Adapter, adapter_class
from fastav.adapters.storage import load_tensors, save_tensors
from fastav.tasks.task import Task
from fastav.training.arguments import read_yaml

CONFIG_NAME = "config.yaml"
#: What a resumed run may have otherwise than it had at first.
_FREE = ("output", "resume", "trainer", "data.root", "data.media", "data.on_error", "data.num_workers")


class RunFolder:
    """The files of one run and where they are.

    ``config.yaml`` is the configuration, ``checkpoints/last.ckpt`` what a resumed run goes on from, and
    ``logs/metrics.csv`` holds losses and scores by epoch (``logs-2/`` those since it was resumed, and so on). ``best/``
    is the epoch that was chosen: ``adapter_config.json`` and ``adapter_model.safetensors`` as the adapter's
    ``save_pretrained`` writes them, ``head.safetensors``, and ``record.json``: what the task is built from, which epoch
    it was and its score.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config, self.checkpoints = self.path / CONFIG_NAME, self.path / "checkpoints"
        self.last, self.best = self.checkpoints / "last.ckpt", self.path / "best"
        self._record = self.best / "record.json"

    def start(self, entries: dict[str, Any]) -> None:
        """Write ``config.yaml`` of a new run, or check that a run that is to be resumed had the same.

        A run that broke off in its first epoch left nothing to go on from and nothing to lose: a new one takes its
        place.

        Raises:
            ValueError: the folder holds a run that is not to be resumed; or nothing to go on from, or a run of another
                configuration.
        """
        wanted = yaml.safe_load(yaml.safe_dump(entries, sort_keys=False))
        if entries["resume"]:
            if not self.last.is_file():
                remedy = "choose another --output" if self._record.is_file() else "leave --resume out to start anew"
                raise ValueError(f"{self.path} holds no {self.last.name} of a finished epoch to resume: {remedy}")
            changed = list(_differences(self.read_config(), wanted))
            if changed:
                raise ValueError(f"{self.path} holds a run that is not the one to be resumed: {'; '.join(changed)}")
            return
        if self.last.exists() or self._record.exists():
            further = ", or go on with --resume true" if self.last.exists() else ""
            raise ValueError(f"{self.path} holds a run already: choose another --output{further}")
        self.path.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(wanted, sort_keys=False), encoding="utf-8")

    def check_resumable(self, record: dict[str, Any]) -> None:
        """Check that what a run is built from now is what it was built from; ``record`` as :meth:`save_best` has it.

        Raises:
            ValueError: other classes, options or weights, or a checkpoint that is damaged.
        """
        if not is_zipfile(self.last):
            raise ValueError(f"{self.last} is damaged, no checkpoint to resume from: choose another --output")
        before = self.read_record()
        self.check_backbones(record["backbones"])
        for name, what in (("class_names", "classes or answers"), ("options", "options of the head")):
            if before[name] != json.loads(json.dumps(record[name])):
                raise ValueError(
                    f"the data set has other {what} than {self.path} was trained on: give the data set's own files"
                )

    def check_backbones(self, fingerprints: dict[str, Any]) -> None:
        """Check that the backbones' weights are those of the training; their fingerprints by modality.

        Raises:
            ValueError: they are others.
        """
        for modality, trained_on in self.read_record()["backbones"].items():
            if fingerprints[modality] != trained_on:
                raise ValueError(
                    f"{modality}: the backbone's weights are not those that {self.path} was trained on: give the same "
                    f"weights as its {self.config.name} says"
                )

    def new_logs(self) -> Path:
        """A folder for logs that is not there yet: ``logs``, of a run that is resumed ``logs-2`` and so on."""
        names = chain([self.path / "logs"], (self.path / f"logs-{number}" for number in count(2)))
        return next(name for name in names if not name.exists())

    def read_config(self) -> dict[str, Any]:
        """The entries of ``config.yaml``.

        Raises:
            ValueError: it is not there.
        """
        if not self.config.is_file():
            raise ValueError(f"{self.path} is no run's folder, it holds no {CONFIG_NAME}: give one that train wrote")
        return read_yaml(self.config)

    def save_best(self, adapter: Adapter, task: Task, record: dict[str, Any]) -> None:
        """Write ``best/``, over an earlier epoch's."""
        adapter.save_pretrained(self.best)
        save_tensors(task.state_dict(), self.best / "head.safetensors")
        self._record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def read_record(self) -> dict[str, Any]:
        """What :meth:`save_best` was given.

        Raises:
            ValueError: no epoch was finished yet, or the file is damaged.
        """
        if not self._record.is_file():
            how = "go on with fastav train --resume true" if self.last.is_file() else "start it anew with fastav train"
            raise ValueError(f"{self.path} holds no finished epoch yet: {how}")
        try:
            return json.loads(self._record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self._record} is damaged ({error}): copy it again, or train again") from error

    def load_adapter(self, method: str, *, visual: nn.Module, audio: nn.Module) -> Adapter:
        """The best epoch's adapter on these backbones, in eval mode.

        Raises:
            ValueError: the backbones are others than those that it was trained on, or a file is damaged.
        """
        return adapter_class(method).from_pretrained(self.best, visual=visual, audio=audio)

    def load_head(self, task: Task) -> Task:
        """The best epoch's weights into a task that was built from the same options; in eval mode.

        Raises:
            ValueError: the file is damaged.
        """
        task.load_state_dict(load_tensors(self.best / "head.safetensors"))
        return task.eval()


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Where two configurations differ, in words, but for what is free."""
    for key in before | now:
        one, other = before.get(key), now.get(key)
        if one == other or f"{prefix}{key}" in _FREE:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} was {one!r} and is {other!r}"
