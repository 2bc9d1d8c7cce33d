"""From a training run to a model's directory."""

from pathlib import Path

import numpy as np
import torch

from codling.codecs.cod import CoDCodec
from codling.pictures import to_image_array
from codling.training.data import load_pictures
from codling.training.index_tables import fit_index_model
from codling.training.loop import Run
from codling.weights.packing import Precision, pack, unpack
from codling.weights.store import CODEBOOK, Manifest, Parts, save_model

# Pictures that the index tables are fitted on: 4,000 give 1.5 million indices at stride 16.
TABLE_PICTURES = 4000


def export_run(
    run: Run, directory: Path, *, precision: Precision = "float16", pictures: int = TABLE_PICTURES
) -> Manifest:
    """Write the averaged model with index tables fitted on the training pictures."""
    model = run.averaged_model().cpu()
    # Tables must describe the indices that the stored weights produce, not those of the weights before rounding.
    model.load_state_dict(unpack(pack(model.state_dict(), precision, exact=frozenset({CODEBOOK}))))
    codec = CoDCodec(model, name="export", model_id=0)
    data = load_pictures(Path(run.config.data), crop=run.config.crop, limit=pictures).pictures
    maps = index_maps(codec, data)
    tables = fit_index_model(maps, run.config.model.condition.codebook_size)
    return save_model(directory, Parts(model, index_model=tables), precision=precision)


def index_maps(codec: CoDCodec, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Indices (h, w) of each picture (H, W, 3) uint8."""
    return [codec.indices(torch.from_numpy(to_image_array(picture))[None]).numpy() for picture in pictures]
