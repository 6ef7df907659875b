"""The runtime: a model on one device, pairs of frames that are encoded with it, pictures that are rendered from them.

``runtime.py`` and ``pair.py`` hold the two public classes; ``frames.py`` and ``requests.py`` check what they are
given, ``encoding.py`` and ``tiling.py`` keep to the memory budget, ``weights.py`` finds bundled weights by name,
``device.py`` chooses device and dtype, ``cuda_graphs.py`` replays.
"""

from stif_rt.runtime.device import choose_device, choose_dtype
from stif_rt.runtime.frames import Picture
from stif_rt.runtime.pair import Pair
from stif_rt.runtime.requests import Scale, Size, Times, output_size
from stif_rt.runtime.runtime import Runtime
from stif_rt.runtime.weights import bundled_weights, find_weights, weights_for_scale

__all__ = [
    "Pair",
    "Picture",
    "Runtime",
    "Scale",
    "Size",
    "Times",
    "bundled_weights",
    "choose_device",
    "choose_dtype",
    "find_weights",
    "output_size",
    "weights_for_scale",
]
