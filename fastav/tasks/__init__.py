"""Audio-visual tasks: head, loss and decoding of each; its metric stands beside it and in :mod:`fastav.metrics`."""

from fastav.tasks.localization import LocalizationHead, decode_localization, localization_loss

__all__ = ["LocalizationHead", "decode_localization", "localization_loss"]
