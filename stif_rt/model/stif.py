"""The whole network: encoder and implicit functions."""

from typing import Any

from torch import Tensor, nn

from stif_rt.model.compact import CompactEncoder
from stif_rt.model.config import Config
from stif_rt.model.encoder import Encoder, Features
from stif_rt.model.implicit_functions import Decoded, ImplicitFunctions

AnyEncoder = Encoder | CompactEncoder
"""Each has ``extract`` for one frame, ``merge`` for both, and takes a pair of frames and perhaps a velocity."""
IMPLICIT_NETWORKS = ("feat_imnet", "flow_imnet", "encode_imnet")


class STIF(nn.Module):
    """Continuous space-time video super-resolution (VideoINR, CVPR 2022).

    ``state_dict`` and ``load_state_dict`` speak the flat parameter names of published checkpoints.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.encoder: AnyEncoder = CompactEncoder(self.config) if self.config.motion else Encoder(self.config)
        self.implicit_functions = ImplicitFunctions(self.config)
        self.register_state_dict_post_hook(_to_published_names)
        self.register_load_state_dict_pre_hook(_from_published_names)

    def encode(self, frames: Tensor, velocity: Tensor | None = None) -> Features:
        """Features of a pair of frames.

        frames: [B, 2, 3, h, w] in [0, 1], h and w multiples of ``Config.multiple``. velocity: [B, 2, h, w], x first, in
        pixels of the frames, of what lies there midway, used instead of the one that the network finds.
        """
        features: Features = self.encoder(frames, velocity)
        return features

    def decode(self, features: Features, frames: Tensor, times: Tensor, size: tuple[int, int]) -> Decoded:
        """See ``ImplicitFunctions.forward``."""
        return self.implicit_functions(features, frames, times, size)

    def forward(self, frames: Tensor, times: Tensor, size: tuple[int, int]) -> Tensor:
        """RGB [B, 3, H, W] at ``times`` [B] and ``size`` (H, W); not clamped."""
        return self.decode(self.encode(frames), frames, times, size).rgb


def _to_published_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        _, _, published = name.removeprefix(prefix).partition(".")
        state[prefix + published] = state.pop(name)


def _from_published_names(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: object
) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        published = name.removeprefix(prefix)
        part = "implicit_functions" if published.split(".")[0] in IMPLICIT_NETWORKS else "encoder"
        state[f"{prefix}{part}.{published}"] = state.pop(name)
