"""fastav adapts big frozen audio and visual transformers without back-propagating through them.

See the README for the way in, :class:`MettleAdapter` for the adapter and :mod:`fastav.ops` for what it is made of.
"""

from fastav import ops, reference
from fastav.ops import backends, set_backend

__version__ = "0.1.0"

__all__ = ["backends", "ops", "reference", "set_backend"]
