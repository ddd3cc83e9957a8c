"""Data: readers of AVE, LLP, AVSBench and MUSIC-AVQA, media decoding, audio front ends, preprocessing."""

from fastav.data.ave import AVE, AVE_CLASSES
from fastav.data.clips import ClipDataset, MediaTreeDataset, collate, read_clip
from fastav.data.errors import DataError, MediaError, MediaWarning
from fastav.data.front_ends import FrontEnd, ast_front_end, clap_front_end, front_end, whisper_front_end
from fastav.data.layouts import ClipFiles
from fastav.data.preprocess import Preprocess
from fastav.data.question_types import QUESTION_TYPES

__all__ = [
    "AVE",
    "AVE_CLASSES",
    "QUESTION_TYPES",
    "ClipDataset",
    "ClipFiles",
    "DataError",
    "FrontEnd",
    "MediaError",
    "MediaTreeDataset",
    "MediaWarning",
    "Preprocess",
    "ast_front_end",
    "clap_front_end",
    "collate",
    "front_end",
    "read_clip",
    "whisper_front_end",
]
