"""A shuffle without a list: where position ``index`` of 0 … size − 1 goes, from a key alone."""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 6


def permuted(index: int, size: int, key: bytes) -> int:
    """The image of ``index`` under a permutation of range(size) that ``key`` (up to 64 bytes) chooses.

    A Feistel network over the next power of 4, walked until the image lies in the range: at most 4 steps on average.
    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (cycle walking).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & mask
        for step in range(_ROUNDS):
            digest = blake2b(step.to_bytes(1, "big") + right.to_bytes(16, "big"), digest_size=16, key=key).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        value = left << half | right
        if value < size:
            return value
