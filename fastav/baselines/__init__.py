"""The peers' methods, written anew from how they are described: what the side branches are compared with.

Each is called as an adapter is and gives what an adapter gives; see :func:`create_baseline`. Where adapters stand
inside of the blocks, gradients run through all blocks behind.
"""

from fastav.baselines.base import Baseline
from fastav.baselines.bottleneck import Bottleneck
from fastav.baselines.dgsct import DGSCTAdapter
from fastav.baselines.ladder import LadderSideTuning
from fastav.baselines.latent import LatentAttention, LavishAdapter
from fastav.baselines.lavish import Lavish
from fastav.baselines.live import LiveBackbone
from fastav.baselines.lockstep import in_step
from fastav.baselines.lora import Lora
from fastav.baselines.naive import Naive
from fastav.baselines.paired import DGSCT
from fastav.baselines.registry import BASELINES, create_baseline
from fastav.baselines.sites import inserted
from fastav.baselines.whole import FrozenFeatures, FullFineTuning

__all__ = [
    "BASELINES",
    "DGSCT",
    "Baseline",
    "Bottleneck",
    "DGSCTAdapter",
    "FrozenFeatures",
    "FullFineTuning",
    "LadderSideTuning",
    "LatentAttention",
    "Lavish",
    "LavishAdapter",
    "LiveBackbone",
    "Lora",
    "Naive",
    "create_baseline",
    "in_step",
    "inserted",
]
