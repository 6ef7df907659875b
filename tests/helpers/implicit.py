"""The implicit functions of a case, by a backend and by the model's own form."""

import torch

from helpers.cases import Case
from helpers.models import functions
from stif_rt.geometry import Box, cell_count, make_geometry
from stif_rt.model.config import Config
from stif_rt.model.encoder import Features
from stif_rt.model.implicit_functions import ImplicitFunctions
from stif_rt.ops.implicit.interface import Kernels, Projections, View


def inputs(case: Case, config: Config | None = None) -> tuple[Features, torch.Tensor, torch.Tensor]:
    """Features as an encoder of that configuration returns them, with a velocity of several pixels; frames; times."""
    config = config or Config()
    torch.manual_seed(0)
    cells = [cell_count(n, config.feature_stride) for n in case.inputs]
    maps = torch.rand(case.batch, 3, 64, *cells) - 0.5
    times = torch.tensor(case.times).expand(case.batch, -1) * torch.linspace(1, 0.5, case.batch)[:, None]
    frames = torch.rand(case.batch, 2, 3, *case.inputs)
    velocity = 4 * torch.randn(case.batch, 2, *cells) if config.motion else None
    return Features(maps, velocity), frames, times.contiguous()


def prepare(
    kernels: Kernels, config: Config, case: Case, device: str | torch.device = "cpu"
) -> tuple[Projections, View]:
    """The projections of a case, and the view of its whole pictures."""
    features, frames, times = inputs(case, config)
    view = View.whole(times.to(device), make_geometry(config, case.inputs, case.outputs).to(device))
    with torch.inference_mode():
        return kernels.project(features.to(device), frames.to(device)), view


def run(
    kernels: Kernels,
    config: Config,
    case: Case,
    region: Box | None = None,
    box: Box | None = None,
    output: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Both passes over ``region``; the spatial feature over ``box``."""
    projections, view = prepare(kernels, config, case, device)
    view, feature_view = view.within(region or view.box), view.within(box or view.box)
    with torch.inference_mode():
        _, flow = kernels.implicit(projections, view)
        feature, _ = kernels.implicit(projections, feature_view)
        return feature, flow, kernels.decode(projections, view, feature, flow, feature_view.box, output)


def decode_unusable_flows(kernels: Kernels, device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures before and after flows of their fourth row are made infinite, not a number, or far too large."""
    config, case = Config(grid="centres", residual=True), Case("flows", (6, 8), (12, 16))
    projections, view = prepare(kernels, config, case, device)
    with torch.inference_mode():
        feature, flow = kernels.implicit(projections, view)
        assert flow is not None
        before = kernels.decode(projections, view, feature, flow)
        for column, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
            flow[..., 3, column, :] = value
        return before, kernels.decode(projections, view, feature, flow)


def rms_error(picture: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square difference of pictures, wherever the first one is, from exact ones in float64."""
    return float((picture.cpu().double() - exact).square().mean().sqrt())


def plain_error(config: Config, case: Case, dtype: torch.dtype, exact: torch.Tensor) -> float:
    """The error of the pictures of the model's own form under a dtype."""
    features, frames, times = inputs(case, config)
    features, frames, times = features.to(dtype), frames.to(dtype), times.to(dtype)
    model = functions(config).to(dtype)
    with torch.no_grad():
        pictures = [model(features, frames, times[:, n], case.outputs).rgb for n in range(times.shape[1])]
    return rms_error(torch.stack(pictures, 1), exact)


def expected(
    model: ImplicitFunctions, case: Case, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    features, frames, times = inputs(case, model.config)
    features, frames, times = Features(features.maps.to(dtype), features.velocity), frames.to(dtype), times.to(dtype)
    with torch.no_grad():
        decoded_frames = [model.to(dtype)(features, frames, times[:, n], case.outputs) for n in range(times.shape[1])]

    def stack(name: str) -> torch.Tensor | None:
        parts = [getattr(decoded, name) for decoded in decoded_frames]
        return None if parts[0] is None else torch.stack(parts, 1)

    sif, flow = (None if (x := stack(name)) is None else x.movedim(2, -1) for name in ("sif", "flow"))
    return sif if sif is None or model.config.sif_time else sif[:, :1], flow, stack("rgb")
