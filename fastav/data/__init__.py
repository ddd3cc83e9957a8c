"""Data: audio front ends."""

from fastav.data.front_ends import FrontEnd, ast_front_end, clap_front_end, front_end, whisper_front_end
from fastav.data.question_types import QUESTION_TYPES

__all__ = ["QUESTION_TYPES", "FrontEnd", "ast_front_end", "clap_front_end", "front_end", "whisper_front_end"]
