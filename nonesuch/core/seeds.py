"""Which pictures: a (seed, index) pair for each, and the counter-based generator behind every random number.

A counter-based generator is a fixed bijection of a counter under a key: it has no state, so the number for
(seed, image index, named draw, element) is the same on every device, for every batch, in any order. Ours is Philox4x32-10:
ten rounds that take the counter words (c0, c1, c2, c3) and the key words (k0, k1) to

    (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),      k0 += W0,  k1 += W1.

Here the key is a hash of (seed, name of the draw) and the counter is (block of elements, step, index low, index high).
Words are 32-bit integers held in int64, and a product's high word survives the wrap of int64 multiplication.

On a processor compiled code (draws.cpp) makes the words and what is made of them, or, where it is not built and there is too
little to do for building it, numpy; elsewhere it is torch. All give the same bits: logarithms and sines are torch's in each.

References:
    Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon, Moraes, Dror, Shaw, 2011), section 3.3
    A Note on the Generation of Random Normal Deviates (Box, Muller, 1958)
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonesuch.core.compiled import compiled

_HERE = Path(__file__).parent
_M = (0xD2511F53, 0xCD9E8D57)  # round multipliers M0, M1
_W = (0x9E3779B9, 0xBB67AE85)  # key increments: golden ratio, sqrt(3) - 1
_MASK = 0xFFFFFFFF
_DROPS = {torch.bfloat16: "drop_bf16", torch.float32: "drop_float"}
_CHUNK = 1 << 13  # counters per pass of numpy: the working set stays in the second-level cache
_WORTH = 1 << 17  # words of one draw from which on it is worth a second or two to build the compiled code, once
_SHARED = 1 << 15  # words of one draw from which on threads share it


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 of counters (4, ...) under keys (2, ...), broadcast; words are int64 in [0, 2^32). Returns (4, ...)."""
    even, odd = torch.stack([counter[0], counter[2]]), torch.stack([counter[1], counter[3]])
    tail = even.dim() - 1
    m = torch.tensor(_M, device=counter.device).view(2, *[1] * tail)
    w = torch.tensor(_W, device=counter.device).view(2, *[1] * tail)
    key = key.reshape(2, *[1] * (tail - key.dim() + 1), *key.shape[1:])
    for r in range(10):
        product = even * m
        even = (product >> 32).bitwise_and_(_MASK).flip(0).bitwise_xor_(odd).bitwise_xor_((key + r * w) & _MASK)
        odd = product.bitwise_and_(_MASK).flip(0)
    return torch.stack([even[0], odd[0], even[1], odd[1]])


def _philox_numpy(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """`philox` on a CPU, uint64 in and out: numpy's calls cost a tenth of torch's, and unsigned words need fewer masks."""
    shift, mask = np.uint64(32), np.uint64(_MASK)
    m = np.array(_M, np.uint64).reshape(2, *[1] * (counter.ndim - 1))
    w = np.array(_W, np.uint64).reshape(2, *[1] * (key.ndim - 1))
    even, odd = counter[0::2], counter[1::2]
    high = np.empty(even.shape, np.uint64)
    for _ in range(10):
        product = even * m
        np.right_shift(product, shift, out=high)
        even = high[::-1] ^ odd
        even ^= key
        product &= mask
        odd, key = product[::-1], (key + w) & mask
    out = np.empty(counter.shape, np.uint64)
    out[0::2], out[1::2] = even, odd
    return out


@cache
def _built(build: bool) -> ctypes.CDLL | None:
    """The functions of draws.cpp; unless `build`, only if they are there."""
    return compiled([_HERE / "draws.cpp"], [_HERE / "numbers.h"], build)


def quick(words: int, device: torch.device) -> bool:
    """Whether compiled code makes draws of so many words there; they are made twice rather than kept then."""
    return device.type == "cpu" and _built(words >= _WORTH) is not None


class _Draw(ctypes.Structure):
    """`Draw` of draws.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("pictures", "words", "step", "threads", "own")),
        *((name, ctypes.c_void_p) for name in ("keys", "low", "high")),
    )


@lru_cache(maxsize=4096)
def _key(seed: int, name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(16, "little", signed=True)).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@dataclass(frozen=True)
class Seeds:
    """One (seed, index) pair a picture: picture i of these is what `Seeds.of((seed[i], index[i]))` gives alone.

    seed: a tuple of ints, one for each picture.
    index: a tuple of non-negative ints, one for each picture.
    """

    seed: tuple[int, ...]
    index: tuple[int, ...]

    @classmethod
    def of(cls, seeds: Seeds | int, n: int | None = None, start: int = 0) -> Seeds:
        """Seeds for n pictures: an int s means (s, start), ..., (s, start + n - 1); Seeds must be n already."""
        if isinstance(seeds, Seeds):
            if n is not None and len(seeds) != n:
                raise ValueError(f"{n} images were asked for, but {len(seeds)} seeds were given; give one seed an image.")
            return seeds
        if n is None:
            raise ValueError("say how many images the seed is for.")
        if isinstance(seeds, bool) or not isinstance(seeds, int) or not -(2**127) <= seeds < 2**127:
            raise ValueError(f"seeds must be an int or Seeds, not {seeds!r}.")
        return cls((seeds,) * n, tuple(range(start, start + n)))

    def __post_init__(self) -> None:
        if len(self.seed) != len(self.index):
            raise ValueError("a Seeds needs as many seeds as indices.")
        if min(self.index, default=0) < 0:
            raise ValueError("an image's index must not be negative.")

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: slice | Sequence[int]) -> Seeds:
        picked = range(len(self))[which] if isinstance(which, slice) else which
        return Seeds(tuple(self.seed[i] for i in picked), tuple(self.index[i] for i in picked))

    def repeat(self, times: int) -> Seeds:
        """Each seed `times` times, neighbours together."""
        return self[[i for i in range(len(self)) for _ in range(times)]]

    def __add__(self, other: Seeds) -> Seeds:
        return Seeds(self.seed + other.seed, self.index + other.index)

    # -- draws

    def bits(self, name: str, count: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """(n, count) int64 in [0, 2^32): the raw words of the draw `name` at `step`."""
        out = torch.empty(len(self), count, dtype=torch.int64, device=device)
        if self._made("words", name, count, step, [out]):
            return out
        if out.device.type == "cpu":
            return torch.from_numpy(self._words(name, count, step).view(np.int64))
        blocks = -(-count // 4)
        # One key a distinct seed; the counter's words for a picture are constant, the block counts up.
        keys = torch.tensor([_key(s, name) for s in self.seed], dtype=torch.int64, device=device).view(-1, 2).T[:, :, None]
        low = torch.tensor([i & _MASK for i in self.index], dtype=torch.int64, device=device)[:, None]
        high = torch.tensor([(i >> 32 ^ (step >> 32 << 16)) & _MASK for i in self.index], dtype=torch.int64, device=device)[
            :, None
        ]
        block = torch.arange(blocks, device=device)[None]
        words = torch.broadcast_tensors(block, torch.full_like(block, step & _MASK), low, high)
        return philox(torch.stack(words), keys).permute(1, 2, 0).reshape(len(self), -1)[:, :count]

    def _counters(self, name: str, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys (1 or n, 2), one for all if there is one seed, as in training; and the counter's words of the index (n,)."""
        one = self.seed.count(self.seed[0]) == len(self) if len(self) else False
        keys = np.array([_key(s, name) for s in (self.seed[:1] if one else self.seed)], np.uint64).reshape(-1, 2)
        index = np.array(self.index, np.uint64)
        high = (index >> np.uint64(32) ^ np.uint64(step >> 32 << 16)) & np.uint64(_MASK)
        return keys, index & np.uint64(_MASK), high

    def _made(
        self, what: str, name: str, count: int, step: int, out: Sequence[Tensor], *numbers: ctypes._SimpleCData[Any]
    ) -> bool:
        """Whether compiled code took it: what it makes of `count` words a picture then stands in the last of `out`."""
        total = len(self) * count
        built = _built(total >= _WORTH) if out[0].device.type == "cpu" else None
        if built is None:
            return False
        parts = [part.astype(np.uint32) for part in self._counters(name, step)]
        threads = torch.get_num_threads() if total >= _SHARED else 1
        draw = _Draw(len(self), count, step & _MASK, threads, len(parts[0]) > 1, *(part.ctypes.data for part in parts))
        built[what](ctypes.byref(draw), *(ctypes.c_void_p(x.data_ptr()) for x in out), *numbers)
        return True

    def _words(self, name: str, count: int, step: int) -> np.ndarray:
        """`bits` by numpy, uint64, a cache's worth of counters at a time."""
        n, blocks = len(self), -(-count // 4)
        keys, low, high = self._counters(name, step)
        keys, low, high, one = keys.T[:, :, None], low[:, None], high[:, None], len(keys) == 1
        rows = max(1, _CHUNK // max(1, blocks))
        out = np.empty((n, blocks, 4), np.uint64)
        for i in range(0, n, rows):
            part = slice(i, i + rows)
            for b in range(0, blocks, _CHUNK):
                block = np.arange(b, min(blocks, b + _CHUNK), dtype=np.uint64)
                counter = np.empty((4, len(low[part]), len(block)), np.uint64)
                counter[0], counter[1], counter[2], counter[3] = block, step & _MASK, low[part], high[part]
                out[part, b : b + _CHUNK] = _philox_numpy(counter, keys if one else keys[:, part]).transpose(1, 2, 0)
        return out.reshape(n, -1)[:, :count]

    def uniform(self, name: str, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """(n, *shape) float32 in (0, 1): the middles of 2^23 equal cells, so that both ends stay open."""
        out = torch.empty(len(self), *shape, dtype=torch.float32, device=device)
        if self._made("uniform", name, math.prod(shape), step, [out]):
            return out
        words = self.bits(name, math.prod(shape), step, device)
        return ((words >> 9).to(torch.float32) + 0.5).mul_(2.0**-23).view(len(self), *shape)

    def normal(self, name: str, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """(n, *shape) float32 standard normals, by Box and Muller's transform of pairs of words."""
        count = math.prod(shape)
        even = count + count % 2
        u, angle = torch.empty(2, len(self), even // 2, dtype=torch.float32, device=device)
        if not self._made("polar", name, even, step, [u, angle]):
            pairs = self.bits(name, even, step, device).view(len(self), -1, 2)
            u = ((pairs[..., 0] + 1).double() * 2.0**-32).to(torch.float32)  # in (0, 1]
            angle = (pairs[..., 1] >> 8).to(torch.float32).mul_(2 * math.pi * 2.0**-24)
        radius = u.log_().mul_(-2).sqrt_()  # up to 6.66
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
        return both.view(len(self), -1)[:, :count].reshape(len(self), *shape)

    def integers(self, name: str, high: int, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """(n, *shape) int64 in [0, high), high <= 2^31; the bias of the multiply-shift is below high / 2^32."""
        words = self.bits(name, math.prod(shape), step, device)
        return ((words * high) >> 32).view(len(self), *shape)

    def keep(self, name: str, p: float, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """(n, *shape) float32 dropout masks: 1 / (1 - q) or 0, where q is p to the nearest 1/256 (a byte a decision)."""
        count, cut = math.prod(shape), min(255, round(p * 256))
        words = -(-count // 4)
        out = torch.empty(len(self), *shape, dtype=torch.float32, device=device)
        numbers = ctypes.c_int64(count), ctypes.c_int64(cut), ctypes.c_float(256 / (256 - cut))
        if self._made("keep", name, words, step, [out], *numbers):
            return out
        if out.device.type == "cpu":  # a word's bytes, lowest first, as they lie in memory: no pass over int64
            bytes_ = torch.from_numpy(self._words(name, words, step).astype("<u4").view(np.uint8))[:, :count]
        else:
            shifts = torch.tensor([0, 8, 16, 24], device=device)
            bytes_ = ((self.bits(name, words, step, device)[..., None] >> shifts) & 255).view(len(self), -1)[:, :count]
        return (bytes_ >= cut).to(torch.float32).mul_(256 / (256 - cut)).view(len(self), *shape)

    def drop(self, x: Tensor, name: str, p: float) -> Tensor:
        """x (n, ...) times the masks `keep`, in x's dtype, and by compiled code without the masks in memory."""
        last = x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
        if x.dtype in _DROPS and (last or x.is_contiguous()):
            count, cut, out = math.prod(x.shape[1:]), min(255, round(p * 256)), torch.empty_like(x)
            sizes = [ctypes.c_int64(size) for size in (x.shape[1], math.prod(x.shape[2:]), last, cut)]
            if self._made(_DROPS[x.dtype], name, -(-count // 4), 0, [x, out], *sizes, ctypes.c_float(256 / (256 - cut))):
                return out
        return x * self.keep(name, p, *x.shape[1:], device=x.device).to(x.dtype)

    def categorical(self, logits: Tensor, name: str, step: int = 0) -> Tensor:
        """(n, ...) int64 drawn from softmax(logits) over the last axis of (n, ..., K), by inverting the distribution function."""
        u = self.uniform(name, *logits.shape[1:-1], 1, step=step, device=logits.device)
        cdf = logits.float().softmax(-1).cumsum(-1)
        return (u * cdf[..., -1:] > cdf).sum(-1).clamp(max=logits.shape[-1] - 1)


@lru_cache(maxsize=8)
def permutation(seed: int, name: str, n: int, step: int = 0) -> Tensor:
    """A permutation of range(n), int64: the order of 63 random bits an element. Kept for the next call: do not write into it."""
    words = Seeds((seed,), (0,)).bits(name, 2 * n, step).view(n, 2)
    return ((words[:, 0] << 31) | (words[:, 1] >> 1)).argsort(stable=True)


@torch.no_grad()
def initialise(module: nn.Module, seed: int = 0, skip: set[nn.Module] | None = None) -> None:
    """Draw the weights of every linear, convolution and embedding layer anew, keyed by the parameter's name.

    Weights are normal with variance gain^2 / fan_in (Delving Deep into Rectifiers (He et al., 2015) arXiv:1502.01852), biases
    zero, embeddings normal with deviation gain; `gain` is 1 unless the layer says otherwise (`nonesuch.nn.zero` sets 0).
    `skip` names submodules that keep what they have: a model's frozen or trained parts.
    """
    for name, layer in module.named_modules():
        if skip and layer in skip:
            continue
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)) or not isinstance(weight, Tensor):
            continue
        if weight.is_meta:  # built to be asked about, without memory
            continue
        fan_in = 1 if isinstance(layer, nn.Embedding) else weight[0].numel()
        gain = float(getattr(layer, "gain", 1.0))
        draw = Seeds((seed,), (0,)).normal(f"init/{name}", *weight.shape, device="cpu")[0]
        weight.copy_(draw.mul_(gain / math.sqrt(fan_in)))
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()
