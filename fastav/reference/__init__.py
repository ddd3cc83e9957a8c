"""The definition of right: the five ops in plain PyTorch, literal and readable, good in float64.

Each ``<op>`` is written as :mod:`fastav.ops` documents it, without its argument checks. Each ``<op>_backward`` is the
same op's gradient in closed form, which is what :mod:`fastav.ops` runs backward. Where a kernel's backward pass needs
more than the op's own inputs, ``<op>_forward`` gives that beside the outputs; here everything is computed anew.
"""

from fastav.reference.distill import distill, distill_backward, distill_forward
from fastav.reference.fuse import fuse, fuse_backward, fuse_forward
from fastav.reference.inject import inject, inject_backward
from fastav.reference.orthogonality import orthogonality, orthogonality_backward
from fastav.reference.project import project, project_backward

__all__ = [
    "distill",
    "distill_backward",
    "distill_forward",
    "fuse",
    "fuse_backward",
    "fuse_forward",
    "inject",
    "inject_backward",
    "orthogonality",
    "orthogonality_backward",
    "project",
    "project_backward",
]
