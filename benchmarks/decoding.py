"""Drawing pictures token by token from a causal transformer of 26 million parameters: ours against transformers' `generate`.

    python -m benchmarks.decoding          (about ten minutes on two cores; the peer's compiler takes some of them)

Both networks have 8 blocks of width 512, 8 heads and inner layers of 2048, and draw from their own distribution at every position
(no greedy choice, no truncation): 784 tokens for one picture, 196 for each of 64. Ours is the catalogue's image transformer at
28 x 28 and 14 x 14 pixels of 256 levels; the peer is a GPT-2 with a token a level. A token reads 25.3 M parameters of ours and
25.4 M of the peer's (25.2 M of both are the blocks); ours has 8.4 M more that turn the condition into scales and shifts, once a
picture. Weights are as initialised: what they are changes no time.

    transformers, default     GPT2LMHeadModel.generate(do_sample=True, top_k=0) as it is: float32, keys and values kept
    transformers, bf16        the same in bf16
    transformers, tuned       bf16, static keys and values, the forward pass compiled with weights frozen into the fastest layout
    limit                     reading once what a step must read, at two bytes a number: the weights, and the keys and values so
                              far (in the mean over the positions); measured by summing a float32 buffer of so many bytes
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch

from benchmarks._turns import Line, arguments, race
from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive.image_transformer import ImageTransformer
from nonesuch.train.device import has_bf16

SHAPE = {"width": 512, "depth": 8, "num_heads": 8, "ratio": 4}
LEVELS = 256


def ours(side: int) -> ImageTransformer:
    """An image transformer whose every weight counts, as after training."""
    model = catalog.build(
        "autoregressive/image_transformer", ImageSpec(1, (side, side), levels=LEVELS), Schema(), "medium", **SHAPE
    )
    assert isinstance(model, ImageTransformer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("out.weight", "mlp_out.weight", "leave.weight")):
                p.add_(0.02 * Seeds((1,), (0,)).normal(name, *p.shape)[0])
    model.images_seen.fill_(1)
    model.compute_dtype = torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32
    return model


def read_bytes(model: ImageTransformer, batch: int) -> int:
    """What a step over `batch` pictures must read, in the mean over the positions, with two bytes a number."""
    layers = [layer for b in model.blocks for layer in (b.attention.qkv, b.attention.out, b.mlp_in, b.mlp_out)]  # type: ignore[union-attr]
    weights = sum(p.numel() for layer in [*layers, model.enter, model.leave] for p in layer.parameters())
    kept = 2 * model.config.depth * model.config.width * (model.raster.length + 1) // 2
    return 2 * (weights + batch * kept)


def peer(tokens: int, dtype: torch.dtype, fast: bool) -> Callable[[int], object] | None:
    """Its `generate` of n sequences, or None where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    start = LEVELS  # the token before the first
    config = transformers.GPT2Config(
        vocab_size=LEVELS + 1, n_positions=tokens + 1, n_embd=SHAPE["width"], n_layer=SHAPE["depth"], n_head=SHAPE["num_heads"],
        bos_token_id=start, eos_token_id=None, pad_token_id=start,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config).eval().to(dtype)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": tokens, "use_cache": True}
    if fast:
        options["cache_implementation"] = "static"
        network.forward = torch.compile(network.forward, dynamic=False)

    @torch.no_grad()
    def generate(n: int) -> torch.Tensor:
        ids = torch.full((n, 1), start)
        drawn: torch.Tensor = network.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert drawn.shape == (n, tokens + 1)
        return drawn

    return generate


def measure(side: int, batch: int, asked: argparse.Namespace) -> Line | None:
    """One row."""
    tokens = side * side
    model = ours(side)
    contestants: dict[str, tuple[float, Callable[[], object]]] = {"ours": (batch * tokens, lambda: model.sample(batch))}
    peers = {"default": (torch.float32, False), "bf16": (torch.bfloat16, False), "tuned": (torch.bfloat16, True)}
    for name, (dtype, fast) in peers.items():
        if name in asked.skip:
            continue
        generate = peer(tokens, dtype, fast)
        if generate is None:
            print("transformers is not installed; there is nobody to compare with.")
            return None
        contestants[f"transformers, {name}"] = (batch * tokens, lambda generate=generate: generate(batch))  # type: ignore[misc]
    read = torch.ones(read_bytes(model, batch) // 4)
    steps = 20
    limit = (batch * steps, lambda: [read.sum() for _ in range(steps)])
    note = f"a step of {batch} reads {4 * len(read) / 1e6:.0f} MB"
    return race(f"causal transformer, {tokens} tokens, batch {batch}", "tokens/s", contestants, asked.rounds, limit, note)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], choices=[1, 64])
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["default", "bf16", "tuned"], help="ways of the peer's to leave out"
    )


def main() -> None:
    asked = arguments(__doc__, more=_options)
    torch._inductor.config.freezing = True
    for batch in asked.batch:
        line = measure(28 if batch == 1 else 14, batch, asked)
        if line is None:
            return
        line.show(asked.json)


if __name__ == "__main__":
    main()
