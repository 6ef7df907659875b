"""Scenes made of still pictures in known motion: a background and cut-outs over it, each moving smoothly.

Every point of a layer moves along a straight line at constant speed: a point that is at X midway between the inputs is
at X + (t - 1/2) v(X) at time t. v is the layer's velocity: translation, rotation and zoom about a centre, and a slow
wave. So the picture at any time can be rendered exactly, and where each of its pixels is seen in either input is known.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ITERATIONS = 4
"""Steps towards the fixed point X = x - (t - 1/2) v(X). v changes by less than 0.3 per pixel, so each leaves a sixth of
the error."""
OPAQUE, CLEAR = 0.95, 0.05
"""Coverage from which a layer alone is seen, and up to which it is not seen at all."""


@dataclass(frozen=True)
class Velocity:
    """v(X) = shift + matrix (X - centre) + amplitude sin(wave . X + phase), in pixels between the two inputs, x first.

    shift, centre, amplitude, wave: [2]. matrix: [2, 2].
    """

    shift: Tensor
    matrix: Tensor
    centre: Tensor
    amplitude: Tensor
    wave: Tensor
    phase: float

    def __call__(self, X: Tensor) -> Tensor:
        """X: [..., 2]. Returns [..., 2]."""
        waves = torch.sin(X @ self.wave + self.phase)
        return self.shift + (X - self.centre) @ self.matrix.T + waves[..., None] * self.amplitude

    def origin(self, x: Tensor, t: float) -> Tensor:
        """Where the points that are at x at time t are midway between the inputs."""
        X = x
        for _ in range(ITERATIONS):
            X = x - (t - 0.5) * self(X)
        return X


@dataclass(frozen=True)
class Layer:
    """picture: [3, h, w]. matte: coverage, [1, side, side], None for one that covers everything. corner: [2], position
    in the picture of the scene's first pixel."""

    velocity: Velocity
    picture: Tensor
    matte: Tensor | None
    corner: Tensor

    def colour(self, X: Tensor) -> Tensor:
        """X: [h, w, 2]. Returns [3, h, w]."""
        return _sample(self.picture, X + self.corner, "bicubic", "reflection").clamp(0, 1)

    def coverage(self, X: Tensor) -> Tensor:
        """X: [h, w, 2]. Returns [h, w]."""
        if self.matte is None:
            return torch.ones(X.shape[:-1])
        # sampling can round 1 up, and black that covers more than everything is negative
        return _sample(self.matte, X, "bilinear", "zeros")[0].clamp(max=1)


def render_motion(
    pictures: list[NDArray[np.uint8]], times: list[float], side: int, largest: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Renders a scene of as many layers as there are pictures, the background first.

    Args:
        pictures: uint8 [h, w, 3] each.
        times: T of them in [0, 1].
        side: of the square frames, pixels.
        largest: speed that a layer's translation reaches at most, in pixels between the inputs.
        rng: decides shapes and motion.

    Returns:
        images: float32 [2 + T, 3, side, side] in [0, 1], the inputs (times 0 and 1) first.
        flow: float32 [T, side, side, 4], (x0, y0, x1, y1) in pixels, from each pixel to where the same point is in the
            inputs.
        visible: float32 [T, side, side, 2], 1 where that place shows that point, else 0.
    """
    layers = _scene(pictures, side, largest, rng)
    x = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).float()
    images, flows, visible = [], [], []
    for number, t in enumerate((0.0, 1.0, *times)):
        image, flow, top = _render(layers, x, t)
        images.append(image)
        if number >= 2:
            flows.append(flow)
            visible.append(
                torch.stack([_visible(layers, x + flow[..., 2 * k : 2 * k + 2], k, top) for k in (0, 1)], -1)
            )
    return torch.stack(images), torch.stack(flows), torch.stack(visible).float()


def _render(layers: list[Layer], x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Picture, flow, and the layer that alone is seen (-1 where several are) at the pixels x, [h, w, 2]."""
    h, w, _ = x.shape
    image, flow, top = torch.zeros(3, h, w), torch.zeros(h, w, 4), torch.zeros(h, w, dtype=torch.long)
    for number, layer in enumerate(layers):
        X = layer.velocity.origin(x, t)
        cover = layer.coverage(X)
        image = image + cover * (layer.colour(X) - image)
        v = layer.velocity(X)
        opaque = cover >= OPAQUE
        flow = torch.where(opaque[..., None], torch.cat((-t * v, (1 - t) * v), -1), flow)
        top = torch.where(opaque, number, torch.where(cover > CLEAR, -1, top))
    return image, flow, top


def _visible(layers: list[Layer], place: Tensor, t: float, top: Tensor) -> Tensor:
    """Whether the points at ``place``, [h, w, 2], of the layers ``top`` are seen at time t."""
    h, w, _ = place.shape
    seen = ((place >= 0) & (place <= place.new_tensor((w - 1, h - 1)))).all(-1) & (top >= 0)
    for number, layer in enumerate(layers[1:], 1):
        if (top < number).any():
            seen = seen & ((layer.coverage(layer.velocity.origin(place, t)) <= CLEAR) | (top >= number))
    return seen


def _scene(pictures: list[NDArray[np.uint8]], side: int, largest: float, rng: np.random.Generator) -> list[Layer]:
    """Layers that share part of the background's motion, as a moving camera makes it."""
    layers: list[Layer] = []
    for picture in pictures:
        shared = layers[0].velocity.shift * rng.random() if layers else torch.zeros(2)
        margin = round(largest / 2)
        h, w, _ = picture.shape
        height, width = min(h, side + 2 * margin), min(w, side + 2 * margin)
        top, left = rng.integers(h - height + 1), rng.integers(w - width + 1)
        part = torch.from_numpy(picture[top : top + height, left : left + width].copy()).movedim(-1, 0).float() / 255
        corner = torch.tensor(((width - side) / 2, (height - side) / 2))
        velocity = _velocity(side, largest, shared, rng)
        layers.append(Layer(velocity, part, _matte(side, rng) if layers else None, corner))
    return layers


def _velocity(side: int, largest: float, shared: Tensor, rng: np.random.Generator) -> Velocity:
    """Small motions are as common as large ones: speeds are uniform in their square root."""
    angle, speed = rng.uniform(0, 2 * math.pi), largest * rng.random() ** 2
    shift = shared + speed * torch.tensor((math.cos(angle), math.sin(angle)))
    shift = shift * min(1.0, largest / max(float(shift.norm()), 1e-6))
    turn, zoom = rng.normal(0, 0.04, 2).clip(-0.1, 0.1)
    direction, length = rng.uniform(0, 2 * math.pi), 2 * math.pi / (side * rng.uniform(0.5, 2))
    amplitude = 0.08 / length * rng.random() * rng.choice((-1, 1), 2)
    return Velocity(
        shift.float(),
        torch.tensor(((zoom, -turn), (turn, zoom))).float(),
        torch.from_numpy(rng.uniform(0, side, 2)).float(),
        torch.from_numpy(amplitude).float(),
        length * torch.tensor((math.cos(direction), math.sin(direction))),
        float(rng.uniform(0, 2 * math.pi)),
    )


def _matte(side: int, rng: np.random.Generator) -> Tensor:
    """A random blob of a tenth to a half of the side, small ones as common as large, its outline one to a few pixels
    soft."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    cy, cx = rng.uniform(0, side, 2)
    angle, distance = np.arctan2(y - cy, x - cx), np.hypot(y - cy, x - cx)
    radius = side * np.exp(rng.uniform(np.log(0.05), np.log(0.3))) * np.ones_like(x)
    for n in range(1, 7):
        radius *= 1 + rng.uniform(-0.25, 0.25) / n**0.5 * np.sin(n * angle + rng.uniform(0, 2 * np.pi))
    softness = np.exp(rng.uniform(0, np.log(4)))
    return torch.from_numpy(np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32))[None]


def _sample(image: Tensor, position: Tensor, mode: str, padding: str) -> Tensor:
    """image: [c, h, w]. position: [H, W, 2], pixels, x first. Returns [c, H, W]."""
    size = position.new_tensor((image.shape[2], image.shape[1]))
    normalised = (2 * position + 1) / size - 1
    return F.grid_sample(image[None], normalised[None], mode, padding, align_corners=False)[0]
