"""OSCAR on the pixel-space flow: the hyper codec's linear start, measured noise levels, tokens and their pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codling.bitstream.index_tables import fit_index_model
from codling.codecs.base import RateTarget
from codling.codecs.oscar import OscarCodec
from codling.codecs.oscar_pixel import PixelOscar
from codling.codecs.pseudo_times import measure
from codling.codecs.tiling import pad_to_grid
from codling.models.hyper_codec import HyperCodec, Stack, patches
from codling.training.oscar_run import OscarRun
from codling.weights.store import Parts, load_parts, save_model
from tests.conftest import noise_picture
from tests.tiny_oscar import CONFIG, CPU, HYPER, image, tiny_oscar, tiny_run


def test_the_linear_start_is_the_best_linear_codec() -> None:
    """Without quantisation its error is the energy of the components that were left out (Eckart and Young)."""
    hyper = HyperCodec(HYPER).eval()
    images = [image(64, 80, seed=seed) for seed in range(3)]
    hyper.fit_shortcuts(images)
    hyper.requires_grad_(False)
    for place in range(len(HYPER.widths)):
        points = torch.cat([patches(one, place).movedim(1, -1).flatten(0, 2) for one in images]).double()
        centred = points - points.mean(0)
        left_out = torch.linalg.svdvals(centred)[HYPER.codeword_width :].square().sum()
        decoded = [hyper.back[place](hyper.shortcut[place](patches(one, place))) for one in images]
        error = sum((back - patches(one, place)).square().sum() for back, one in zip(decoded, images, strict=True))
        assert float(error) == pytest.approx(float(left_out), rel=1e-3)


def test_the_linear_start_does_not_depend_on_the_signs_that_a_library_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    svd, images, found = torch.linalg.svd, [image(64, 80)], []
    for sign in (1, -1):
        monkeypatch.setattr(torch.linalg, "svd", lambda x, sign=sign: (*svd(x)[:2], sign * svd(x).Vh))
        hyper = HyperCodec(HYPER)
        hyper.fit_shortcuts(images)
        found.append([part.weight for part in (*hyper.shortcut, *hyper.back)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_each_quantiser_of_a_stack_takes_what_the_ones_before_left() -> None:
    hyper = HyperCodec(HYPER).eval().requires_grad_(False)
    features = torch.randn(2, HYPER.codeword_width, 3, 4)
    coded = hyper.quantise(features, 1)
    first, second = hyper.quantisers[1]
    left = features - first.codewords(coded.indices[0])
    assert torch.allclose(coded.inputs[1], left)
    assert torch.equal(coded.indices[1], second.nearest(left))
    assert torch.allclose(coded.codewords[1], features - left + second.codewords(coded.indices[1]), atol=1e-6)
    # Indices of the lower level are the beginning of those of the higher one.
    picture = image(32, 32)
    (low,), (high,) = hyper.encode(picture, [1]), hyper.encode(picture, [2])
    assert torch.equal(low[:, 0], high[:, 0])


def test_noise_levels_are_those_at_which_the_filter_errs_as_much() -> None:
    model = tiny_oscar()
    wanted = torch.tensor([0.7, 0.5, 0.2])
    model.noise.copy_(model.denoiser.filter.noise_of(model.denoiser.filter.error(wanted)))
    assert torch.allclose(model.noise, wanted, atol=1e-3)
    assert [level.time for level in model.levels] == pytest.approx((1 - wanted).tolist(), abs=1e-3)


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize(("height", "width"), [(32, 48), (80, 112)])
def test_decoding_is_deterministic_and_keeps_the_size(level: int, height: int, width: int) -> None:
    model = PixelOscar(tiny_oscar())
    with torch.inference_mode():
        tokens = model.encode(image(height, width), level)
        row = model.levels[level]
        assert tokens.indices.shape == (1, row.depth, height // row.stride, width // row.stride)
        decoded = model.decode(tokens, level)
        assert decoded.shape == (1, 3, height, width)
        assert torch.equal(decoded, model.decode(tokens, level))
        coarse = model.network.hyper.decode(tokens.indices, level)
    assert not torch.allclose(decoded, coarse, atol=1e-3)


def test_tiles_change_little_but_the_borders_of_their_context() -> None:
    """The middle of a tile sees the same surroundings with and without tiling, and the same grain."""
    whole, tiled = (
        PixelOscar(tiny_oscar(replace(CONFIG, denoiser=replace(CONFIG.denoiser, tile=tile)))) for tile in (128, 64)
    )
    with torch.inference_mode():
        tokens = whole.encode(image(128, 128), 2)
        a, b = whole.decode(tokens, 2), tiled.decode(tokens, 2)
    assert float((a - b).abs().mean()) < 0.1 * float(a.std())


def test_without_grain_the_noise_changes_nothing() -> None:
    model = tiny_oscar(replace(CONFIG, grain=0.0))
    coarse, s = image(32, 32), torch.tensor([0.5])
    one, other = (model.noisy(coarse, s, torch.randn(1, 3, 32, 32)) for _ in range(2))
    assert torch.equal(one, other)


def test_all_levels_cost_one_run_of_the_encoder(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> None:
    model, picture, runs = PixelOscar(tiny_oscar()), image(40, 56), 0
    padded = pad_to_grid(picture, model.grid)
    singly = [model.encode(padded, level) for level in range(3)]
    features = HyperCodec.features

    def counted(self: HyperCodec, image: torch.Tensor) -> list[torch.Tensor]:
        nonlocal runs
        runs += 1
        return features(self, image)

    monkeypatch.setattr(HyperCodec, "features", counted)
    together = model.encode_levels(padded, range(3))
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(singly, together, strict=True))
    codec = OscarCodec(model, name="tiny", model_id=1, index_models=[
        fit_index_model([tokens.indices[0, -1].numpy()], level.codebook_size)
        for tokens, level in zip(together, model.levels, strict=True)
    ])  # fmt: skip
    sizes = [len(codec.encode(picture, RateTarget(level=level))) for level in range(3)]
    runs = 0
    assert len(codec.encode(picture, RateTarget(max_bytes=sizes[0]))) == sizes[0]
    assert runs == 1
    monkeypatch.setattr(model, "rough_latent", lambda *_: padded + image(48, 64, seed=1))  # no negative cosines
    measure(model, [picture])
    assert runs == 2
    run = OscarRun(tiny_run(pictures), CPU)
    scores, columns = run.examine([noise_picture(48, 48, seed=seed) for seed in range(3)], 2)
    assert runs == 5
    assert set(scores) == {f"{what} level {n}" for n in range(3) for what in ("time of", "PSNR at", "SWD at")}
    assert [column.shape for column in columns] == [(2, 3, 48, 48)] * 4


def test_codebooks_are_stored_exactly_at_every_precision(tmp_path: Path) -> None:
    """They decide indices; large enough ones would be rounded to 8 bits."""
    hyper = replace(HYPER, stacks=(Stack(16, 1024), Stack(8, 800, 2)))
    model = tiny_oscar(replace(CONFIG, hyper=hyper))
    for precision in ("float16", "int8"):
        save_model(tmp_path / precision, Parts(model), precision=precision)  # type: ignore[arg-type]
        stored = load_parts(tmp_path / precision, device=CPU).model.state_dict()
        for name, value in model.state_dict().items():
            if ".quantisers." in name:
                assert torch.equal(stored[name], value), name
