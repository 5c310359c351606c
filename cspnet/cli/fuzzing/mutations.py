"""Damage to bytes: a bit, a number, a chunk, a nest. It is drawn from a generator: the same address gives the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["mutate"]

_MOST_BYTES = 1 << 20
"""Larger results are cut here: what is looked for is what small files can do."""
_NUMBERS = (
    *(-(2**63), -(2**31), -513, -1, 0, 1, 7, 127, 128, 255, 256, 511, 512, 4095, 32767, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**20),
)
"""Where integers and sizes go wrong."""
_TEXT_NUMBERS = (*(str(number).encode() for number in _NUMBERS), b"1e999", b"nan", b"-inf", b"0x10", b"9" * 5000)
_ODD_BYTES = (b"\0", b"\0" * 600, b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1b[2J", b"\r", b"\x85")
"""NULs, half a character, half a surrogate pair, a byte order mark, an escape sequence, odd line ends."""
_NESTS = (b"[", b"{", b"(", b"{a: ", b"- ", b'{"a":', b"[[", b"../", b"!!seq ", b"\n  ")
_TEXT_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")


def mutate(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Data with one to eight pieces of damage.

    Args:
        other: another input, of which pieces may be taken.
        words: pieces that mean something in this format.
    """
    for _ in range(2 ** int(rng.integers(4))):
        data = _MUTATIONS[rng.integers(len(_MUTATIONS))](data, other, words, rng)[:_MOST_BYTES]
    return data


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Somewhere in the data, or at their end; the beginning, where headers are, comes as often as all the rest."""
    return int(rng.integers(min(len(data), 256 if rng.random() < 0.5 else len(data)) + 1))


def _chunk(data: bytes, rng: np.random.Generator) -> bytes:
    start = _place(data, rng)
    return data[start : start + int(2 ** rng.uniform(0, 12))]


def _insert(data: bytes, piece: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + piece + data[at:]


def _overwrite(data: bytes, piece: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + piece + data[at + len(piece) :]


def _flip_bits(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(int(rng.integers(1, 9))):
        changed[_place(data, rng) % len(changed)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set_bytes(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return _overwrite(data, rng.bytes(int(rng.integers(1, 9))), rng)


def _truncate(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _delete(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + len(_chunk(data, rng)) :]


def _repeat(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return _insert(data, _chunk(data, rng) * int(2 ** rng.uniform(0, 8)), rng)


def _splice(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return (_insert if rng.random() < 0.5 else _overwrite)(data, _chunk(other, rng), rng)


def _cross(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def _set_binary_number(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    size, order = 2 ** int(rng.integers(4)), ("little", "big")[rng.integers(2)]
    number = _NUMBERS[rng.integers(len(_NUMBERS))] % 256**size
    return _overwrite(data, number.to_bytes(size, "little" if order == "little" else "big"), rng)


def _set_text_number(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    found = list(_TEXT_NUMBER.finditer(data[:65536]))
    number = _TEXT_NUMBERS[rng.integers(len(_TEXT_NUMBERS))]
    if not found:
        return _insert(data, number, rng)
    match = found[rng.integers(len(found))]
    return data[: match.start()] + number + data[match.end() :]


def _add_word(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return (
        (_insert if rng.random() < 0.5 else _overwrite)(data, words[int(rng.integers(len(words)))], rng)
        if words
        else data
    )


def _add_odd_bytes(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return _insert(data, _ODD_BYTES[rng.integers(len(_ODD_BYTES))], rng)


def _nest(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return _insert(data, _NESTS[rng.integers(len(_NESTS))] * int(2 ** rng.uniform(0, 15)), rng)


def _swap_lines(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    lines = data.split(b"\n")
    a, b = (int(i) for i in rng.integers(len(lines), size=2))
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _add_long_line(data: bytes, other: bytes, words: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return _insert(data, b"x y"[rng.integers(3) :][:1] * int(2 ** rng.uniform(8, 17)), rng)


_MUTATIONS = (
    *(_flip_bits, _set_bytes, _truncate, _delete, _repeat, _splice, _cross, _set_binary_number, _set_text_number),
    *(_add_word, _add_word, _add_odd_bytes, _nest, _swap_lines, _add_long_line),
)
