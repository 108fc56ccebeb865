"""Coverage-guided fuzzing of all message readers: only WireError may be raised.

    bash setup.sh --with=fuzz
    python -m tests.fuzz.messages -runs=10000000 -max_len=512 [CORPUS]

The first byte of an input chooses how the rest becomes a message, so that the fuzzer need not find checksums:
unchanged; with a valid checksum; as the parts of a message; as the body of one coded part; as the data of one codec,
alone or with a reference; as data or a mask that is compressed here; as a reply of several parts that a server reads,
checks, decodes and sums (`tests/wire/replies.py`). The first inputs are the golden and hostile messages. The fuzzer
writes an input that crashes to a file.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["ssfl.wire", "ssfl.core.reading", "ssfl.core.payloads", "ssfl.deploy.protocol.payloads"]
):
    import ssfl.core.payloads
    import ssfl.core.reading
    import ssfl.deploy.protocol.payloads
    import ssfl.wire.coding
    import ssfl.wire.message
    import ssfl.wire.stack  # noqa: F401

from ssfl.core.reading import WireError
from ssfl.wire.entropy import squeezed
from tests.wire import attacks, replies
from tests.wire.attacks import HEAD, HELD, NONE, P, open_message, part, signed

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def _parts(raw: bytes) -> bytes:
    return signed(HEAD[:5] + raw[:1] + HEAD[6:] + raw[1:])


def _coded_part(raw: bytes) -> bytes:
    kind, codec, dtype, count, sized = struct.unpack_from("<BBBBB", raw.ljust(5, b"\0"))
    size = count % (P + 2) if sized % 2 else P
    name = (b"w", b"mask", b"scores")[sized % 3]
    return attacks.message(part(4 + kind % 3, raw[5:], size, codec % 8, dtype % 5, name))


def _reference(codec: int) -> bytes:
    return HELD.version if codec // 6 % 2 else NONE


def _codec(raw: bytes) -> bytes:
    codec, kind = (raw.ljust(2, b"\0"))[:2]
    reference = HELD.version if kind % 2 else NONE
    return attacks.values(codec % 6, raw[2:], reference=reference)


def _sparse(raw: bytes) -> bytes:
    codec, mask_codec, cut = (raw.ljust(3, b"\0"))[:3]
    return attacks.sparse(
        codec % 6, raw[3 : 3 + cut], raw[3 + cut :], mask_codec % 4, reference=_reference(codec)
    )


def _framed_codec(raw: bytes) -> bytes:
    """Compress the data here, because a fuzzer does not find valid zstd frames."""
    codec, kind, cut = (raw.ljust(3, b"\0"))[:3]
    reference = HELD.version if kind % 2 else NONE
    return attacks.values(codec % 6, raw[3 : 3 + cut] + squeezed(raw[3 + cut :]), reference=reference)


def _framed_mask(raw: bytes) -> bytes:
    cut = raw[0] if raw else 0
    return attacks.mask(2, attacks.sorted_body(raw[1 : 1 + cut], raw[1 + cut :]))


def _framed_sparse(raw: bytes) -> bytes:
    codec, cut, data_cut = (raw.ljust(3, b"\0"))[:3]
    support, rest = squeezed(raw[3 : 3 + cut]), raw[3 + cut :]
    data = rest[:data_cut] + squeezed(rest[data_cut:])
    return attacks.sparse(codec % 6, support, data, 1, reference=_reference(codec))


WAYS: tuple[Callable[[bytes], bytes], ...] = (
    bytes,
    signed,
    _parts,
    _coded_part,
    _codec,
    _sparse,
    _framed_codec,
    _framed_mask,
    _framed_sparse,
)
REPLY = len(WAYS)
"""The way of a reply; its second byte chooses what the server expects."""


WHOLE = (
    (1, b"", bytes(4 * P)),
    (2, b"\x03\x01", bytes(2 * P)),
    (3, attacks.int8(1)[:-P], bytes(P)),
    (4, struct.pack("<BHI", 1, 1, P) + attacks.ONE, bytes(P)),
    (4, struct.pack("<BHI", 4, 1, P) + attacks.ONE, bytes(4 * P)),
    (5, attacks.ONE + b"\x08", bytes(P)),
)
"""Valid data of every codec: its number, the bytes before the frame, the content of the frame."""


def one_input(data: bytes) -> None:
    """One execution."""
    if not data:
        return
    way = data[0] % (len(WAYS) + 1)
    try:
        if way == REPLY:
            replies.open_reply(data[1] if len(data) > 1 else 0, replies.multipart(data[2:]))
        else:
            open_message(WAYS[way](data[1:]))
    except WireError:
        return


def _write_seeds(folder: Path) -> None:
    """Write golden and hostile messages, complete and as parts without header and checksum."""
    for number, path in enumerate(sorted(GOLDEN.glob("*/*.bin"))):
        raw = path.read_bytes()
        (folder / f"whole-{number}").write_bytes(b"\x00" + raw)
        (folder / f"parts-{number}").write_bytes(b"\x02" + raw[5:6] + raw[20:-4])
        (folder / f"part-{number}").write_bytes(b"\x03" + raw[20:22] + bytes(3) + raw[37:-4])
        (folder / f"codec-{number}").write_bytes(b"\x04" + raw[22:23] + b"\x01" + raw[57:-4])
        (folder / f"sparse-{number}").write_bytes(b"\x05" + raw[22:23] + b"\x00\x05" + raw[57:-4])
    for codec, head, symbols in WHOLE:
        for kind in (b"\x00", b"\x01"):
            way = bytes([6, codec]) + kind + bytes([len(head)])
            (folder / f"framed-{codec}-{len(symbols)}-{kind[0]}").write_bytes(way + head + symbols)
        for kind_6 in (codec, codec + 6):
            way = bytes([8, kind_6, 5, len(head)]) + b"\xff" * 5
            (folder / f"framed-sparse-{kind_6}-{len(symbols)}").write_bytes(way + head + symbols)
    for name, raw in replies.seeds().items():
        for form in range(len(replies.FORMS)):
            (folder / f"reply-{name}-{form}").write_bytes(bytes([REPLY, form]) + raw)
    whole = attacks.table([(8, 4, 1)], bytes(12))
    (folder / "framed-mask").write_bytes(bytes([7, len(whole)]) + whole + b"\xf0" * 4)


def main() -> None:
    """libFuzzer's options: -runs, -max_len, -max_total_time, -seed; a folder of inputs, to which new ones are added."""
    with tempfile.TemporaryDirectory() as seeds:
        _write_seeds(Path(seeds))
        atheris.Setup([*sys.argv, seeds], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
