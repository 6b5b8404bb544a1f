"""Hadamard matrices: orthogonal, all entries of one size, so that every channel is spread over all of a block.

An order 2^a m with odd m > 1 is the Kronecker product of one small matrix (Paley, "On orthogonal matrices", J. Math. Phys. 1933) and
Sylvester's matrices. Widths of video transformers: 1152 = 36 x 32, 1536 = 12 x 128, 5120 = 20 x 256, 8960 = 140 x 64, 13824 = 108 x 128.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def sylvester(order: int) -> npt.NDArray[np.int8]:
    """Entries +-1, symmetric; order a power of two."""
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def paley(order: int) -> npt.NDArray[np.int8] | None:
    """Entries +-1 of an order q + 1 (q prime, q mod 4 = 3) or 2 (q + 1) (q prime, q mod 4 = 1); None for other orders."""
    if order % 4:
        return None
    if _prime(q := order - 1):
        skew = np.zeros((order, order), np.int8)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return (skew + np.eye(order, dtype=np.int8)).astype(np.int8)
    if _prime(q := order // 2 - 1) and q % 4 == 1:
        conference = np.zeros((q + 1, q + 1), np.int8)
        conference[0, 1:] = conference[1:, 0] = 1
        conference[1:, 1:] = _jacobsthal(q)
        both, diagonal = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
        return (np.kron(conference, both) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)).astype(np.int8)
    return None


@functools.cache
def factors(order: int) -> tuple[Array, Array] | None:
    """(A [n, n], B [p, p]), orthonormal, n p = order, so that x [n, p] -> A^T x B is the rotation; None if no matrix is known.

    n + p is as small as it can be: that many products an element costs.
    """
    twos = order & -order
    odd = order // twos
    base = np.ones((1, 1), np.int8)
    if odd > 1:
        sizes = (odd * 2**t for t in range(2, twos.bit_length()))
        found = next((m for m in map(paley, sizes) if m is not None), None)
        if found is None:
            return None
        base = found
    rest = order // len(base)
    p = min((2**i for i in range(rest.bit_length())), key=lambda p: (order // p + p, p))
    a = np.kron(base, sylvester(rest // p))
    return _unit(a), _unit(sylvester(p))


def block_of(width: int) -> int:
    """The largest block of channels, dividing `width`, that can be rotated: all of them where a matrix is known."""
    return next(width // d for d in range(1, width + 1) if width % d == 0 and factors(width // d) is not None)


def rotate(x: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """x [..., K], each block of channels times the block's orthonormal matrix Q = A (x) B, float32."""
    found = factors(block)
    if found is None or x.shape[-1] % block:
        raise ValueError(f"no rotation of blocks of {block} of {x.shape[-1]} channels")
    a, b = found
    parts = np.asarray(x, np.float32).reshape(-1, len(a), len(b))
    rotated: npt.NDArray[np.float32] = a.T @ (parts @ b)
    return rotated.reshape(x.shape)


def _unit(signs: npt.NDArray[np.int8]) -> Array:
    return np.asarray(signs / np.sqrt(len(signs)), np.float32)


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _jacobsthal(q: int) -> npt.NDArray[np.int8]:
    """chi(i - j) of the quadratic character of the field of q elements."""
    character = np.full(q, -1, np.int8)
    character[np.arange(1, q) ** 2 % q] = 1
    character[0] = 0
    index = np.arange(q)
    return np.asarray(character[(index[:, None] - index) % q], np.int8)
