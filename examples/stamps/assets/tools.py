"""Runs pip, apt-get and dpkg-deb with progress, and puts into words what went wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from tqdm import tqdm

# Runs a command in a folder, with a title and the megabytes to come for its progress: (exit status, output).
Runner = Callable[[Sequence[str], Path, str, int], tuple[int, str]]

POLL = 0.5  # seconds


def run_tool(command: Sequence[str], folder: Path, title: str, megabytes: int) -> tuple[int, str]:
    """Run a command in a folder; the bar shows by how many megabytes the folder grows."""
    # Tools keep what they have not finished in TMPDIR; inside the folder it counts as progress and goes when it goes.
    environment = os.environ | {"TMPDIR": str(folder), "LC_ALL": "C"}
    before = _megabytes(folder)
    # Quick commands show no bar at all.
    bar = tqdm(
        desc=title, total=megabytes, unit="MB", delay=1.0, leave=False, bar_format="{desc}: {n:.0f}/{total:.0f} MB"
    )
    with bar, tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
                bar.n = min(_megabytes(folder) - before, megabytes)
                bar.refresh()
        finally:
            process.kill()  # does nothing once it has ended; after Ctrl-C it must not go on alone
            process.wait()
        log.seek(0)
        return process.returncode, log.read()


def complaint(run: Runner, command: Sequence[str], folder: Path, title: str, megabytes: int) -> str | None:
    """Run a command; None if it succeeded, else the title with the tool's last line that speaks of an error."""
    try:
        status, output = run(command, folder, title, megabytes)
    except OSError as error:
        return f"{title}: {error.strerror or error} ({command[0]})"
    if status == 0:
        return None
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR", "dpkg-deb: error"))]
    # pip calls a registry that does not answer "no matching distribution"; why it retried tells more.
    retries = [
        f" (after {reason})" for line in lines if (reason := line.partition("Retrying")[2].partition(" after ")[2])
    ]
    return f"{title}: {(errors or lines or [f'exit status {status}'])[-1]}{retries[-1] if retries else ''}"


def hash_complaint(file: IO[bytes], sha256: str) -> str | None:
    """None if the bytes have this sha256, else what they have."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return None if digest.hexdigest() == sha256 else f"its sha256 is {digest.hexdigest()}, not {sha256}"


def apt_configuration(root: Path) -> str:
    """Make private folders for apt-get below `root`, and the configuration that keeps it inside them."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True)
    return f"""
        Dir::State "{root}/state";
        Dir::Cache "{root}/cache";
        # Root would hand downloads to the user _apt, who may not enter a home directory.
        APT::Sandbox::User "root";
        # Hooks of the machine tidy up the machine's own folders.
        #clear APT::Update::Pre-Invoke;
        #clear APT::Update::Post-Invoke;
        #clear APT::Update::Post-Invoke-Success;
        # A list that cannot be fetched is an error to be told, not a warning to be lost.
        APT::Update::Error-Mode "any";
        Acquire::Languages "none";
        Acquire::Retries "2";
        Acquire::http::Timeout "20";
        Acquire::https::Timeout "20";
    """


def _megabytes(folder: Path) -> float:
    """Size of all files below a folder that others write to meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total / 1e6
