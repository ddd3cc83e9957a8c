"""The data sets by their names on the command line, and which task each is for."""

import inspect
from typing import Any, NamedTuple

from fastav import data
from fastav.data import ClipDataset
from fastav.training.config import DataConfig


class DataSet(NamedTuple):
    """A reader, and the task that its targets are for.

    Attributes:
        task: the task's name.
        reader: a class of fastav.data.
        subset: which of the reader's data sets, where it has several.
    """

    task: str
    reader: Any
    subset: str | None = None

    def segments(self, config: DataConfig) -> tuple[int, float]:
        """How many segments a clip has, and how many seconds of sound each."""
        options = config.options
        return (
            options.get("num_segments", self.reader.num_segments),
            options.get("seconds_per_segment", self.reader.seconds_per_segment),
        )

    def open(self, config: DataConfig, split: str, **options: Any) -> ClipDataset[Any]:
        """Open one split as the configuration has it; ``options`` are the reader's.

        Raises:
            DataError: what is on disk cannot be right; says which file and what to do.
            ValueError: the configuration has options that the reader does not.
        """
        options |= {"media": config.media, "on_error": config.on_error}
        if self.subset is not None:
            options["subset"] = self.subset
        free = sorted(_keywords(self.reader) - {*options, "subset"})
        unknown = sorted(set(config.options) - set(free))
        if unknown:
            has = f"only {', '.join(free)}" if free else "none at all"
            raise ValueError(f"data.options: {self.reader.__name__} has no {', '.join(unknown)} to choose, {has}")
        return self.reader(config.root, split, **options, **config.options)


def _keywords(reader: Any) -> set[str]:
    """What a reader takes by name alone, its bases' included."""
    signatures = [inspect.signature(cls.__init__) for cls in reader.__mro__]
    parameters = [parameter for signature in signatures for parameter in signature.parameters.values()]
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


_ALL = {
    "ave": DataSet("localization", data.AVE),
    "llp": DataSet("parsing", data.LLP),
    "avsbench-s4": DataSet("segmentation", data.AVSBench, "s4"),
    "avsbench-ms3": DataSet("segmentation", data.AVSBench, "ms3"),
    "music-avqa": DataSet("question_answering", data.MusicAVQA),
}


def data_set(task: str, name: str | None) -> DataSet:
    """The data set ``name``, or the one that there is for the task.

    Raises:
        ValueError: it is for another task, or there are several and none is named.
    """
    fitting = [known for known, entry in _ALL.items() if entry.task == task]
    if name is None and len(fitting) == 1:
        return _ALL[fitting[0]]
    if name is None or name not in fitting:
        given = "is not given" if name is None else f"{name!r} is for the task {_ALL[name].task!r}"
        raise ValueError(f"data.name {given}; for {task!r} give {' or '.join(fitting)}")
    return _ALL[name]
