"""The errors a user can cause. Each message says what was got, what was wanted and what to do about it."""


class CodlingError(Exception):
    """Base of every error below: catch this one to catch them all."""


class FormatError(CodlingError, ValueError):
    """The bytes are not a stream this version can decode: wrong magic, version, length, range or checksum."""


class ModelError(CodlingError, LookupError):
    """A model is unknown, incomplete, or not the one that a stream names."""


class RateError(CodlingError, ValueError):
    """A rate, budget or quality cannot be met."""


class ImageError(CodlingError, ValueError):
    """A file is not a picture, or a picture cannot be coded."""


class ConfigError(CodlingError, ValueError):
    """A configuration has an unknown key, a missing one or a value out of range."""
