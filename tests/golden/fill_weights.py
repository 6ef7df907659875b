"""Deterministic weights for the golden cases, the same on every machine.

``fill(shapes, seed)`` maps a manifest (parameter name -> shape) to float32 arrays. Each
array is drawn from its own PCG64 stream, seeded by the CRC-32 of the parameter's name, so
neither the order of the parameters nor the version of torch matters. The gains are chosen
so that activations stay of order one and deformable offsets reach a few pixels.
"""

import math
import zlib

import numpy as np

SIREN_OMEGA = 30.0


def fill(shapes, seed=0):
    """Return {name: float32 array} for {name: shape}."""
    fan_in = {n[: -len(".weight")]: math.prod(s[1:]) for n, s in shapes.items() if n.endswith(".weight")}
    return {name: _draw(name, tuple(shape), fan_in, seed) for name, shape in shapes.items()}


def _draw(name, shape, fan_in, seed):
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    module, _, kind = name.rpartition(".")
    return (rng.uniform(-1.0, 1.0, shape) * _bound(module, kind, fan_in[module])).astype(np.float32)


def _bound(module, kind, n):
    if "imnet" in module:  # SIREN layers: first layer 1/n, the others sqrt(6/n)/omega
        first = module.endswith("net.0.linear")
        if kind == "bias":
            return 1.0 / math.sqrt(n)
        if first:
            return 1.0 / n
        # The last, linear layer of each MLP is amplified: features and colours of order one, flows of several pixels.
        gain = (
            1.0
            if module.endswith(".linear")
            else {"feat_imnet": 10.0, "flow_imnet": 60.0, "encode_imnet": 10.0}[module.split(".")[0]]
        )
        return gain * math.sqrt(6.0 / n) / SIREN_OMEGA
    if "conv_offset_mask" in module or module.endswith(".conv_offset"):  # the second is EDVR's name
        return 1.5 if kind == "bias" else 1.0 / math.sqrt(n)
    if kind == "bias":
        return 0.1
    trunk = any(part in module for part in ("recon_trunk", "feature_extraction", "reconstruction"))
    residual = trunk and module.endswith("conv2")
    # The output layers of Super SloMo's two networks are amplified: flows of several pixels.
    gain = {"flow.conv3": 16.0, "interp.conv3": 6.0}.get(module, 0.1 if residual else 0.9)
    return math.sqrt(6.0 / n) * gain
