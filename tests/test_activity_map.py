"""Activity maps: in the stream and back, where the picture is busy, and worth their bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codling.bitstream.bits import BitReader, BitWriter, OutOfBitsError
from codling.bitstream.index_tables import fit_index_model
from codling.codecs.activity_map import (
    BYTES_A_CELL,
    CELLS,
    CLASSES,
    ActivityMap,
    Tables,
    cells_for,
    grid,
    measure,
    prior_power,
    read_map,
    write_map,
)
from codling.codecs.backbones import DenoiserBackbone
from codling.codecs.base import DecodeOptions, RateTarget
from codling.codecs.calibration import calibrate
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_encoder import Encoder
from codling.codecs.diffc_stream import DiffCConfig, read_settings
from codling.diffusion.guidance import VelocityFunction
from codling.errors import FormatError
from codling.models.wiener import WienerConfig, WienerFilter, fit_spectrum
from codling.rcc.spectral import from_spectrum

FAITHFUL = DecodeOptions(steps=1)


def uneven(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A texture, waves of up to 16 px, whose right side has ten times the deviation of the left."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width) + 2 / width
    image = from_spectrum(rng.normal(size=(3, height, width)) / radius**1.3 * (radius > 16 / width))
    ramp = 1 / (1 + np.exp(-(np.arange(width) - width / 2) / (width / 32)))
    image *= 0.03 + 0.3 * ramp
    return torch.from_numpy((image / image.std() / 4).clip(-1, 1).astype(np.float32))[None]


@pytest.fixture(scope="module")
def codec() -> DiffCCodec:
    images = [uneven(192, 256, seed=seed) for seed in range(4)]
    model = WienerFilter(WienerConfig(knots=24))
    model.log_power.copy_(fit_spectrum([image[0] for image in images], 24))
    backbone = DenoiserBackbone(model)
    tables = {False: calibrate(backbone, images, conditional=False, levels=(50, 300, 600, 900, 1023))}
    return DiffCCodec(backbone, DiffCConfig(threshold=8, memory=8, empty=True), tables, name="patches", model_id=7)


@pytest.mark.parametrize("size", [(1, 1), (64, 96), (300, 1000), (5000, 3000)])
@pytest.mark.parametrize("code", range(len(CELLS)))
def test_maps_are_an_inverse_pair(size: tuple[int, int], code: int, codec: DiffCCodec) -> None:
    tables, written = codec.tables[False], None
    if code:
        shape = grid(code, *size, 1)
        smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) // 3
        written = ActivityMap(code, (smooth + np.random.default_rng(0).integers(2, size=shape)) % CLASSES)
    writer = BitWriter()
    write_map(writer, written, tables)
    writer.put(5, 3)
    reader = BitReader(writer.to_bytes())
    found = read_map(reader, tables, *size, 1)
    assert reader.take(3) == 5
    if written is None:
        assert found is None
    else:
        assert found is not None
        assert found.code == code
        assert np.array_equal(found.classes, written.classes)


def test_models_without_tables_of_maps_have_none_in_the_stream(codec: DiffCCodec) -> None:
    tables, writer = Tables(codec.tables[False].whole), BitWriter()
    write_map(writer, None, tables)
    assert writer.count == 0
    assert read_map(BitReader(b""), tables, 64, 64, 1) is None


def test_cut_and_damaged_maps(codec: DiffCCodec) -> None:
    tables, writer = codec.tables[False], BitWriter()
    write_map(writer, ActivityMap(3, np.random.default_rng(0).integers(CLASSES, size=(4, 4))), tables)
    data = writer.to_bytes()
    with pytest.raises(OutOfBitsError):
        read_map(BitReader(data[:-2]), tables, 128, 128, 1)
    with pytest.raises(FormatError, match=r"activity map of 1 x 1 cells has \d+ bytes"):
        read_map(BitReader(data), tables, 32, 32, 1)


def test_finer_cells_for_larger_budgets() -> None:
    codes = [cells_for(budget, 512, 768, 1) for budget in range(1, 20_000, 7)]
    assert codes == sorted(codes)
    assert (codes[0], codes[-1]) == (0, len(CELLS) - 1)
    for code, bytes_a_cell in enumerate(BYTES_A_CELL, 1):
        enough = bytes_a_cell * np.prod(grid(code, 512, 768, 1))
        assert cells_for(int(enough), 512, 768, 1) == code
        assert cells_for(int(enough) - 1, 512, 768, 1) == code - 1
    assert cells_for(None, 512, 768, 1) == 2
    assert cells_for(None, 75, 101, 1) == 3, "too few of the middle size"
    assert [cells_for(budget, 96, 64, 1) for budget in (None, 50, 5000)] == [0, 0, 0], "six cells say too little"
    # A latent's sample covers eight pixels, and cells are as large in pixels.
    assert grid(2, 64, 96, 8) == grid(2, 512, 768, 1)


def test_a_map_says_where_the_picture_is_busy(codec: DiffCCodec) -> None:
    image, whole = uneven(192, 256, seed=9)[0].numpy(), codec.tables[False].whole
    found = measure(image, prior_power(whole, 192, 256), 2, 1)
    assert found.classes.shape == (3, 4)
    assert found.classes[:, 0].max() + 3 < found.classes[:, 3].min()


def test_errors_rise_with_activity(codec: DiffCCodec) -> None:
    tables = codec.tables[False]
    assert tables.local is not None
    by_class = tables.local.log_error.reshape(*tables.whole.log_error.shape, CLASSES)
    middle = slice(-16, -4)  # the bands that activity is measured in, and that this picture has many coefficients of
    assert (np.diff(by_class[-1, 0, middle].astype(int), axis=-1) >= 0).mean() > 0.8
    assert (by_class[-1, 0, middle, -1] > by_class[-1, 0, middle, 0] + 256).all()


def test_training_hides_what_is_quiet(codec: DiffCCodec) -> None:
    """Where activity is low nothing is left of a state that is whole elsewhere; told that it does not matter, both."""
    model = codec.backbone.model  # type: ignore[attr-defined]
    image, noise, least = uneven(192, 256, seed=9), torch.tensor([0.6]), torch.tensor([0.05])
    x = 0.4 * image + 0.6 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    octaves = torch.full((1, 3, 4), 2.0)
    octaves[..., :2] = -9.0
    for slope, quiet_is_hidden in ((1.0, True), (0.0, False)):
        left = model.hide_places(x, noise, least, octaves, torch.tensor([slope]))
        shares = left[..., :96].std() / x[..., :96].std(), left[..., 160:].std() / x[..., 160:].std()
        assert bool(shares[0] < 0.25 * shares[1]) == quiet_is_hidden


@pytest.mark.parametrize("budget", [150, 400, 1000])
def test_a_map_is_worth_its_bytes(budget: int, codec: DiffCCodec) -> None:
    image = uneven(192, 256, seed=9)
    without = DiffCCodec(
        codec.backbone, codec.config, {False: Tables(codec.tables[False].whole)}, name="without", model_id=8
    )
    errors = []
    for coder in (codec, without):
        payload = coder.encode(image, RateTarget(max_bytes=budget))
        assert len(payload) == budget
        decoded = coder.decode(payload, height=192, width=256, options=FAITHFUL)
        errors.append(float((decoded - image).square().mean()))
    assert errors[0] < 0.95 * errors[1]


def test_small_budgets_are_spent_without_a_map(codec: DiffCCodec) -> None:
    for budget, expected in ((10, 0), (52, 0), (53, 2), (500, 3)):
        reader = BitReader(codec.encode(uneven(192, 256), RateTarget(max_bytes=budget)))
        read_settings(reader, codec.config)
        found = read_map(reader, codec.tables[False], 192, 256, 1)
        assert (0 if found is None else found.code) == expected


def test_a_stream_cut_within_its_map_is_no_picture_yet_but_no_error(codec: DiffCCodec) -> None:
    payload = codec.encode(uneven(192, 256), RateTarget(max_bytes=200))
    gray = codec.decode(b"", height=192, width=256, options=FAITHFUL)
    for size in range(4):
        assert torch.equal(codec.decode(payload[:size], height=192, width=256, options=FAITHFUL), gray)


def test_tables_by_activity_come_whole(codec: DiffCCodec) -> None:
    tables = codec.tables[False]
    assert tables.maps is not None
    fewer = fit_index_model([np.zeros((3, 3), int)], CLASSES - 1)
    for change in ({"maps": None}, {"local": None}, {"maps": fewer}):
        with pytest.raises(ValueError, match="come with the tables of maps"):
            replace(tables, **change)


def test_lengths_have_one_writing(codec: DiffCCodec) -> None:
    writer = BitWriter()
    for bits, width in ((3, 2), (1, 1), (2, 4), (0, 1), (0, 4), (0, 64)):
        writer.put(bits, width)
    with pytest.raises(FormatError, match="written longer than it is"):
        read_map(BitReader(writer.to_bytes()), codec.tables[False], 256, 256, 1)


class Knowing(DenoiserBackbone):
    """A denoiser that is told most of the picture before the first step, as CoD is by its condition."""

    conditional = True

    def __init__(self, model: WienerFilter, picture: torch.Tensor):
        super().__init__(model)
        self.known = picture

    def condition(self, image: torch.Tensor) -> bytes:
        return b"told"

    def velocity(self, condition: bytes, *, height: int, width: int) -> VelocityFunction:
        plain = super().velocity(condition, height=height, width=width)
        return (lambda x, t: (0.8 * self.known - x) / (1 - t).view(-1, 1, 1, 1)) if condition else plain


def told(codec: DiffCCodec, image: torch.Tensor) -> DiffCCodec:
    """A codec of one picture, by a denoiser that can be told of it."""
    backbone = Knowing(codec.backbone.model, image)  # type: ignore[attr-defined]
    tables = {
        known: calibrate(backbone, [image], conditional=known, levels=(300, 900, 1023)) for known in (True, False)
    }
    return DiffCCodec(backbone, codec.config, tables, name="told", model_id=9)


def test_a_condition_is_left_out_where_it_leaves_no_room(codec: DiffCCodec) -> None:
    """Colours duller than expected make the longest head."""
    image = uneven(64, 96, seed=4).mean(1, keepdim=True).expand(1, 3, 64, 96)
    coder = told(codec, image)
    with_condition = []
    for budget in range(4, 16):
        payload = coder.encode(image, RateTarget(max_bytes=budget))
        assert len(payload) <= budget
        assert coder.decode(payload, height=64, width=96, options=FAITHFUL).isfinite().all()
        with_condition.append(payload[0] > 0)
    assert with_condition == sorted(with_condition) and not with_condition[0] and with_condition[-1]


def test_a_condition_changes_no_map(codec: DiffCCodec) -> None:
    """Maps are of pictures: with and without a condition, in calibration and in streams, they are the same."""
    image = uneven(192, 256, seed=9)
    coder = told(codec, image)
    maps = [Encoder(coder, coder.config, image, max_bytes=budget).activity for budget in (120, None)]
    maps.append(Encoder(codec, codec.config, image, max_bytes=120).activity)
    assert maps[0] is not None
    for other in maps[1:]:
        assert other is not None
        assert np.abs(other.classes - maps[0].classes).max() <= 1
