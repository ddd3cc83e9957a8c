"""Data: audio front ends."""

from fastav.data.front_ends import FrontEnd, ast_front_end, clap_front_end, front_end, whisper_front_end

__all__ = ["FrontEnd", "ast_front_end", "clap_front_end", "front_end", "whisper_front_end"]
