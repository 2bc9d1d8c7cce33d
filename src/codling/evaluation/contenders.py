"""Who is compared: codling's models and the classical codecs, each at settings named on the command line.

A specification is `NAME[/FACTOR][:KEY=VALUE,VALUE...]...`; every combination of the values is a setting:

    cod-xs:steps=1,25       a model of `codling models` (or the path of one) decoded with 1 and with 25 steps
    diffc-xs:bytes=250,500  a model of any rate at two budgets; bpp=, psnr= and level= work too
    diffc-xs:bytes=800:finish=oscar-s       finished in one step by another model
    cod-xs:codec=diffc:bpp=0.1,0.3
    avif:quality=0,20,40    AVIF at three qualities
    compressai-mbt2018-mean:quality=1,2     a model of CompressAI's zoo, where that is installed
    avif/3:quality=0,20     the picture shrunk to a third, coded, and enlarged again: what one does today at low rates
"""

import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image, features

from codling import api
from codling.bitstream.container import CodecId
from codling.configuration import suggest
from codling.errors import ConfigError, FormatError
from codling.evaluation import compressai_codecs
from codling.pictures import load_picture
from codling.weights.catalogue import entries, model_id, read_config

if TYPE_CHECKING:
    from codling.codecs.base import Codec, Finisher


@dataclass(frozen=True)
class Classical:
    """A picture format of Pillow: `keys` are the numbers that its `save` may be told, `fixed` what it is told else."""

    format: str
    suffix: str
    keys: tuple[str, ...]
    fixed: Mapping[str, object]
    module: str = ""  # registers the format with Pillow


CLASSICAL = {
    "jpeg": Classical("JPEG", ".jpg", ("quality",), {"optimize": True}),
    "webp": Classical("WEBP", ".webp", ("quality", "method"), {"method": 6}),
    "avif": Classical("AVIF", ".avif", ("quality", "speed"), {"speed": 4}),
    "jxl": Classical("JXL", ".jxl", ("quality", "effort"), {"effort": 7}, module="pillow_jxl"),
}
# First byte of a shrunk picture's file if its sides were not multiples of the factor; no picture format starts so.
UNEVEN = b"\x01"


@dataclass(frozen=True)
class Setting:
    """One codec at one setting: a point of a rate-distortion curve. `options` are (key, value) pairs.

    alias: what labels call the codec, by default the last part of its name. device: of codling's models.
    """

    name: str
    factor: int
    options: tuple[tuple[str, str], ...]
    alias: str = ""
    device: str = "auto"

    @property
    def curve(self) -> str:
        """The codec without its setting, for example `avif/3`; points of one curve share it."""
        base = self._base
        # A model of any rate: what is not the rate makes another curve.
        if any(key in ROE_RATES for key, _ in self.options):
            return ":".join([base, *(f"{key}={value}" for key, value in self.options if key not in ROE_RATES)])
        return self._head

    @property
    def label(self) -> str:
        """For example `avif/3:quality=20`; also a file name, with `_` for `/` and `:`."""
        return ":".join([self._head, *(f"{key}={value}" for key, value in self.options)])

    @property
    def folder(self) -> str:
        return folder_of(self.label)

    @property
    def encoding(self) -> "Setting":
        """The same without what only the decoder is told: settings with one encoding share their files."""
        return replace(self, options=tuple(option for option in self.options if option[0] not in DECODING_KEYS))

    @property
    def suffix(self) -> str:
        if self.name.startswith(compressai_codecs.PREFIX):
            return ".bin"
        return CLASSICAL[self.name].suffix if self.name in CLASSICAL else ".roe"

    @property
    def models(self) -> tuple[str, ...]:
        """Names or directories of codling's models that it takes: its own, and the one that finishes."""
        if self.name in CLASSICAL or self.name.startswith(compressai_codecs.PREFIX):
            return ()
        return (self.name, *(value for key, value in self.options if key == "finish"))

    @property
    def _base(self) -> str:
        """What labels call the codec."""
        return self.alias or Path(self.name).name

    @property
    def _head(self) -> str:
        """What labels begin with: the codec, and the factor that it shrinks by."""
        return self._base if self.factor == 1 else f"{self._base}/{self.factor}"

    @property
    def _quality(self) -> int:
        """Of a CompressAI codec, 1 to 8."""
        return int(dict(self.options).get("quality", 1))

    def encode(self, path: Path) -> bytes:
        """The picture at `path` as a file's bytes."""
        if self.name.startswith(compressai_codecs.PREFIX):
            return compressai_codecs.encode(load_picture(path).rgb, self.name, self._quality)
        if self.name not in CLASSICAL:
            model = self._model()
            names = ROE_RATES | {"level": "level"} if model.codec_id is CodecId.OSCAR else ROE_RATES
            rate = {names[key]: ROE_KEYS[key](value) for key, value in self.options if key in names}
            return api.encode(path, model=model, **rate)
        picture = Image.fromarray(load_picture(path).rgb)
        excess = (-picture.width % self.factor, -picture.height % self.factor)
        data = self._save(_shrink(picture, self.factor, excess))
        return data if excess == (0, 0) else UNEVEN + bytes(excess) + data

    def decode(self, data: bytes) -> Image.Image:
        """The bytes alone, back to a picture."""
        if self.name.startswith(compressai_codecs.PREFIX):
            return Image.fromarray(compressai_codecs.decode(data, self.name, self._quality))
        if self.name not in CLASSICAL:
            return self._decode_roe(data)
        excess = (0, 0)
        if data[:1] == UNEVEN:
            excess, data = (data[1], data[2]), data[3:]
        codec = _classical(self.name)
        with Image.open(io.BytesIO(data), formats=[codec.format]) as opened:
            small = opened.convert("RGB")
        if self.factor == 1:
            return small
        size = (small.width * self.factor, small.height * self.factor)
        whole = small.resize(size, Image.Resampling.BICUBIC)
        return whole.crop((0, 0, size[0] - excess[0], size[1] - excess[1]))

    def fingerprint(self) -> str:
        """What besides the setting decides the result: versions of libraries, or the model's id."""
        if self.name.startswith(compressai_codecs.PREFIX):
            return f"compressai {distribution_version('compressai')}"
        if self.name not in CLASSICAL:
            finish = dict(self.options).get("finish")
            return f"{self._model().model_id:06x}" + ("" if finish is None else f", finished by {_id(finish):06x}")
        library = {"avif": "avif", "webp": "webp", "jpeg": "libjpeg_turbo"}.get(self.name)
        version = features.version(library) if library else distribution_version("pillow-jxl-plugin")
        return f"Pillow {PIL.__version__}, {self.name} {version}"

    def _save(self, picture: Image.Image) -> bytes:
        codec, buffer = _classical(self.name), io.BytesIO()
        picture.save(buffer, codec.format, **{**codec.fixed, **{key: int(value) for key, value in self.options}})
        return buffer.getvalue()

    def _decode_roe(self, data: bytes) -> Image.Image:
        options = dict(self.options)
        return api.decode(
            data,
            model=self._model(),
            steps=int(options["steps"]) if "steps" in options else None,
            guidance=float(options["guidance"]) if "guidance" in options else None,
            sampler=options.get("sampler"),
            seed=int(options.get("seed", 0)),
            score_scale=float(options.get("score", 1)),
            finish=_finisher(options["finish"], self.device) if "finish" in options else None,
        )

    def _model(self) -> "Codec":
        return _model(self.name, dict(self.options).get("codec"), self.device)


def folder_of(label: str) -> str:
    """The folder's name of a setting's label."""
    return label.replace("/", "_").replace(":", "_")


# The keys a specification of a model may set, with what turns their text into a value.
ROE_KEYS: Mapping[str, Callable[[str], Any]] = {
    "steps": int, "guidance": float, "sampler": str, "seed": int, "score": float, "finish": str,
    "codec": str, "bytes": int, "bpp": float, "psnr": float, "level": int,
}  # fmt: skip
DECODING_KEYS = ("steps", "guidance", "sampler", "seed", "score", "finish")
# What `encode` calls the keys that set a rate; a level is DiffC's noise level, but of OSCAR an entry of its table.
ROE_RATES = {"bytes": "max_bytes", "bpp": "bpp", "psnr": "psnr", "level": "noise_level"}


def parse_specs(specs: Iterable[str], *, device: str = "auto") -> list[Setting]:
    """All settings of several specifications, each once; models that share a name are told apart by their folders.

    device: "auto", "cpu" or "cuda", for codling's models. Raises ConfigError as `parse_spec` does.
    """
    settings = dict.fromkeys(setting for spec in specs for setting in parse_spec(spec))
    aliases = _aliases(dict.fromkeys(setting.name for setting in settings))
    return [replace(setting, alias=aliases[setting.name], device=device) for setting in settings]


def _aliases(names: Iterable[str]) -> dict[str, str]:
    """The last part of each name, and as many before it as the names of result folders need to differ."""
    parts = {name: Path(name).parts for name in names}
    aliases = {name: parts[name][-1] for name in parts}
    for length in range(2, max(map(len, parts.values()), default=0) + 1):
        uses = Counter(map(folder_of, aliases.values()))
        for name, alias in aliases.items():
            if uses[folder_of(alias)] > 1:
                aliases[name] = Path(*parts[name][-length:]).as_posix()
    return aliases


def parse_spec(spec: str) -> list[Setting]:
    """All settings of a specification. Raises ConfigError naming what is wrong with it."""
    head, *groups = spec.split(":")
    name, factor = head, 1
    if "/" in head and head.rpartition("/")[2].isdigit():
        name, _, text = head.rpartition("/")
        factor = int(text)
    if name.startswith(compressai_codecs.PREFIX) and not compressai_codecs.available():
        raise ConfigError(f"codec {spec!r} needs the package compressai: pip install compressai")
    names = {*CLASSICAL, *compressai_codecs.available(), *(entry.name for entry in entries())}
    if name not in names and not Path(name).is_dir():
        raise ConfigError(
            f"codec {spec!r}: unknown codec {name!r}{suggest(name, names)}; wanted one of {', '.join(sorted(names))}, "
            "or a model's directory"
        )
    if name not in names:
        name = os.fspath(Path(name).absolute())  # one directory, one name, however it is written
    if name in CLASSICAL:
        _classical(name)
    elif factor != 1:
        raise ConfigError(f"codec {spec!r}: only classical codecs take a factor of shrinking")
    if not 1 <= factor <= 128:
        raise ConfigError(f"codec {spec!r}: the factor of shrinking must be 1 to 128, got {factor}")
    keys, choices = _keys(name), {}
    for group in groups:
        key, equals, values = group.partition("=")
        if not equals or key not in keys:
            raise ConfigError(f"codec {spec!r}: wanted KEY=VALUE,... with KEY in {', '.join(keys)}, got {group!r}")
        if key in choices:
            raise ConfigError(f"codec {spec!r}: {key} is given twice; commas separate values: {key}=VALUE,VALUE")
        for value in values.split(","):
            try:
                keys[key](value)
            except ValueError:
                raise ConfigError(f"codec {spec!r}: {key} cannot be {value!r}") from None
        choices[key] = [(key, value) for value in values.split(",")]
    return [Setting(name, factor, combination) for combination in itertools.product(*choices.values())]


def _keys(name: str) -> Mapping[str, Callable[[str], Any]]:
    """The keys that a codec has, with what turns their text into a value."""
    if name in CLASSICAL:
        return dict.fromkeys(CLASSICAL[name].keys, int)
    return {"quality": int} if name.startswith(compressai_codecs.PREFIX) else ROE_KEYS


def _classical(name: str) -> Classical:
    codec = CLASSICAL[name]
    try:
        if codec.module:
            import_module(codec.module)
    except ImportError as error:
        raise ConfigError(f"{name}: this format needs the eval extra: pip install 'codling[eval]' ({error})") from error
    if name == "avif" and not features.check("avif"):
        raise ConfigError("avif: this Pillow has no AVIF; install Pillow 11.3 or later from its wheels")
    return codec


def _shrink(picture: Image.Image, factor: int, excess: tuple[int, int]) -> Image.Image:
    """Shrink by an exact factor, the sides first padded to multiples of it by repeating the last row and column."""
    if factor == 1:
        return picture
    padded = np.pad(np.asarray(picture), ((0, excess[1]), (0, excess[0]), (0, 0)), mode="edge")
    height, width = padded.shape[:2]
    return Image.fromarray(padded).resize((width // factor, height // factor), Image.Resampling.LANCZOS)


def _id(name: str) -> int:
    """The id of a model that need not be loaded for it."""
    from codling.weights.registry import locate

    return model_id(read_config(locate(name)[1]))


@lru_cache(maxsize=1)
def _finisher(name: str, device: str) -> "Finisher":
    """What finishes streams, kept as the model is."""
    return api.load_finisher(name, device=device)


@lru_cache(maxsize=1)
def _model(name: str, codec: str | None, device: str) -> "Codec":
    """The model, kept between pictures by a worker that does one setting at a time."""
    try:
        return api.load(name, codec=codec, device=device)
    except FormatError as error:
        raise ConfigError(str(error)) from error
