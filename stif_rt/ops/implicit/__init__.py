"""Kernel backends: what runs the implicit functions once per output pixel and time."""

import logging
import os
from types import ModuleType

import torch

from stif_rt.errors import CannotRunError
from stif_rt.model.checkpoints import check_castable
from stif_rt.model.config import Config
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.ops import native
from stif_rt.ops.implicit import cpu, cuda_backend, reference, triton_backend
from stif_rt.ops.implicit.interface import Kernels

log = logging.getLogger(__name__)

BACKENDS: dict[str, ModuleType] = {
    "cuda": cuda_backend,
    "triton": triton_backend,
    "cpu": cpu,
    "reference": reference,
}
"""In the order in which ``auto`` tries them. Each module has ``unavailable_reason(config, device, dtype)``, None or why
it cannot run, and ``build(functions, device, dtype)``."""


def choose_backend(config: Config, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that ``auto`` means for a network; a log says why those before it are not used."""
    for name, module in BACKENDS.items():
        reason = module.unavailable_reason(config, device, dtype)
        if reason is None:
            return name
        forced = module is cpu and device.type == "cpu" and native.ISA_ENV_VAR in os.environ
        log.log(logging.WARNING if forced else logging.INFO, "kernels %s not used: %s", name, reason)
    raise AssertionError("the reference runs everywhere")


def make_kernels(name: str, functions: ImplicitFunctions, device: torch.device, dtype: torch.dtype) -> Kernels:
    """The backend of that name, or the first that can run for ``auto``.

    Raises:
        ValueError: The name is unknown, or the functions have values that the dtype cannot hold.
        CannotRunError: The backend asked for cannot run here; the message has the reason.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"unknown kernels {name!r}; there are: auto, {', '.join(BACKENDS)}")
    check_castable(functions, dtype)
    if name == "auto":
        name = choose_backend(functions.config, device, dtype)
    elif reason := BACKENDS[name].unavailable_reason(functions.config, device, dtype):
        raise CannotRunError(f"kernels {name!r} cannot run: {reason}")
    log.info("kernels: %s", name)
    kernels: Kernels = BACKENDS[name].build(functions, device, dtype)
    return kernels
