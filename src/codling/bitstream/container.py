"""The `.roe` container: a header that says how to decode, then the payload of one codec.

    2 magic | 1 version, codec, flags | 3 model id | varint width | varint height | [sections] | 2 CRC-16 | payload

Twelve bytes up to 16383 x 16383 px. The checksum covers everything else in the file, or, in a progressive stream, the
header only: such a stream may be cut anywhere after its header.
"""

import binascii
from dataclasses import dataclass, field
from enum import IntEnum

from codling.errors import FormatError

MAGIC = b"\xb7r"
VERSION = 0
MAX_PIXELS = 2**26
# Models pad sides to multiples of 64 px or so, so that a line of 1 px is that many times the work of its pixels.
MAX_SIDE = 2**20


class CodecId(IntEnum):
    """Codes of the codecs, bits 2 to 4 of the third byte."""

    COD = 0
    DIFFC = 1
    OSCAR = 3


# Codecs whose payload may be an incomplete prefix.
PROGRESSIVE = frozenset({CodecId.DIFFC})


class SectionTag(IntEnum):
    """What an optional section holds. END closes the list."""

    END = 0
    ICC = 1
    EXIF = 2
    ALPHA = 3


@dataclass(frozen=True)
class Stream:
    """A parsed `.roe` file.

    model_id: 24 bits. width, height: of the picture, in pixels. sections: optional data by tag, raw.
    progressive: whether `payload` may be an incomplete prefix.
    """

    codec: CodecId
    model_id: int
    width: int
    height: int
    payload: bytes
    progressive: bool = False
    sections: dict[SectionTag, bytes] = field(default_factory=dict)

    @property
    def header_size(self) -> int:
        """Bytes of the file that are not payload."""
        return len(pack(self)) - len(self.payload)


def pack(stream: Stream) -> bytes:
    """Stream -> bytes of the file."""
    if not 0 <= stream.model_id < 2**24:
        raise FormatError(f"model id {stream.model_id} does not fit 24 bits")
    if stream.width < 1 or stream.height < 1:
        raise FormatError(f"a picture has at least 1 x 1 px, got {stream.width} x {stream.height}")
    flags = VERSION << 5 | stream.codec << 2 | stream.progressive << 1 | bool(stream.sections)
    head = MAGIC + bytes([flags]) + stream.model_id.to_bytes(3, "big") + varint(stream.width) + varint(stream.height)
    for tag, data in sorted(stream.sections.items()):
        head += bytes([tag]) + varint(len(data)) + data
    head += bytes([SectionTag.END]) if stream.sections else b""
    return head + checksum(head, b"" if stream.progressive else stream.payload) + stream.payload


def unpack(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Stream:
    """Bytes of a file -> Stream. Raises FormatError on anything that `pack` could not have written, before any work.

    max_pixels: refuse pictures with more pixels than this; a header costs nothing to forge.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise FormatError(
            f"not a .roe file: it starts with {data[:2].hex(' ') or 'nothing'}, wanted {MAGIC.hex(' ')}; "
            "only files written by `codling encode` can be decoded"
        )
    reader = Reader(data, len(MAGIC))
    flags = reader.byte("version and codec")
    if flags >> 5 != VERSION:
        raise FormatError(f"stream version {flags >> 5}, this program knows version {VERSION}: update codling")
    try:
        codec = CodecId(flags >> 2 & 7)
    except ValueError:
        raise FormatError(f"codec number {flags >> 2 & 7} is unknown to this version: update codling") from None
    model_id = int.from_bytes(reader.take(3, "model id"), "big")
    width, height = reader.varint("width"), reader.varint("height")
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise FormatError(
            f"the header claims {width} x {height} px; wanted sides of 1 to {MAX_SIDE:,} px and at most "
            f"{max_pixels:,} pixels (raise max_pixels if the picture really has more)"
        )
    sections = _read_sections(reader) if flags & 1 else {}
    head = data[: reader.place]
    found, payload = reader.take(2, "checksum"), data[reader.place :]
    progressive = bool(flags & 2)
    if progressive and codec not in PROGRESSIVE:
        raise FormatError(f"a progressive stream of codec {codec.name}, which has none: the file is damaged")
    if found != checksum(head, b"" if progressive else payload):
        raise FormatError("checksum mismatch: the file is damaged or cut; get it again from its source")
    return Stream(codec, model_id, width, height, payload, progressive, sections)


def checksum(head: bytes, payload: bytes) -> bytes:
    """CRC-16 (polynomial 0x1021, initial value 0xFFFF), most significant byte first."""
    return binascii.crc_hqx(payload, binascii.crc_hqx(head, 0xFFFF)).to_bytes(2, "big")


def varint(value: int) -> bytes:
    """Seven bits a byte, least significant first, high bit set on all but the last."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


@dataclass
class Reader:
    """A cursor that refuses to run past the end."""

    data: bytes
    place: int = 0

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes; `what` names them in the error."""
        piece = self.data[self.place : self.place + count]
        if len(piece) < count:
            raise FormatError(f"the file ends inside its {what}: {count} bytes wanted, {len(piece)} left; it is cut")
        self.place += count
        return piece

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, what: str) -> int:
        """An unsigned integer below 2^35 in its shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte(what)
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    break
                return value
        raise FormatError(f"malformed number for {what}: longer than it needs to be, or than five bytes")


def _read_sections(reader: Reader) -> dict[SectionTag, bytes]:
    sections: dict[SectionTag, bytes] = {}
    last = 0
    while tag := reader.byte("section tag"):
        if tag not in SectionTag.__members__.values():
            raise FormatError(f"section tag {tag} is unknown to this version: update codling")
        if tag <= last:
            raise FormatError(f"section tag {tag} after {last}: sections come once each, in ascending order")
        sections[SectionTag(tag)] = reader.take(reader.varint("section length"), "section")
        last = tag
    if not sections:
        raise FormatError("the header announces sections but has none")
    return sections
