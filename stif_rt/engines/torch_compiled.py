"""The encoder through ``torch.compile``: what a GPU runs until an exported engine is given."""

import logging

import torch
from torch import Tensor

from stif_rt.engines.torch_eager import TorchEngine
from stif_rt.model.encoder import Encoder

log = logging.getLogger(__name__)


class CompiledEngine(TorchEngine):
    """As ``TorchEngine``, compiled at the first call for each size; without a compiler it runs eagerly and says why."""

    name = "compiled"

    def __init__(self, encoder: Encoder, device: torch.device, dtype: torch.dtype, backend: str = "inductor") -> None:
        super().__init__(encoder, device, dtype)
        self.compiled = torch.compile(self.encoder, backend=backend, dynamic=False)
        self.failed = False

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        if not self.failed:
            try:
                return self.compiled(frames.to(self.dtype))
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # a missing C compiler, an operation it cannot take: many kinds
                reason = " ".join(str(error).split())[:300]
                log.warning("torch.compile cannot run the encoder, it runs eagerly: %s", reason)
                self.failed = True
        return super().__call__(frames)
