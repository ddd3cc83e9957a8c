"""Where the pictures and sounds of clips lie under a data set's folder, whichever of the known layouts it has."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastav.data.errors import DataError

#: Folders of folders of numbered pictures, of original videos, and of sounds; all of them are looked for in each root.
FRAME_FOLDERS = ("video_frames", "frames", "frame")
VIDEO_FOLDERS = ("AVE", "video", "videos", "MUSIC-AVQA-videos-Real", "MUSIC-AVQA-videos-Synthetic")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
SOUND_FOLDERS = {
    "raw_audio": (".wav",),
    "audio": (".wav",),
    "audio_wav": (".wav",),
    "wave": (".npy",),
    "audio_wave": (".npy",),
}
MEDIA = ("auto", "video", "frames")


@dataclass(frozen=True)
class ClipFiles:
    """The files of one clip: a folder of frames or a video, and a sound file, array or video."""

    pictures: Path
    sound: Path


@dataclass(frozen=True)
class Layout:
    """Which layout was found, and the files of each clip.

    Attributes:
        pictures: where the pictures are, in words.
        sounds: where the sounds are, in words.
        files: by id, of the clips that have both.
        missing: by id, what is missing of the others, in words.
    """

    pictures: str
    sounds: str
    files: dict[str, ClipFiles]
    missing: dict[str, str]


def find_media(root: Path, ids: Iterable[str], *, media: str = "auto") -> Layout:
    """Find the pictures and sounds of clips.

    Of the layouts that are there, the one with most of the clips is taken, extracted files before videos where equal;
    one for all pictures and one for all sounds, never another one for a clip that lacks its file.

    Args:
        root: the data set's folder.
        ids: names of the clips' files, without suffix.
        media: "video": original videos alone; "frames": extracted frames and sounds alone; "auto": whatever is there.

    Raises:
        DataError: no folder of a known layout, or ``media`` is another word.
    """
    check_media(media)
    wanted = dict.fromkeys(ids)
    videos = _Store.of_videos(root)
    frames = [_Store.of_frames(root / name) for name in FRAME_FOLDERS]
    sounds = [_Store.of_sounds(root / name, suffixes) for name, suffixes in SOUND_FOLDERS.items()]
    if media == "video":
        frames, sounds = [], []
    extracted_only = media == "frames"
    pictures = _fullest([*frames, *([] if extracted_only else [videos])], wanted)
    sound = _fullest([*sounds, *([] if extracted_only else [videos])], wanted)
    if pictures is None or sound is None:
        what, folders = ("pictures", FRAME_FOLDERS) if pictures is None else ("sounds", tuple(SOUND_FOLDERS))
        known = {"video": VIDEO_FOLDERS, "frames": folders, "auto": (*folders, *VIDEO_FOLDERS)}[media]
        raise DataError(f"{root} has no folder with {what} of these clips: one of {', '.join(known)} is wanted in it")
    files, missing = {}, {}
    for name in wanted:
        lacks = [store.path_of(name) for store in (pictures, sound) if name not in store.found]
        if lacks:
            missing[name] = " and ".join(dict.fromkeys(lacks)) + " missing"
        else:
            files[name] = ClipFiles(pictures.found[name], sound.found[name])
    return Layout(pictures.words, sound.words, files, missing)


def check_media(media: str) -> None:
    """Raise DataError unless ``media`` is one of the words that readers know."""
    if media not in MEDIA:
        raise DataError(f"media={media!r}: one of {', '.join(MEDIA)} is wanted")


def find_file(root: Path, *names: str) -> Path | None:
    """The first of some files that is there, in the data set's folder or its "data" folder; None if none is."""
    places = [folder / name for name in names for folder in (root, root / "data")]
    return next((place for place in places if place.is_file()), None)


def read_annotations(path: str | Path) -> str:
    """The text of an annotation file, in UTF-8 with or without a byte order mark.

    Raises:
        DataError: it is in another encoding, or no text.
        OSError: it cannot be opened.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): save it as UTF-8, or "
            "get it again from where the data set is published"
        ) from error


def need_file(root: Path, *names: str) -> Path:
    """The same, for a file that must be there.

    Raises:
        DataError: none of the files is there.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: give the folder that holds the data set")
    found = find_file(root, *names)
    if found is None:
        raise DataError(f"{root} holds no {' or '.join(names)}, nor does its folder data: give the data set's folder")
    return found


def name_some(names: Collection[str], at_most: int = 5) -> str:
    """Some names in words, and how many more there are."""
    shown = ", ".join(list(names)[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


@dataclass(frozen=True)
class _Store:
    """One place of files: its name in words, a path as a pattern, and what is there, by id."""

    words: str
    pattern: str
    found: dict[str, Path]

    def path_of(self, name: str) -> str:
        return self.pattern.format(name)

    @classmethod
    def of_videos(cls, root: Path) -> "_Store":
        folders = [root / name for name in VIDEO_FOLDERS if (root / name).is_dir()]
        found = {path.stem: path for folder in reversed(folders) for path in _listing(folder, VIDEO_SUFFIXES)}
        names = "|".join(folder.name for folder in folders)
        return cls(f"videos in {names}", f"{names}/{{}}.mp4", found)

    @classmethod
    def of_frames(cls, folder: Path) -> "_Store":
        found = {path.name: path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}
        return cls(f"frames in {folder.name}", f"{folder.name}/{{}}", found)

    @classmethod
    def of_sounds(cls, folder: Path, suffixes: Sequence[str]) -> "_Store":
        found = {path.stem: path for path in _listing(folder, suffixes)}
        return cls(f"{suffixes[0]} sounds in {folder.name}", f"{folder.name}/{{}}{suffixes[0]}", found)


def _listing(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in suffixes] if folder.is_dir() else []


def _fullest(stores: Sequence[_Store], wanted: Collection[str]) -> _Store | None:
    """The store with most of the wanted clips, the first of equals; None where no store has any."""
    counted = [(sum(name in store.found for name in wanted), store) for store in stores]
    most, best = max(counted, key=lambda pair: pair[0], default=(0, None))
    return best if most else None
