"""What goes wrong with data on disk."""


class DataError(ValueError):
    """An annotation, a layout or a file that cannot be right; the message names it and says what to do."""


class MediaError(DataError):
    """A video, sound, frame or mask that cannot be decoded; ``on_error="skip"`` leaves such clips out."""


class MissingError(DataError):
    """Clips lack files, and were not to be left out, or nothing would be left.

    Attributes:
        missing: by name of the clips' files, what they lack, in words.
    """

    def __init__(self, message: str, missing: dict[str, str]) -> None:
        super().__init__(message, missing)
        self.missing = missing

    def __str__(self) -> str:
        return self.args[0]


class MediaWarning(UserWarning):
    """Something was filled in: a sound or a video is shorter than its clip, or a broken clip was left out."""
