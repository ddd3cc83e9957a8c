"""Data: readers of AVE, LLP, AVSBench and MUSIC-AVQA, media decoding, audio front ends, preprocessing."""

from fastav.data.ave import AVE, AVE_CLASSES
from fastav.data.avsbench import AVSBENCH_CLASSES, AVSBench
from fastav.data.check import DATA_SETS, Report, check_data
from fastav.data.clips import ClipDataset, MediaTreeDataset, collate, read_clip
from fastav.data.errors import DataError, MediaError, MediaWarning, MissingError
from fastav.data.front_ends import FrontEnd, ast_front_end, clap_front_end, front_end, whisper_front_end
from fastav.data.layouts import ClipFiles
from fastav.data.llp import LLP, LLP_CLASSES
from fastav.data.music_avqa import MusicAVQA
from fastav.data.preprocess import Preprocess
from fastav.data.question_types import QUESTION_TYPES

__all__ = [
    "AVE",
    "AVE_CLASSES",
    "AVSBENCH_CLASSES",
    "DATA_SETS",
    "LLP",
    "LLP_CLASSES",
    "QUESTION_TYPES",
    "AVSBench",
    "ClipDataset",
    "ClipFiles",
    "DataError",
    "FrontEnd",
    "MediaError",
    "MediaTreeDataset",
    "MediaWarning",
    "MissingError",
    "MusicAVQA",
    "Preprocess",
    "Report",
    "ast_front_end",
    "check_data",
    "clap_front_end",
    "collate",
    "front_end",
    "read_clip",
    "whisper_front_end",
]
