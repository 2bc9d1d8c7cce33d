"""The published hyper-encoder at every stride of its rate table."""

import pytest
import torch

from codling.models.hyper_encoder import HyperEncoder, HyperEncoderConfig


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("features", [16, 24])
def test_hyper_encoders_at_every_stride(stride: int, features: int) -> None:
    encoder = HyperEncoder(HyperEncoderConfig(stride, 7, width=8, feature_width=features, codebook_width=16))
    with torch.no_grad():
        indices = encoder.indices(torch.randn(1, 4, 16, 24))
        assert indices.shape == (1, 16 // stride, 24 // stride)
        assert encoder.latent(indices).shape == (1, 4, 16, 24)
    names = {name.split(".")[0] for name in encoder.state_dict()}
    assert ("project_in" in names) == (features != 16)
