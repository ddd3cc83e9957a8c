"""What a training loop needs of a task, whichever it is."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastav.output import AdapterOutput

#: One batch as a reader's clips collate: tensors with B first, and lists of B strings.
Batch = Mapping[str, Any]


class Task(nn.Module):
    """One task: its head, loss, decoding and scores behind one interface.

    Each task's head, loss functions and decoding are public by themselves too; this is what puts them together for
    loops that serve every task.

    Attributes:
        name: what the command line calls it.
        monitor: the score, of those that :meth:`metric` gives, that chooses the epoch on validation; higher is better.
    """

    name: ClassVar[str]
    monitor: ClassVar[str]

    def pairing(self, batch: Batch, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Which clips an adapter is to look at and to listen to for a batch: its own, where a task says nothing else.

        Args:
            batch: the batch; nothing that has gone through a backbone yet.
            clips: (B,) int64, the clip of each row.

        Returns:
            Two tensors like ``clips``, with ``clips`` itself where nothing is to change.
        """
        return clips, clips

    def forward(self, out: AdapterOutput, batch: Batch) -> Any:
        """What the head says, for :meth:`loss`, :meth:`update` and :meth:`decode`; targets in ``batch`` are not read.

        Args:
            out: what an adapter gave for the batch.
            batch: the batch, of which questions are input.
        """
        raise NotImplementedError

    def loss(self, said: Any, batch: Batch) -> Tensor:
        """The task's loss, a scalar; an adapter's ``aux_loss`` is not in it."""
        raise NotImplementedError

    def metric(self) -> Any:
        """A new torchmetrics metric, whose ``compute()`` gives a dictionary of scores, fractions of one."""
        raise NotImplementedError

    def update(self, metric: Any, said: Any, batch: Batch) -> None:
        """Count one batch in a metric that :meth:`metric` made."""
        raise NotImplementedError

    def decode(self, said: Any) -> dict[str, Tensor]:
        """The predictions of a batch, by name, B first; what ``fastav predict`` writes."""
        raise NotImplementedError
