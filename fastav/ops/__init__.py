"""The five ops that everything beside the frozen backbones is made of, each over the whole list of taps in one call.

One file an op: its mathematics, its checks, its registration and its public function. :mod:`fastav.reference` defines
what each computes; which implementation serves a call is the business of :func:`set_backend` and :func:`backends`.
"""

from fastav.ops._backends import BackendStatus, backends, set_backend
from fastav.ops.distill import distill
from fastav.ops.fuse import fuse
from fastav.ops.inject import inject
from fastav.ops.orthogonality import orthogonality
from fastav.ops.project import project

__all__ = [
    "BackendStatus",
    "backends",
    "distill",
    "fuse",
    "inject",
    "orthogonality",
    "project",
    "set_backend",
]
