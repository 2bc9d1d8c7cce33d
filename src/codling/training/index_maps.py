"""Maps of a model's indices of many pictures, and the model with networks that predict them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from codling.bitstream.indices import IndexPredictor, encode_maps
from codling.codecs.cod import CoDCodec
from codling.codecs.tiling import pad_to_grid
from codling.errors import ConfigError
from codling.models.cod import CoD
from codling.models.oscar import Oscar
from codling.models.oscar_stable_diffusion import OscarStableDiffusion
from codling.models.rate_levels import LatentModel
from codling.pictures import to_image_array
from codling.training.context_networks import ContextTraining, train_context_network
from codling.weights.registry import oscar_model
from codling.weights.store import Parts

# How much pictures are shrunk or enlarged before they are looked at, so that there are more of them.
SCALES = (0.75, 1.5)
# So many pixels, or a quarter of a small picture, are cut off at most.
LARGEST_STRIDE = 64

# Of each stack of maps that one picture has: maps (depth, h, w) of every picture.
Maps = list[list[np.ndarray]]


def views(pictures: Sequence[np.ndarray], count: int, *, seed: int) -> Iterator[np.ndarray]:
    """Pictures (H, W, 3) uint8, each `count` times: scaled at random, half of them mirrored, cut at the top left."""
    rng = np.random.default_rng(seed)
    for picture in list(pictures) * count:
        image, scale = Image.fromarray(picture), rng.uniform(*SCALES)
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        seen = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
        # Where the grid of tokens begins differs, too.
        top, left = (int(rng.integers(min(LARGEST_STRIDE, 1 + side // 4))) for side in (height, width))
        seen = seen[top:, left:]
        yield seen[:, ::-1] if rng.random() < 0.5 else seen


def index_maps(parts: Parts, pictures: Iterable[np.ndarray]) -> Maps:
    """What a model makes of pictures (H, W, 3) uint8: of CoD one stack of one map, of OSCAR its stacks of maps."""
    tops, encode = _encoder(parts)
    maps: Maps = [[] for _ in tops]
    for picture in pictures:
        image = torch.from_numpy(to_image_array(np.ascontiguousarray(picture)))[None]
        for found, indices in zip(maps, encode(image), strict=True):
            found.append(indices)
    return maps


def with_context_networks(
    parts: Parts, maps: Maps, config: ContextTraining, *, report: Callable[[int, int, float], None]
) -> Parts:
    """The model with a network for each map. report: called with the map's number, from 0, the steps and the loss."""
    networks: list[IndexPredictor] = []
    sizes = codebook_sizes(parts)
    for stack in maps:
        for depth in range(1, len(stack[0]) + 1):
            number = len(networks)

            def told(step: int, loss: float, number: int = number) -> None:
                report(number, step, loss)

            seen = [indices[:depth] for indices in stack]
            networks.append(train_context_network(seen, sizes[number], config, report=told))
    if isinstance(parts.model, CoD):
        return replace(parts, index_model=networks[0])
    return replace(parts, index_models=tuple(networks))


def bits_an_index(parts: Parts, maps: Maps) -> list[float]:
    """What maps of other pictures cost, in files, by stack: bits an index, the mode byte left out."""
    costs, sizes, first = [], codebook_sizes(parts), 0
    for stack, chosen in zip(maps, _by_stack(parts, maps), strict=True):
        coded = sum(len(encode_maps(indices, sizes[first], chosen or None)) - 1 for indices in stack)
        costs.append(8 * coded / sum(indices.size for indices in stack))
        first += len(stack[0])
    return costs


def the_better(before: Parts, after: Parts, maps: Maps) -> tuple[Parts, list[float], list[float]]:
    """The model after training, with what coded a stack before where that codes maps of other pictures in fewer bits;
    and what both take, as `bits_an_index`: networks that saw few photographs can be worse than tables."""
    costs = bits_an_index(before, maps), bits_an_index(after, maps)
    stacks = zip(_by_stack(before, maps), _by_stack(after, maps), *costs, strict=True)
    chosen = [predictor for old, new, was, now in stacks for predictor in (old if old and was <= now else new)]
    if isinstance(after.model, CoD):
        return replace(after, index_model=chosen[0]), *costs
    return replace(after, index_models=tuple(chosen)), *costs


def _by_stack(parts: Parts, maps: Maps) -> list[list[IndexPredictor]]:
    """What codes the maps of each stack, or nothing."""
    single = [] if parts.index_model is None else [parts.index_model]
    predictors = single if isinstance(parts.model, CoD) else list(parts.index_models)
    ends = np.cumsum([len(stack[0]) for stack in maps])
    return [predictors[end - len(stack[0]) : end] for end, stack in zip(ends, maps, strict=True)]


def codebook_sizes(parts: Parts) -> list[int]:
    """Of each map."""
    if isinstance(parts.model, CoD):
        return [parts.model.config.condition.codebook_size]
    return [level.codebook_size for level in _oscar(parts).levels]


def _oscar(parts: Parts) -> LatentModel:
    if isinstance(parts.model, Oscar | OscarStableDiffusion):
        return oscar_model(parts.model)
    raise ConfigError("only models with indices have something to predict; wanted a CoD or an OSCAR model")


def _encoder(parts: Parts) -> tuple[list[int], Callable[[torch.Tensor], list[np.ndarray]]]:
    """The highest level of each stack, and from image (1, 3, H, W) to the maps (depth, h, w) of each."""
    if isinstance(parts.model, CoD):
        codec = CoDCodec(parts.model, name="", model_id=0)
        return [0], lambda image: [codec.indices(image).numpy()[None]]
    model = _oscar(parts)
    depths = [level.depth for level in model.levels]
    tops = [n for n, depth in enumerate(depths) if n + 1 == len(depths) or depths[n + 1] <= depth]

    def encode(image: torch.Tensor) -> list[np.ndarray]:
        with torch.inference_mode():
            tokens = model.encode_levels(pad_to_grid(image, model.grid).to(model.device), tops)
        return [found.indices[0].cpu().numpy() for found in tokens]

    return tops, encode
