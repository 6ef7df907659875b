"""LIIF (Chen et al., CVPR 2021): one picture at any size. A small network gives the colour at any place.

As a peer it follows an interpolation, and enlarges every frame on its own.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stif_rt.model.encoder import conv

CHANNELS = 64
HIDDEN = 256
UNFOLDED = 9 * CHANNELS
"""Numbers that a cell gives: the features of its 3x3 neighbourhood."""
QUERIES = 2**15
"""Places that are computed at once."""


class EDSRBlock(nn.Module):
    """x + body(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(CHANNELS, CHANNELS), nn.ReLU(inplace=True), conv(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EDSR(nn.Module):
    """EDSR-baseline without its enlargement. The files hold two layers ``sub_mean`` and ``add_mean`` that never run."""

    def __init__(self, blocks: int = 16) -> None:
        super().__init__()
        self.sub_mean = conv(3, 3, 1)
        self.add_mean = conv(3, 3, 1)
        self.head = nn.Sequential(conv(3, CHANNELS))
        self.body = nn.Sequential(*(EDSRBlock() for _ in range(blocks)), conv(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return x + self.body(x)


class DenseLayer(nn.Module):
    """x, and behind it what a convolution adds."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(inputs, CHANNELS), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class DenseBlock(nn.Module):
    """x plus what a chain of dense layers makes of it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseLayer(CHANNELS * (n + 1)) for n in range(layers)))
        self.LFF = conv(CHANNELS * (layers + 1), CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LFF(self.convs(x)) + x


class RDN(nn.Module):
    """Residual dense network, configuration B, without its enlargement."""

    def __init__(self, blocks: int = 16, layers: int = 8) -> None:
        super().__init__()
        self.SFENet1 = conv(3, CHANNELS)
        self.SFENet2 = conv(CHANNELS, CHANNELS)
        self.RDBs = nn.ModuleList(DenseBlock(layers) for _ in range(blocks))
        self.GFF = nn.Sequential(conv(CHANNELS * blocks, CHANNELS, 1), conv(CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)
        x, results = self.SFENet2(shallow), []
        for block in self.RDBs:
            x = block(x)
            results.append(x)
        return self.GFF(torch.cat(results, 1)) + shallow


class MLP(nn.Module):
    """Four hidden layers; the last gives a colour."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (UNFOLDED + 4, HIDDEN, HIDDEN, HIDDEN):
            layers += [nn.Linear(inputs, HIDDEN), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LIIF(nn.Module):
    """An encoder and the network that is asked for each place.

    A place is told by its position in cells, 0 being the centre of the first: four predictions, from the cells around
    it, are blended bilinearly.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.imnet = MLP()

    @property
    def first(self) -> nn.Linear:
        return cast(nn.Linear, self.imnet.layers[0])

    def features(self, image: Tensor) -> Tensor:
        """[B, 64, h, w] of a picture [B, 3, h, w], RGB in [0, 1]."""
        return self.encoder(2 * image - 1)

    def cells(self, features: Tensor) -> Tensor:
        """The first layer's share of each cell, [B, h, w, 256]. It is linear in the cell's neighbourhood, so it is a
        convolution that runs once for all places."""
        weight = self.first.weight[:, :UNFOLDED].view(HIDDEN, CHANNELS, 3, 3)
        return F.conv2d(features, weight, padding=1).movedim(1, -1)

    def colours(self, cells: Tensor, position: Tensor, cell: Tensor) -> Tensor:
        """The network's answers, half the colour's distance from grey.

        Args:
            cells: [h, w, 256], of one picture.
            position: float64 [Q, 2], row and column in cells.
            cell: [2] or [Q, 2], height and width of an output pixel in cells, doubled.

        Returns:
            [Q, 3].
        """
        first, last = self.first, self.imnet.layers[-1]
        h, w = cells.shape[:2]
        indices, weights = self.neighbours(position, (h, w))
        hidden = 0
        flat = cells.reshape(h * w, -1)
        sizes = cell.to(flat.dtype) @ first.weight[:, UNFOLDED + 2 :].T + first.bias
        for cell_index, weight in zip(indices, weights, strict=True):
            offset = (2 * (position - cell_index)).to(flat.dtype)
            x = flat[(cell_index[:, 0] * w + cell_index[:, 1]).long()]  # a copy
            x += offset @ first.weight[:, UNFOLDED : UNFOLDED + 2].T
            x += sizes
            hidden = hidden + weight.to(flat.dtype)[:, None] * self.imnet.layers[1:-1](x)
        return last(hidden)

    @staticmethod
    def neighbours(position: Tensor, size: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
        """The four cells around each place, float64 [Q, 2], and their weights [Q], which sum to one."""
        below = position.floor()
        fraction = position - below
        most = position.new_tensor(size) - 1
        low, high = below.clamp(min=0).minimum(most), (below + 1).clamp(min=0).minimum(most)
        indices, weights = [], []
        for row, y in ((low, 1 - fraction), (high, fraction)):
            for column, x in ((low, 1 - fraction), (high, fraction)):
                indices.append(torch.stack((row[:, 0], column[:, 1]), 1))
                weights.append(y[:, 0] * x[:, 1])
        return indices, weights

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """A picture at another size.

        Args:
            image: [B, 3, h, w], RGB in [0, 1]; any size.
            size: (H, W) of the output; any scale, also different ones for height and width.

        Returns:
            RGB [B, 3, H, W], not clamped.

        Raises:
            ValueError: For another shape, or a size without pixels.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"LIIF takes pictures [B, 3, h, w], not {list(image.shape)}")
        if min(size) < 1:
            raise ValueError(f"LIIF cannot make a picture of {size[1]}x{size[0]} pixels")
        return torch.stack([self._picture(cells, size) for cells in self.cells(self.features(image))])

    def _picture(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        (h, w), (H, W) = cells.shape[:2], size
        y, x = (
            (2 * torch.arange(N, device=cells.device).double() + 1) * n / (2 * N) - 0.5 for n, N in ((h, H), (w, W))
        )
        cell = torch.tensor((2 * h / H, 2 * w / W), device=cells.device)
        step = max(1, QUERIES // W)
        rows = [torch.cartesian_prod(part, x) for part in y.split(step)]
        colours = torch.cat([self.colours(cells, position, cell) for position in rows])
        return colours.T.view(3, H, W) / 2 + 0.5


def liif_edsr() -> LIIF:
    return LIIF(EDSR())


def liif_rdn() -> LIIF:
    return LIIF(RDN())


FLAGS = {"local_ensemble": True, "feat_unfold": True, "cell_decode": True}
ARGUMENTS = {
    "edsr-baseline": {"n_resblocks": 16, "n_feats": 64, "res_scale": 1, "rgb_range": 1, "no_upsampling": True},
    "rdn": {"G0": 64, "RDNkSize": 3, "RDNconfig": "B", "no_upsampling": True},
    "mlp": {"out_dim": 3, "hidden_list": [HIDDEN] * 4},
}
"""What published files may say about the parts of a network, and the only values that are known here."""


def published_parameters(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Published files keep the parameters with a description of the network.

    Raises ValueError for networks other than LIIF with these encoders: nothing is built by a name found in a file.
    """
    model = content.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("sd"), Mapping):
        return content
    if model.get("name") != "liif":
        raise ValueError(f"it holds a network {model.get('name')!r}, not LIIF")
    arguments = dict(model.get("args", {}))
    for key in ("encoder_spec", "imnet_spec"):
        spec = arguments.pop(key, {})
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        if name not in ARGUMENTS:
            raise ValueError(f"its {key} is {name!r}; known are {', '.join(ARGUMENTS)}")
        _check(f"{key} {name}", dict(spec.get("args", {})), cast(Mapping[str, Any], ARGUMENTS[name]))
    _check("model", arguments, FLAGS)
    return model["sd"]


def _check(part: str, arguments: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if name == "scale":  # without effect
            continue
        if name not in known or known[name] != value:
            raise ValueError(f"its {part} has {name} = {value!r}, which is not LIIF as it was published")
