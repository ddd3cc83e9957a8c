"""Synthetic media whose contents are known: a second of video is one grey level, a second of sound one level."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest


class Media:
    """Writers of small media files; all return the path."""

    @staticmethod
    def grey(second):
        """The level of a second's frames."""
        return 20 + 20 * second

    @staticmethod
    def level(second):
        """The level of a second's sound."""
        return (second + 1) / 16

    def samples(self, seconds, rate):
        """A constant level each second, (samples,) float32."""
        return np.repeat([self.level(second) for second in range(seconds)], rate).astype(np.float32)

    def wav(self, path, seconds=10, rate=16000, channels=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        pytest.importorskip("soundfile").write(
            path, np.stack([self.samples(seconds, rate)] * channels, 1), rate, subtype="FLOAT"
        )
        return path

    def npy(self, path, seconds=10, rate=32000):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, self.samples(seconds, rate))
        return path

    def picture(self, path, value, size=(8, 6), mode="L"):
        """A picture of one level; RGB pictures have it in all colours."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = pytest.importorskip("PIL.Image").new("L", size, value).convert(mode)
        picture.save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
        return path

    def frames(self, folder, seconds=10, fps=1, digits=4, suffix=".jpg"):
        """Pictures numbered from 1, each of its second's grey."""
        for frame in range(seconds * fps):
            self.picture(folder / f"{frame + 1:0{digits}d}{suffix}", self.grey(frame // fps))
        return folder

    def video(
        self,
        path,
        seconds=10,
        fps=5,
        rate=16000,
        *,
        greys=None,
        sound=True,
        picture=True,
        rotation=0,
        gop=12,
        late=0,
        codec="libx264",
        options=None,
        **muxer,
    ):
        """A video of 32 x 24 pixels, each second of its grey or each frame of its own, and sound of seconds' levels.

        Pictures start at the second ``late``; the first of ``greys`` is shown then.
        """
        greys = greys or [self.grey(frame // fps) for frame in range(seconds * fps)]
        path.parent.mkdir(parents=True, exist_ok=True)
        av = pytest.importorskip("av")
        with av.open(str(path), "w", options=muxer) as container:
            if picture:
                stream = container.add_stream(codec, rate=fps, options=options or {"crf": "10", "preset": "ultrafast"})
                stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
                stream.codec_context.gop_size = gop
                if rotation:
                    stream.set_display_rotation(rotation)
            if sound:
                audio = container.add_stream("pcm_f32le" if path.suffix == ".mkv" else "aac", rate=rate)
                audio.layout = "mono"
            if picture:
                for index, grey in enumerate(greys):
                    array = np.full((24, 32, 3), grey, np.uint8)
                    array[:, :4] = 255  # the left edge is white, so that turned frames show
                    frame = av.VideoFrame.from_ndarray(array)
                    frame.pts, frame.time_base = index + late * fps, Fraction(1, fps)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            if sound:
                frame = av.AudioFrame.from_ndarray(self.samples(seconds, rate)[None], "flt", "mono")
                frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
                resampler = av.AudioResampler(
                    audio.codec_context.format.name, "mono", rate, audio.frame_size or rate // 10
                )
                for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                    container.mux(audio.encode(piece))
                container.mux(audio.encode())
        return path


@pytest.fixture
def media():
    """Writers of small media files."""
    return Media()


@pytest.fixture(scope="session")
def real_annotations():
    """Folder of the data sets' own annotation files, beside the checkout; they are no part of the project."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets' annotation files are not beside this checkout")
    return folder
