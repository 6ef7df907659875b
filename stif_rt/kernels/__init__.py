"""Kernel backends: what runs the implicit functions once per output pixel and time."""

import logging
from types import ModuleType

import torch
from torch import Tensor

from stif_rt.kernels import cpu, reference, triton
from stif_rt.kernels.interface import Box, Kernels, Projections
from stif_rt.model.config import Config
from stif_rt.model.coordinates import Geometry, in_output_pixels
from stif_rt.model.implicit_functions import ImplicitFunctions

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {"triton": triton, "cpu": cpu, "reference": reference}
"""By preference. Each module has ``unavailable_reason(config, device, dtype)``, None or why it cannot run, and
``build(functions, device, dtype)``."""


def make_kernels(name: str, functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> Kernels:
    """The backend of that name, or the first that can run for ``auto``.

    Raises ValueError for an unknown name, and RuntimeError with the reason where a backend asked for cannot run.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown kernels {name!r}; there are: auto, {', '.join(BACKENDS)}")
    for candidate, module in BACKENDS.items():
        if name not in ("auto", candidate):
            continue
        reason = module.unavailable_reason(functions.config, device, dtype)
        if reason is None:
            log.info("kernels: %s", candidate)
            kernels: Kernels = module.build(functions, device, dtype)
            return with_flow_unit(kernels, functions.config)
        if name == candidate:
            raise RuntimeError(f"kernels {name!r} cannot run: {reason}")
        log.info("kernels %s not used: %s", candidate, reason)
    raise AssertionError("the reference runs everywhere")


def with_flow_unit(kernels: Kernels, config: Config) -> Kernels:
    """The kernels, returning flow in output pixels for a model that counts in input pixels too.

    Between the two passes the flow is a tensor anyway, so no backend needs to know the unit.
    """
    return kernels if config.flow_unit == "output" or not config.flow else InputPixelFlow(kernels, config)


class InputPixelFlow:
    """A backend's kernels for a model whose flow is in input pixels. See ``Kernels`` for the shapes."""

    def __init__(self, kernels: Kernels, config: Config) -> None:
        self.kernels = kernels
        self.config = config
        self.project = kernels.project
        self.decode = kernels.decode

    def implicit(
        self, projections: Projections, times: Tensor, geometry: Geometry, box: Box
    ) -> tuple[Tensor | None, Tensor | None]:
        feature, flow = self.kernels.implicit(projections, times, geometry, box)
        return feature, None if flow is None else in_output_pixels(self.config, flow, geometry)
