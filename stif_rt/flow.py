"""Pictures of a flow."""

import math

import torch
from torch import Tensor


def flow_to_image(flow: Tensor, largest: float | None = None) -> Tensor:
    """Show a flow as colours: the hue is its direction, the saturation its length.

    Args:
        flow: [..., 2, H, W], x before y, in pixels; or [..., 4, H, W] as ``Pair.flow`` returns it, of which the first
            two are shown, where the first frame is read.
        largest: The length, in pixels, that has the full colour. By default the longest 1 % of all have it.

    Returns:
        RGB, uint8 [..., H, W, 3], on the flow's device; white where nothing moves or the flow is not finite.

    Raises:
        TypeError: The flow is no tensor.
        ValueError: The flow has another shape, or ``largest`` is not a positive number.
    """
    if not isinstance(flow, Tensor):
        raise TypeError(f"a flow is a tensor, not a {type(flow).__name__}; give torch.as_tensor(flow) of an array")
    if flow.ndim < 3 or flow.shape[-3] not in (2, 4) or flow.numel() == 0:
        raise ValueError(f"a flow is [..., 2, H, W] or [..., 4, H, W], not {list(flow.shape)}")
    if largest is not None and not (largest > 0 and math.isfinite(largest)):
        raise ValueError(f"largest must be a positive number of pixels, not {largest}")
    x, y = flow.detach().float().nan_to_num(0, 0, 0)[..., :2, :, :].unbind(-3)
    length = torch.hypot(x, y)
    if largest is None:
        lengths = length.flatten()
        largest = max(float(lengths.kthvalue(math.ceil(0.99 * len(lengths))).values), 1e-6)
    sector = 3 * torch.atan2(y, x) / math.pi  # -3 to 3, a sixth of the colour wheel each
    shift = sector.new_tensor((0.0, 4.0, 2.0))
    hue = (((sector[..., None] + shift) % 6 - 3).abs() - 1).clamp(0, 1)
    colours = 1 - (length / largest).clamp(0, 1)[..., None] * (1 - hue)
    return (colours * 255).round().byte()
