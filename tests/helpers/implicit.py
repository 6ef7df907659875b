"""The implicit functions of a case, by a backend and by the model's own form."""

import torch

from helpers.cases import Case
from stif_rt.geometry import Box, make_geometry
from stif_rt.model.implicit_functions import ImplicitFunctions


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    features = torch.rand(case.batch, 3, 64, *case.inputs) - 0.5
    times = torch.tensor(case.times).expand(case.batch, -1) * torch.linspace(1, 0.5, case.batch)[:, None]
    return features, torch.rand(case.batch, 2, 3, *case.inputs), times.contiguous()


def run(kernels, config, case, region=None, box=None):
    """Both passes over ``region``; the spatial feature over ``box``."""
    features, frames, times = inputs(case)
    whole = Box(0, 0, *case.outputs)
    region, box = region or whole, box or whole
    with torch.inference_mode():
        projections = kernels.project(features, frames)
        geometry = make_geometry(config, case.inputs, case.outputs)
        _, flow = kernels.implicit(projections, times, geometry, region)
        feature, _ = kernels.implicit(projections, times, geometry, box)
        return feature, flow, kernels.decode(projections, feature, flow, times, geometry, region, box)


def expected(model: ImplicitFunctions, case: Case, dtype=torch.float32):
    features, frames, times = (x.to(dtype) for x in inputs(case))
    with torch.no_grad():
        found = [model.to(dtype)(features, frames, times[:, n], case.outputs) for n in range(times.shape[1])]

    def stack(name):
        parts = [getattr(decoded, name) for decoded in found]
        return None if parts[0] is None else torch.stack(parts, 1)

    sif, flow = (None if (x := stack(name)) is None else x.movedim(2, -1) for name in ("sif", "flow"))
    return sif, flow, stack("rgb")
