"""What goes wrong with data on disk."""


class DataError(ValueError):
    """An annotation, a layout or a file that cannot be right; the message names it and says what to do."""


class MediaError(DataError):
    """A video, sound, frame or mask that cannot be decoded; ``on_error="skip"`` leaves such clips out."""


class MediaWarning(UserWarning):
    """Something was filled in: a sound or a video is shorter than its clip, or a broken clip was left out."""
