"""The encoder through ``torch.compile``: what a GPU runs until an exported engine is given."""

import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from stif_rt.engines.torch_eager import Extracted, TorchEngine
from stif_rt.errors import is_out_of_memory
from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder

log = logging.getLogger(__name__)

R = TypeVar("R")


def unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why ``torch.compile`` cannot work on this device, or None."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs Triton on GPUs: pip install triton"
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    if sys.platform != "win32" and not any(map(shutil.which, (os.environ.get(variable, ""), *names))):
        return f"torch.compile needs a compiler: there is no {' or '.join(names)}, and {variable} names none"
    return None


def build(encoder: AnyEncoder, device: torch.device, dtype: torch.dtype) -> "CompiledEngine":
    """The engine of a network, which it takes over."""
    return CompiledEngine(encoder, device, dtype)


class CompiledEngine(TorchEngine):
    """As ``TorchEngine``, compiled at the first call, and at the second size once more, then for any size.

    Where that fails it runs eagerly and says why. It is tried again after 1 call, after 2, 4, 8 and so on: a failure
    may pass, and one that does not costs little in the end.
    """

    name = "compiled"

    def __init__(
        self, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype, backend: str = "inductor"
    ) -> None:
        super().__init__(encoder, device, dtype)
        # fullgraph: PyTorch raises, rather than run eagerly without a word, when it has compiled too many variants
        self._extract = torch.compile(self.encoder.extract, backend=backend, fullgraph=True)
        self._merge = torch.compile(self.encoder.merge, backend=backend, fullgraph=True)
        self.failures = 0
        """How often in a row it failed."""
        self._calls_to_wait = 0

    @torch.inference_mode()
    def extract(self, frames: Tensor, matching: bool = True) -> Extracted:
        frames = frames.to(memory_format=torch.channels_last)
        return self._run(self._extract, self.encoder.extract, frames, matching)

    @torch.inference_mode()
    def merge(self, first: Extracted, second: Extracted, velocity: Tensor | None = None, maps: bool = True) -> Features:
        return self._run(self._merge, self.encoder.merge, [first, second], velocity)

    def _run(self, compiled: Callable[..., R], eager: Callable[..., R], *args: object) -> R:
        if self._calls_to_wait > 0:
            self._calls_to_wait -= 1
            return eager(*args)
        try:
            result = compiled(*args)
        except Exception as error:  # a missing C compiler, an operation it cannot take: many kinds
            if is_out_of_memory(error):
                raise
            self._calls_to_wait = 2**self.failures
            self.failures += 1
            reason = " ".join(str(error).split())[:300]
            log.warning("torch.compile cannot run the encoder, it runs eagerly for now: %s", reason)
            return eager(*args)
        self.failures = 0
        return result
