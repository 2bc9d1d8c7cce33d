"""Models ready to code: from a name, a directory, or the id that a stream carries."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from codling.bitstream.container import CodecId
from codling.bitstream.indices import IndexPredictor
from codling.codecs.backbones import Backbone, CoDBackbone, DenoiserBackbone
from codling.codecs.base import Codec
from codling.codecs.calibration import expected_error
from codling.codecs.cod import CoDCodec
from codling.codecs.diffc import DiffCCodec
from codling.codecs.diffc_stream import DiffCConfig
from codling.codecs.oscar import OscarCodec
from codling.codecs.oscar_pixel import OscarBackbone, PixelOscar
from codling.codecs.stable_diffusion import StableDiffusionBackbone
from codling.errors import ModelError
from codling.models.autoencoder import Autoencoder, StableDiffusionVAE
from codling.models.cod import CoD
from codling.models.denoiser import Denoiser
from codling.models.oscar import Oscar
from codling.models.oscar_stable_diffusion import OscarStableDiffusion
from codling.models.rate_levels import LatentModel
from codling.models.stable_diffusion import StableDiffusion
from codling.models.wiener import WienerFilter
from codling.weights.catalogue import CONFIG, HUB, RUN_MODEL, find, find_id, local_directory, model_id, read_config
from codling.weights.store import Model, Parts, load_parts, save_model

HUB_VARIABLE = "CODLING_HUB"


def load(name_or_directory: str | os.PathLike[str], *, device: torch.device, codec: CodecId | None = None) -> Codec:
    """A model by its name, or by the path of its directory, on a device. A hub model is fetched on first use.

    codec: the scheme, None for the model's own.
    """
    name, directory = locate(name_or_directory)
    return load_codec(directory, name=name, device=device, codec=codec)


def locate(name_or_directory: str | os.PathLike[str]) -> tuple[str, Path]:
    """A model's name and its directory. A hub model is fetched on first use."""
    path = Path(name_or_directory)
    if (path / CONFIG).is_file():
        return path.resolve().name, path
    try:
        entry = find(os.fspath(name_or_directory))
    except ModelError as error:
        if (path / RUN_MODEL / CONFIG).is_file():
            run = f"{path} is the directory of a training run; its model is {path / RUN_MODEL}"
            raise ModelError(run) from error
        raise
    return entry.name, entry.directory or fetch(entry.name)


def load_network(name_or_directory: str | os.PathLike[str], *, device: torch.device) -> Model:
    """A model's network alone, without codec or tables."""
    return load_parts(locate(name_or_directory)[1], device=device).model


def load_finisher(name_or_directory: str | os.PathLike[str], *, device: torch.device) -> OscarBackbone:
    """A model as what finishes what others have decoded. Raises ModelError unless it is an OSCAR in pixels."""
    network = load_network(name_or_directory, device=device)
    if not isinstance(network, Oscar):
        raise ModelError(
            f"model {name_or_directory} cannot finish what others have decoded; choose an OSCAR in pixels like oscar-s"
        )
    return OscarBackbone(network)


def load_by_id(model_id: int, *, device: torch.device, codec: CodecId) -> Codec:
    """The model that a stream names, for the codec it names."""
    entry = find_id(model_id)
    assert entry.directory is not None
    return load_codec(entry.directory, name=entry.name, device=device, codec=codec)


def load_codec(directory: Path, *, name: str, device: torch.device, codec: CodecId | None = None) -> Codec:
    """A model directory as a codec. Raises ModelError where the model cannot do it, or is damaged."""
    parts, number = load_parts(directory, device=device), model_id(read_config(directory))
    own = own_codec(parts.model)
    codec = own if codec is None else codec
    if codec is CodecId.OSCAR and own is CodecId.OSCAR:
        return oscar_codec(parts, name=name, number=number)
    if codec is CodecId.COD and isinstance(parts.model, CoD):
        return cod_codec(parts, name=name, number=number)
    if codec is not CodecId.DIFFC:
        raise ModelError(f"model {name} has no codec {codec.name.lower()}; its own is {own.name.lower()}")
    backbone = backbone_of(parts, name=name)
    if not parts.error_tables:
        raise ModelError(
            f"model {name} is not calibrated for DiffC yet: run `codling calibrate {shlex.quote(str(directory))} "
            "--images DIR -o NEW`, and encode with model NEW"
        )
    return DiffCCodec(backbone, parts.diffc or DiffCConfig(), parts.error_tables, name=name, model_id=number)


def own_codec(model: Model) -> CodecId:
    """The scheme of a model that is asked for none."""
    if isinstance(model, CoD):
        return CodecId.COD
    return CodecId.OSCAR if isinstance(model, Oscar | OscarStableDiffusion) else CodecId.DIFFC


def backbone_of(parts: Parts, *, name: str) -> Backbone:
    """A model as DiffC sees it. Raises ModelError if it cannot be one."""
    if isinstance(parts.model, CoD):
        return CoDBackbone(cod_codec(parts, name=name, number=0))
    if isinstance(parts.model, Denoiser | WienerFilter):
        return DenoiserBackbone(parts.model)
    if isinstance(parts.model, Oscar):
        return OscarBackbone(parts.model)
    if isinstance(parts.model, StableDiffusion):
        return StableDiffusionBackbone(parts.model)
    raise ModelError(f"model {name} has levels and no DiffC; wanted a CoD model, a denoiser, or OSCAR on one")


def oscar_codec(parts: Parts, *, name: str, number: int) -> OscarCodec:
    """An OSCAR model as a codec, prepared for decoding. number: the model's id."""
    model, gains = oscar_model(parts.model), 0
    sizes, depths = zip(*((level.codebook_size, level.depth) for level in model.levels), strict=True)
    _check_tables(parts.index_models, list(sizes), list(depths), name)
    if isinstance(parts.model, OscarStableDiffusion):
        # The published network wants the norms of the true latent's channels.
        model, gains = parts.model.prepare(), parts.model.channels
    return OscarCodec(model, name=name, model_id=number, index_models=parts.index_models, gains=gains)


def oscar_model(model: Model) -> LatentModel:
    """A network as the OSCAR codec sees it."""
    if isinstance(model, Oscar):
        return PixelOscar(model)
    assert isinstance(model, OscarStableDiffusion)
    return model


def cod_codec(parts: Parts, *, name: str, number: int) -> CoDCodec:
    """A CoD model with its autoencoder. number: the model's id."""
    assert isinstance(parts.model, CoD)
    tables = () if parts.index_model is None else (parts.index_model,)
    _check_tables(tables, [parts.model.config.condition.codebook_size], [1], name)
    autoencoder: Autoencoder | None = None
    if parts.model.config.space == "sd-vae":
        autoencoder = StableDiffusionVAE.load(parts.autoencoder).to(next(parts.model.parameters()).device)
    error = expected_error(parts.error_tables[True]) if True in parts.error_tables else None
    return CoDCodec(
        parts.model, name=name, model_id=number, index_model=parts.index_model, autoencoder=autoencoder, error=error
    )


def _check_tables(tables: Sequence[IndexPredictor], sizes: list[int], depths: list[int], name: str) -> None:
    """Raises ModelError unless a model has nothing to code its indices with, or something for each of its maps.

    sizes: of the codebooks. depths: how many maps of a picture there are up to each.
    """
    found = [table.symbols for table in tables]
    if found and found != sizes:
        raise ModelError(
            f"model {name} has index tables for codebooks of {found}, wanted {sizes}: it is damaged; get it again"
        )
    before = [table.maps_before for table in tables]
    if any(back >= depth for back, depth in zip(before, depths, strict=False)):
        raise ModelError(
            f"model {name} has networks that look {before} maps back, but pictures have {depths} maps there: it is "
            "damaged; get it again"
        )


def fetch(name: str) -> Path:
    """Download a hub model, convert it and keep it among the local models; returns its directory."""
    from codling.weights.importers.cod import import_cod

    hub = HUB[name]
    model = import_cod(hub_file(hub.repository, hub.config), hub_file(hub.repository, hub.weights))
    directory = local_directory() / name
    save_model(directory, Parts(model, autoencoder=hub.autoencoder))
    return directory


def hub_file(repository: str, filename: str) -> Path:
    """A file of a hub repository: from the directory $CODLING_HUB laid out like the hub, else by huggingface_hub."""
    mirror = os.environ.get(HUB_VARIABLE)
    if mirror:
        path = Path(mirror) / repository / filename
        if path.is_file():
            return path
        raise ModelError(f"${HUB_VARIABLE} is set, but {path} does not exist; put {filename} of {repository} there")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"cannot fetch {filename} of {repository} ({type(error).__name__}). Without a network: download that file "
            f"elsewhere, put it at DIR/{repository}/{filename} and set {HUB_VARIABLE}=DIR"
        ) from error
