"""That fastav loads without the packages of its extras, and names the extra where one is needed."""

import subprocess
import sys

import pytest

from fastav import optional
from fastav.data import ClipFiles, read_clip


def test_importing_the_readers_loads_no_optional_package():
    names = "av", "h5py", "soundfile", "PIL", "torchaudio", "transformers", "timm"
    script = f"import sys, fastav.data; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("package", "suffix"), [("av", ".mp4"), ("soundfile", ".wav"), ("PIL", "")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, media, monkeypatch, package, suffix):
    video, wav = media.video(tmp_path / "a.mp4", seconds=1), media.wav(tmp_path / "a.wav", seconds=1)
    frames = media.frames(tmp_path / "a", seconds=1)
    load = optional.import_module

    def broken(name):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return load(name)

    monkeypatch.setattr(optional, "import_module", broken)
    files = {".mp4": ClipFiles(frames, video), ".wav": ClipFiles(frames, wav), "": ClipFiles(frames, wav)}[suffix]
    with pytest.raises(ImportError, match=rf'need {package}, .*pip install "fastav\[data\]"'):
        read_clip(files, num_segments=1)
