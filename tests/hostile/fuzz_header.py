"""Coverage-guided fuzzing of the header reader, for as long as one likes; CI runs the same check on fewer inputs.

    pip install atheris
    python tests/hostile/fuzz_header.py -max_total_time=600

Any file either is refused by an error of ours, or the reference reader accepts it too and tells the same of it.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def check(content: bytes, path: Path) -> bool:
    """Read a file of these bytes by both readers; whether it was accepted."""
    from safetensors import safe_open

    from isthmus.errors import WeightsError
    from isthmus.weights.bytes import LocalBytes
    from isthmus.weights.header import read_header

    if not content:
        return False
    path.write_bytes(content)
    try:
        found = read_header(LocalBytes(path))
    except WeightsError as error:
        if str(path) not in str(error):
            raise
        return False
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(found.entries), "the same names"
        for name, entry in found.entries.items():
            assert tuple(file.get_slice(name).get_shape()) == entry.shape, name
            assert 8 <= entry.start <= entry.stop <= len(content), name
            tensor = file.get_tensor(name)
            assert tensor.dtype == entry.dtype and tensor.nbytes == entry.stop - entry.start, name
        assert (file.metadata() or {}) == found.metadata, "the same metadata"
    return True


def of(header: bytes, data: bytes) -> bytes:
    """A file with a length that fits its header: without it, few inputs get past the first eight bytes."""
    return struct.pack("<Q", len(header)) + header + data


#: Numbers at which readers go wrong.
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    8,
    12,
    -1,
    1.0,
    1e3,
    True,
    None,
    "2",
    [],
    2**31,
    2**32,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
]
DTYPES = ["F32", "BF16", "F64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "f32", "", None, 4]
KEYS = ["a", "b", "a\\u0000", "\\ud800", "é", "__metadata__", "dtype", ""]


def built(choose: Callable[[int], int]) -> bytes:
    """A file that is almost right: `choose(n)` gives a number below n, by a fuzzer or by chance.

    Args:
        choose: where the choices come from.
    """

    def one(items: list[object]) -> str:
        return json.dumps(items[choose(len(items))])

    entries: list[str] = []
    end = 0
    for _ in range(choose(4)):
        size = choose(4)
        right = [size, 1][: choose(3)] if choose(2) else [size]
        count = (right[0] if right else 1) * (1 if len(right) < 2 else right[1])
        shape = json.dumps(right) if choose(4) else f"[{one(NUMBERS)},{one(NUMBERS)}]"
        dtype = '"F32"' if choose(4) else one(DTYPES)
        offsets = f"[{end},{end + 4 * count}]" if choose(4) else f"[{one(NUMBERS)},{one(NUMBERS)}]"
        end += 4 * count
        extra = "" if choose(8) else f',"{KEYS[choose(len(KEYS))]}":{one(NUMBERS)}'
        name = KEYS[choose(len(KEYS))]
        entries.append(f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{extra}}}')
    if not choose(3):
        entries.append(f'"__metadata__":{{"{KEYS[choose(len(KEYS))]}":{one(["x", 1, None, {}])}}}')
    header = ("{" + ",".join(entries) + "}").encode("utf-8", "surrogatepass") + b" " * choose(9)
    return of(header, bytes(end if choose(4) else choose(20)))


SEEDS = [
    json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
            "c": {"dtype": "I64", "shape": [0, 3], "data_offsets": [10, 10]},
        }
    ).encode(),
    b'{"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}  ',
    b"{}",
]


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["isthmus", "json"]):
        import isthmus.weights.header  # noqa: F401

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(b"\x0a" + seed)
        (corpus / f"built{number}").write_bytes(
            bytes([200, *(7 * n * (number + 1) % 256 for n in range(200))])
        )

    def one(data: bytes) -> None:
        # The first byte says what the others are: choices, a header and how much follows it, a whole file.
        path, kind = folder / "file.safetensors", data[0] if data else 0
        if kind >= 192:
            provider = atheris.FuzzedDataProvider(data[1:])
            check(built(lambda n: provider.ConsumeIntInRange(0, n - 1)), path)
        elif kind >= 128:
            check(data[1:], path)
        else:
            check(of(data[1:], bytes(kind)), path)

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
