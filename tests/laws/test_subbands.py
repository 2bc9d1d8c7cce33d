"""Coefficients that keep their place: orthonormal, where they say they are, and sorted by integers alone."""

import zlib

import numpy as np
import pytest
import torch

from codling.models import activity
from codling.rcc.plan import Layout, place_bands, plan_step, spread_activity
from codling.rcc.spectral import dct
from codling.rcc.subbands import boxes, corner, from_places, to_places

SIZES = [(1, 1), (3, 2000), (8, 2000), (64, 96), (501, 333)]
EDGES = 8 * np.array([0, 2, 4, 8, 16, 32, 64, 128, 256, 512])


@pytest.mark.parametrize("size", SIZES)
def test_places_are_an_inverse_pair_that_keeps_energy(size: tuple[int, int]) -> None:
    spectrum = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
    places = to_places(spectrum)
    assert np.allclose(from_places(places), spectrum, atol=1e-5)
    assert np.square(places).sum() == pytest.approx(np.square(spectrum).sum(), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_the_corner_are_the_plane(size: tuple[int, int]) -> None:
    taken = np.zeros(size, int)
    for box in boxes(*size):
        taken[box.at] += 1
    low = corner(*size)
    taken[: low[0], : low[1]] += 1
    assert (taken == 1).all()


@pytest.mark.parametrize("point", [(10, 20), (100, 250), (255, 3)])
def test_a_coefficient_is_where_its_place_is(point: tuple[int, int]) -> None:
    """Of a point, three quarters of what the boxes have of it are within a coefficient and a half of its place."""
    image = np.zeros((256, 320), np.float32)
    image[point] = 1
    places = to_places(dct(dct(image).T).T[None])[0]
    inside = total = 0.0
    for box in boxes(256, 320)[:36]:
        energy = np.square(places[box.at])
        rows, columns = np.ogrid[: box.height, : box.width]
        near = (np.abs(rows + 0.5 - (point[0] + 0.5) * box.height / 256) <= 1.5) & (
            np.abs(columns + 0.5 - (point[1] + 0.5) * box.width / 320) <= 1.5
        )
        inside, total = inside + float(energy[near].sum()), total + float(energy.sum())
    assert inside > 0.75 * total


@pytest.mark.parametrize("size", [(64, 96), (75, 133)])
def test_tensors_and_arrays_have_the_same_places(size: tuple[int, int]) -> None:
    spectrum = np.random.default_rng(1).normal(size=(2, *size)).astype(np.float32)
    found = activity.to_places(torch.from_numpy(spectrum)[None])
    assert np.allclose(found[0].numpy(), to_places(spectrum), atol=1e-5)
    assert np.allclose(activity.from_places(found)[0].numpy(), spectrum, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (64, 96), (333, 77)])
def test_the_band_of_a_box_is_that_of_its_middle(size: tuple[int, int]) -> None:
    bands = place_bands(EDGES, *size)
    assert bands[0, 0] == 0
    for box in boxes(*size):
        middle = (box.top + box.height / 2) / size[0], (box.left + box.width / 2) / size[1]
        radius = 4096 * np.hypot(*middle)
        if np.abs(radius - EDGES).min() > 1e-6:  # on an edge rounding decides
            assert (bands[box.at] == np.searchsorted(EDGES, radius, side="right") - 1).all()


@pytest.mark.parametrize("size", [(64, 96), (333, 77), (20, 300)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 7)])
def test_a_coefficient_has_the_mean_power_of_its_cells(size: tuple[int, int], grid: tuple[int, int]) -> None:
    classes = np.random.default_rng(2).integers(10, size=grid)
    found = spread_activity(classes, *size)
    for box in boxes(*size):
        for i, j in ((0, 0), (box.height - 1, box.width - 1), (box.height // 2, box.width // 3)):
            rows, columns = (
                slice(int(np.floor(k * cells / parts)), int(np.ceil((k + 1) * cells / parts)))
                for k, parts, cells in ((i, box.height, grid[0]), (j, box.width, grid[1]))
            )
            assert found[box.at][i, j] == np.floor(np.log2((2.0 ** classes[rows, columns]).mean()) + 0.5)
    low = corner(*size)
    assert (found[: low[0], : low[1]] == np.floor(np.log2((2.0**classes).mean()) + 0.5)).all()


def test_layouts_go_there_and_back() -> None:
    image = np.random.default_rng(3).normal(size=(3, 50, 70)).astype(np.float32)
    layout = Layout.local(EDGES, 50, 70, classes=4, activity=np.array([[0, 3], [1, 2]]))
    assert np.allclose(layout.image(layout.coefficients(image)), image, atol=1e-5)
    assert np.array_equal(np.sort(layout.order), np.arange(50 * 70))


# Members, log ratio, groups, bits a group and checksum of the members' places of each band.
PINNED = [
    (3, 450, 2, 5, 3232296494), (3, 194, 2, 2, 592386566), (36, -30, 18, 1, 1465794499),
    (279, -178, 97, 1, 475568235), (1074, -301, 283, 1, 2073556325), (3951, -427, 780, 1, 3769321271),
]  # fmt: skip


def test_local_plans_do_not_depend_on_anything_but_integers() -> None:
    """Pinned: another value here is another format."""
    layout = Layout.local(EDGES, 48, 80, classes=3, activity=np.array([[0, 1, 2], [2, 2, 0]]))
    bands = np.arange(len(EDGES) * 3)
    ratios = np.broadcast_to(300 - 128 * (bands // 3) + 150 * (bands % 3), (3, len(bands)))
    plan = plan_step(ratios, layout, threshold=-500, bits=1)
    found = [(len(b.members), b.log_ratio, b.groups, b.bits, zlib.crc32(b.members.astype("<i8"))) for b in plan]
    assert found == PINNED


def test_activity_is_measured_in_octaves_where_it_is() -> None:
    """White noise, of twice the deviation in the lower right: two octaves more there, none elsewhere."""
    image = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    image[..., 128:, 128:] *= 2
    rows = activity.dct_matrix(256, image)
    for stride in (1, 8):  # of a latent, higher frequencies count
        white = activity.whitened(rows @ image @ rows.T, torch.ones(1, 256, 256), stride=stride)
        found = activity.octaves(rows.T @ white @ rows, 2, 2)
        assert torch.allclose(found[0], torch.tensor([[0.0, 0.0], [0.0, 2.0]]), atol=0.4)
