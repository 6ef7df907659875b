"""The encoder through ``torch.compile``: what a GPU runs until an exported engine is given."""

import logging

import torch
from torch import Tensor

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.encoder import Features
from stif_rt.model.stif import AnyEncoder

log = logging.getLogger(__name__)


class CompiledEngine(TorchEngine):
    """As ``TorchEngine``, compiled at the first call for each size; without a compiler it runs eagerly and says why."""

    name = "compiled"

    def __init__(
        self, encoder: AnyEncoder, device: torch.device, dtype: torch.dtype, backend: str = "inductor"
    ) -> None:
        super().__init__(encoder, device, dtype)
        self.compiled = torch.compile(self.encoder, backend=backend, dynamic=False)
        self.failed = False

    @torch.inference_mode()
    def __call__(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        if not self.failed:
            try:
                features: Features = self.compiled(frames.to(self.dtype), velocity)
                return features
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # a missing C compiler, an operation it cannot take: many kinds
                reason = " ".join(str(error).split())[:300]
                log.warning("torch.compile cannot run the encoder, it runs eagerly: %s", reason)
                self.failed = True
        return super().__call__(frames, velocity)
