"""Audio-visual tasks: head, loss and decoding of each; its metric stands beside it and in :mod:`fastav.metrics`."""

from fastav.tasks.localization import (
    LocalizationHead,
    LocalizationTask,
    decode_localization,
    localization_loss,
    weak_localization_loss,
)
from fastav.tasks.parsing import Parsing, ParsingHead, ParsingTask, decode_parsing, parsing_loss
from fastav.tasks.question_answering import (
    QuestionAnsweringHead,
    QuestionAnsweringTask,
    decode_question_answering,
    question_answering_loss,
)
from fastav.tasks.questions import EncodedQuestions, FrozenTextEncoder, QuestionLSTM
from fastav.tasks.segmentation import SegmentationTask, decode_segmentation, segmentation_loss
from fastav.tasks.segmentation_head import SegmentationHead
from fastav.tasks.swap import swap_unasked
from fastav.tasks.task import Batch, Task
from fastav.tasks.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "EncodedQuestions",
    "FrozenTextEncoder",
    "LocalizationHead",
    "LocalizationTask",
    "Parsing",
    "ParsingHead",
    "ParsingTask",
    "QuestionAnsweringHead",
    "QuestionAnsweringTask",
    "QuestionLSTM",
    "SegmentationHead",
    "SegmentationTask",
    "Task",
    "Vocabulary",
    "decode_localization",
    "decode_parsing",
    "decode_question_answering",
    "decode_segmentation",
    "localization_loss",
    "parsing_loss",
    "question_answering_loss",
    "segmentation_loss",
    "swap_unasked",
    "weak_localization_loss",
]
