"""A live pipeline is a model; a network that came from a scheduler has its scheduler again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)

import deis_analysis as da
from deis_analysis.networks import equivalent_scheduler, load, scheduler_process


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_live_pipeline_says_all_of_itself(unet, prediction):
    pipe = DDIMPipeline(unet, DDIMScheduler(prediction_type=prediction, beta_schedule="scaled_linear"))
    net = load(pipe)
    assert net.shape == (1, 4, 4)
    assert net.prediction == {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction]
    assert np.allclose(net.process.alphas_cumprod, pipe.scheduler.alphas_cumprod.numpy(), rtol=1e-6)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net.model(x, 321.0), unet(x, 321).sample)
    assert (
        load(pipe, process=da.VPLinear(), convention=da.networks.Convention("eps", scale=999.0)).process
        == da.VPLinear()
    )


def test_a_pipeline_whose_scheduler_says_nothing_is_refused(unet):
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.scheduler = type("NoScheduler", (), {"config": {}})()
    with pytest.raises(ValueError, match="its networks' convention is none of ours"):
        load(pipe)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDIMScheduler(prediction_type="v_prediction"),
        EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        FlowMatchEulerDiscreteScheduler(1000, shift=3.0),
    ],
)
def test_what_came_from_a_scheduler_has_one_again(scheduler):
    process, convention = scheduler_process(scheduler)
    found, note = equivalent_scheduler(process, convention)
    assert found is not None, note
    again, told = scheduler_process(found)
    assert told == convention
    t = np.linspace(*process.sampling_range, 50)
    np.testing.assert_allclose(again.rho(t), process.rho(t), rtol=2e-5)
