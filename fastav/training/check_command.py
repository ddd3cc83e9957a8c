"""``fastav check-data``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastav.data import DATA_SETS, check_data
from fastav.training.cli import plainly


def main(arguments: Sequence[str]) -> int:
    """Check a data set; 1 if clips are missing or broken."""
    parser = argparse.ArgumentParser(
        prog="fastav check-data", description="Say what of a data set is there, and what is missing or broken, by id."
    )
    parser.add_argument("name", choices=DATA_SETS, help="the data set")
    parser.add_argument("root", help="its folder")
    parser.add_argument("--deep", action="store_true", help="decode every file too, which takes its time")
    parser.add_argument(
        "--media", choices=["auto", "video", "frames"], default="auto", help="videos, extracted files, or whichever"
    )
    parser.add_argument("--questions", help="of music-avqa: the folder of its questions, to choose a revision")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there too, all ids in it")
    values = parser.parse_args(list(arguments))
    with plainly():
        report = check_data(values.name, values.root, deep=values.deep, media=values.media, questions=values.questions)
        if values.json is not None:
            whole = {**asdict(report), "root": str(report.root), "ok": report.ok}
            values.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(report)
    return 0 if report.ok else 1
