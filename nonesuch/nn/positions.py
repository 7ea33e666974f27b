"""Causal blocks at one position after another, by compiled code (decode.cpp): what decoding.py prepares for it and asks of it.

For few rows a position goes through all blocks in one call, and each thread takes a share of every layer's outputs: then it costs
what reading the weights costs. For many rows torch's own products may be quicker, and what lies between them is compiled. Numbers
are stored in bf16 and computed with in float32; on AMD's processors, which multiply bf16 twice as fast, what enters a layer is
rounded to bf16 too. Where the computation is in float32, so is what is stored.

Milliseconds a position, 8 blocks of width 512, on two cores of Zen 4 that others used too (the best of 49, each by turns):

    rows                               1     4     8    16    64
    torch's operations              3.81  5.82  6.99  8.82  35.8
    compiled between the products   2.93     -     -  5.67  13.7
    one call                        1.36  1.99  2.91  4.52  12.1
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.compiled import compiled
from nonesuch.nn.native import addresses

LANES, CHUNK = 16, 64  # numbers of a vector; positions of a chunk of keys or values
_HERE = Path(__file__).parent


@cache
def library(dtype: torch.dtype = torch.bfloat16) -> ctypes.CDLL | None:
    """The functions of decode.cpp for bf16 or float32, which take two seconds to build, once; None where they cannot be had."""
    flags = ["-DFLOAT32"] if dtype == torch.float32 else []
    return compiled([_HERE / "decode.cpp"], [_HERE.parent / "core" / "numbers.h"], flags=flags)


def pack(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A weight (out, in) as decode.cpp reads it, (groups of outputs, pairs of inputs, 16, 2), filled up with zeros.

    In float32 the last two axes are the other way round.
    """
    out, width = weight.shape
    half = weight.detach().to(dtype)
    if width % 2 or out % LANES:
        half = F.pad(half, (0, width % 2, 0, -out % LANES))
    if dtype == torch.float32:
        return half.view(-1, LANES, (width + 1) // 2, 2).permute(0, 2, 3, 1).contiguous()
    pairs = half.contiguous().view(torch.int32).view(-1, LANES, (width + 1) // 2)  # half as many to copy
    packed = pairs.new_empty(len(pairs), pairs.shape[2], LANES)
    return packed.copy_(pairs.transpose(1, 2)).view(torch.bfloat16)


class Kept:
    """Keys and values of all positions so far, in as many chunks as they fill, for `blocks` blocks of (rows, width)."""

    def __init__(self, rows: int, width: int, heads: int, blocks: int, room: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.rows, self.width, self.heads, self.blocks, self.dtype = rows, width, heads, blocks, dtype
        self.chunks = -(-room // CHUNK)
        self.addresses = (ctypes.c_void_p * (2 * blocks * self.chunks))()
        self.sizes = [2 * ((width // heads + 1) // 2), up(width // heads, 2 * LANES)]  # of a key and of a value
        self._held: list[Tensor] = []

    @property
    def own(self) -> int:
        """Floats that a thread needs for itself."""
        return 5 * up(self.width // self.heads, 2 * LANES) + self.chunks * CHUNK

    def reach(self, position: int) -> None:
        """Make room for this position, if there is none yet."""
        if position < len(self._held) // (2 * self.blocks) * CHUNK:
            return
        for i in range(2 * self.blocks):
            chunk = torch.empty(self.rows * self.heads * CHUNK * self.sizes[i % 2], dtype=self.dtype)
            self._held.append(chunk)
            self.addresses[i * self.chunks + position // CHUNK] = chunk.data_ptr()

    def of(self, block: int) -> ctypes.c_void_p:
        """Where the addresses of one block's chunks begin."""
        return ctypes.c_void_p(ctypes.addressof(self.addresses) + 16 * block * self.chunks)


def up(n: int, to: int) -> int:
    """n filled up to a multiple."""
    return -(-n // to) * to


class Stack:
    """A position through a whole stack of blocks (rows, width) in one call."""

    def __init__(
        self, kept: Kept, layers: Sequence[Sequence[tuple[Tensor, Tensor | None]]], rows: Sequence[Sequence[Tensor]]
    ) -> None:
        """Of each block the weight (out, in) and bias of four layers, and scale and shift, twice, (rows, width) float32."""
        n, width, self.kept, threads = kept.rows, up(kept.width, LANES), kept, torch.get_num_threads()
        inner = len(layers[0][2][0])
        held: list[Tensor | None] = []
        for four, more in zip(layers, rows, strict=True):
            for weight, bias in four:
                held += [
                    pack(weight, kept.dtype),
                    None if bias is None else F.pad(bias.detach().float(), (0, -len(bias) % LANES)),
                ]
            held += more
        sizes = [
            n * width,
            threads * n * width,
            n * up(3 * kept.width, LANES),
            n * width,
            n * up(inner, LANES),
            threads * kept.own,
        ]
        self._held = [*(torch.zeros(size) for size in sizes), *held]
        self._at = addresses([None, None, *self._held])
        self._size = (ctypes.c_int64 * 9)(n, kept.width, kept.heads, inner, len(layers), 0, threads, kept.chunks, kept.own)

    def __call__(self, x: Tensor, position: int) -> Tensor:
        """y of x, both (rows, width)."""
        built = library(self.kept.dtype)
        assert built is not None
        self.kept.reach(position)
        x = x.to(self.kept.dtype).contiguous()
        y = torch.empty_like(x)
        self._at[0], self._at[1], self._size[5] = x.data_ptr(), y.data_ptr(), position
        built.decode(self._size, self._at, self.kept.addresses)
        return y


class Between:
    """What lies between the products of a block's position, for many rows."""

    def __init__(self, kept: Kept) -> None:
        self.kept, self.threads = kept, torch.get_num_threads()
        self._rooms = torch.zeros(self.threads * kept.own)
        self._size = (ctypes.c_int64 * 7)(kept.rows, kept.width, kept.heads, 0, self.threads, kept.chunks, kept.own)

    def modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """layer_norm(x) scale + shift; scale and shift float32 (rows, width)."""
        built = library(self.kept.dtype)
        assert built is not None
        x = x.to(self.kept.dtype).contiguous()
        y = torch.empty_like(x)
        counts = [ctypes.c_int64(n) for n in (self.kept.rows, self.kept.width, self.threads)]
        built.modulate(*counts, *[ctypes.c_void_p(t.data_ptr()) for t in (x, scale, shift, y)])
        return y

    def attend(self, block: int, qkv: Tensor, position: int) -> Tensor:
        """(rows, width) of what a position's queries attend to; its keys and values are taken in first."""
        built = library(self.kept.dtype)
        assert built is not None
        self.kept.reach(position)
        qkv = qkv.to(self.kept.dtype).contiguous()
        out = qkv.new_empty(self.kept.rows, self.kept.width)
        self._size[3] = position
        built.attend(self._size, *[ctypes.c_void_p(t.data_ptr()) for t in (qkv, out, self._rooms)], self.kept.of(block))
        return out
