"""The peers' adapters, written anew from how they are described: what the side branches are compared with.

Each is what stands beside one block of a backbone; gradients of all of them run through the blocks behind.
"""

from fastav.baselines.bottleneck import Bottleneck
from fastav.baselines.dgsct import DGSCTAdapter
from fastav.baselines.latent import LatentAttention, LavishAdapter
from fastav.baselines.live import LiveBackbone
from fastav.baselines.lockstep import in_step
from fastav.baselines.sites import inserted

__all__ = ["Bottleneck", "DGSCTAdapter", "LatentAttention", "LavishAdapter", "LiveBackbone", "in_step", "inserted"]
