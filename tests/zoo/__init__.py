"""Small ONNX networks with true wiring and random statistics, to fold in tests.

Each entry of `ZOO` builds a model: `ZOO["resnetv2_50"](dtype=np.float64, seed=3, signs="both", zero_gamma=0.1)`.
`EXPECTED_BN` holds the number of batch norms that the published architecture has.
"""

from . import networks
from .builder import NetBuilder
from .core import Signs
from .registry import EXPECTED_BN, ZOO, Network

__all__ = ["EXPECTED_BN", "ZOO", "NetBuilder", "Network", "Signs", "networks"]
