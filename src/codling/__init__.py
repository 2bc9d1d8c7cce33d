"""codling: pictures in a few hundred bytes, grown back by diffusion models.

Importing the package is cheap; torch is loaded when a network is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codling.api import Info, PictureWarning, decode, encode, info, load, load_finisher, preview
    from codling.batches import decode_batch, encode_batch
    from codling.errors import CodlingError, ConfigError, FormatError, ImageError, ModelError, RateError

__version__ = "0.1.0"

_ERRORS = ("CodlingError", "ConfigError", "FormatError", "ImageError", "ModelError", "RateError")
_API = ("Info", "PictureWarning", "decode", "encode", "info", "load", "load_finisher", "preview")
_BATCHES = ("decode_batch", "encode_batch")

__all__ = [
    "CodlingError",
    "ConfigError",
    "FormatError",
    "ImageError",
    "Info",
    "ModelError",
    "PictureWarning",
    "RateError",
    "__version__",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
    "info",
    "load",
    "load_finisher",
    "preview",
]


def __getattr__(name: str) -> Any:
    if name in _ERRORS:
        return getattr(import_module("codling.errors"), name)
    if name in _API:
        return getattr(import_module("codling.api"), name)
    if name in _BATCHES:
        return getattr(import_module("codling.batches"), name)
    raise AttributeError(f"module 'codling' has no attribute {name!r}")
