"""Every codec on another device than the CPU: all is moved there and back, and bytes and pictures are the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import codling
from codling.codecs.base import DecodeOptions, RateTarget
from codling.pictures import to_image_array
from tests.conftest import noise_picture
from tests.second_device import DEVICE, SecondDevice, move

# Odd sides, so that all is padded.
HEIGHT, WIDTH = 75, 93
CASES: dict[str, tuple[str, str | None, RateTarget, list[DecodeOptions]]] = {
    "cod-xs": ("cod-xs", None, RateTarget(), [DecodeOptions(), DecodeOptions(steps=2, guidance=1.5)]),
    "cod-xs as diffc": ("cod-xs", "diffc", RateTarget(max_bytes=150), [DecodeOptions(), DecodeOptions(steps=2)]),
    "diffc-xs": ("diffc-xs", None, RateTarget(max_bytes=150), [DecodeOptions(), DecodeOptions(steps=2)]),
    "linear": ("linear", None, RateTarget(max_bytes=150), [DecodeOptions(), DecodeOptions(steps=2)]),
    "oscar-s": ("oscar-s", None, RateTarget(level=4), [DecodeOptions()]),
    "oscar-s as diffc": ("oscar-s", "diffc", RateTarget(max_bytes=150), [DecodeOptions()]),
}


def picture() -> Tensor:
    return torch.from_numpy(to_image_array(noise_picture(HEIGHT, WIDTH, seed=5)))[None]


def network(codec: Any) -> nn.Module:
    """The module that a codec is built around."""
    while not isinstance(codec, nn.Module):
        names = ("model", "backbone", "network", "codec")
        codec = next(getattr(codec, name) for name in names if hasattr(codec, name))
    return codec


def elsewhere(codec: Any) -> Any:
    move(network(codec))
    return codec


@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:Triton does not work")
@pytest.mark.parametrize("name", CASES)
def test_a_codec_works_on_another_device(name: str) -> None:
    model, scheme, target, options = CASES[name]
    here, image = codling.load(model, codec=scheme, device="cpu"), picture()
    payload = here.encode(image, target)
    with SecondDevice():
        there = elsewhere(codling.load(model, codec=scheme, device="cpu"))
        assert there.encode(image, target) == payload
    for each in options:
        wanted = here.decode(payload, height=HEIGHT, width=WIDTH, options=each)
        with SecondDevice():
            found = there.decode(payload, height=HEIGHT, width=WIDTH, options=each)
            assert found.device.type == "cpu"
        assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:Triton does not work")
@pytest.mark.parametrize("name", ["diffc-xs", "cod-xs"])
def test_another_model_finishes_on_another_device(name: str) -> None:
    model, _, target, _ = CASES[name]
    here, finisher = codling.load(model, device="cpu"), codling.load("oscar-s", codec="diffc", device="cpu")
    payload = here.encode(picture(), target)

    def decode() -> Tensor:
        options = DecodeOptions(finish=finisher.backbone)  # type: ignore[attr-defined]
        return here.decode(payload, height=HEIGHT, width=WIDTH, options=options)

    wanted = decode()
    with SecondDevice():
        elsewhere(here), elsewhere(finisher)
        found = decode()
    assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_batch_works_on_another_device() -> None:
    images = torch.cat([picture(), picture().flip(-1)])
    here = codling.load("oscar-s", device="cpu")
    target = RateTarget(level=4)

    def encode(codec: Any) -> list[bytes]:
        tokens = codec.tokens(images, [target] * 2)
        return [codec.pack_within(each, target, height=HEIGHT, width=WIDTH) for each in tokens]

    def decode(codec: Any, payloads: list[bytes]) -> torch.Tensor:
        unpacked = [codec.unpack(payload, height=HEIGHT, width=WIDTH) for payload in payloads]
        images: torch.Tensor = codec.images(unpacked, height=HEIGHT, width=WIDTH)
        return images

    payloads = encode(here)
    wanted = decode(here, payloads)
    with SecondDevice():
        there = elsewhere(codling.load("oscar-s", device="cpu"))
        assert encode(there) == payloads
        found = decode(there, payloads)
    assert torch.equal(found, wanted)


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    number, here = torch.tensor(2.0), torch.ones(3)
    with SecondDevice():
        there = here.to(DEVICE)
        assert there.device == DEVICE and here.device.type == "cpu" and (there + there).device == DEVICE
        assert torch.zeros(2, device=DEVICE).device == DEVICE and torch.zeros_like(there).device == DEVICE
        assert (there * number).device == DEVICE and there[torch.tensor([0])].device == DEVICE
        assert np.array_equal(there.cpu().numpy(), [1, 1, 1])
        refused: list[Callable[[], object]] = [lambda: there + here, lambda: torch.cat([here, there]), there.numpy]
        for each in refused:
            with pytest.raises((RuntimeError, TypeError), match=r"two devices|call \.cpu"):
                each()
