"""Networks, one file per family, by the names in ``benchmarks.NETWORKS``.

A `NetworkSpec` says which network for which images, and builds it.
"""

from benchmarks import NETWORK_REGISTRY
from benchmarks.networks.base import FlaxNetwork, Network, NetworkSpec, batch_norms, get, usual_norm

__all__ = ["FlaxNetwork", "Network", "NetworkSpec", "batch_norms", "get", "names", "usual_norm"]

names = NETWORK_REGISTRY.names
