"""Deterministic weights for the golden cases, the same on every machine.

``fill(shapes, seed)`` maps a manifest (parameter name -> shape) to float32 arrays. Each
array is drawn from its own PCG64 stream, seeded by the CRC-32 of the parameter's name, so
neither the order of the parameters nor the version of torch matters. The gains are chosen
so that activations stay of order one and deformable offsets reach a few pixels.
"""

import math
import re
import zlib

import numpy as np

SIREN_OMEGA = 30.0

# BasicVSR, LIIF, QVI and DAIN: module name (whole match) -> factor on its weight and bias, a power of two.
FACTORS = {
    r"spynet\.basic_module\.\d\.basic_module\.8": 2.0**-1,  # flow residuals: flows of a few pixels
    r"(backward|forward)_trunk\.main\.2\.\d+\.conv2": 2.0**-3,  # ends of residual branches
    r"encoder\.body\.\d+\.body\.2": 2.0**-3,
    r"encoder\.RDBs\.\d+\.LFF": 2.0**-3,
    # QVI: PWC-Net's features and correlations near one, flows of a few pixels; then the U-Net and the mask.
    r"flownet\.moduleExtractor\.module((One|Thr|Fiv|Six)\.0|Six\.2)": 2.0,
    r"flownet\.module\w+\.moduleUpfeat": 2.0**-3,
    r"flownet\.module(Thr|Fou|Fiv|Six)\.moduleSix\.0": 2.0**-1,
    r"refinenet\.down[1-5]\.conv1": 2.0,
    r"masknet\.conv3": 2.0**2,
    # DAIN: its PWC-Net likewise, and the correction of the blend.
    r"flownets\.conv(1a|3a|5a|6aa|6a)\.0": 2.0,
    r"flownets\.upfeat\d": 2.0**-3,
    r"flownets\.(predict_flow[2-6]|dc_conv7)": 2.0**-1,
    r"rectifyNet\.block5\.0": 2.0**-2,
}
# Buffers with fixed values.
CONSTANTS = {"spynet.mean": (0.485, 0.456, 0.406), "spynet.std": (0.229, 0.224, 0.225)}


def fill(shapes, seed=0):
    """Return {name: float32 array} for {name: shape}."""
    fan_in = {n[: -len(".weight")]: math.prod(s[1:]) for n, s in shapes.items() if n.endswith(".weight")}
    return {name: _draw(name, tuple(shape), fan_in, seed) for name, shape in shapes.items()}


def _draw(name, shape, fan_in, seed):
    if name in CONSTANTS:
        return np.array(CONSTANTS[name], dtype=np.float32).reshape(shape)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    module, _, kind = name.rpartition(".")
    if kind == "running_mean":
        return rng.uniform(-0.1, 0.1, shape).astype(np.float32)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):  # batch normalisation
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    bound = _bound(module, kind, fan_in[module]) * _factor(module)
    return (rng.uniform(-1.0, 1.0, shape) * bound).astype(np.float32)


def _factor(module):
    return next((factor for pattern, factor in FACTORS.items() if re.fullmatch(pattern, module)), 1.0)


def _bound(module, kind, n):
    if "_imnet" in module:  # SIREN layers: first layer 1/n, the others sqrt(6/n)/omega
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
