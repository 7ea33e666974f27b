"""Conditions that are pictures, as channels beside a network's own input.

Each column of images is brought to the size of the picture that is made, by cubic convolution (a smaller one enlarged, a larger
one reduced without aliasing), and says in one more channel whether it is there: zeros where it is missing, so that the same
network is one of P(x), too. Concatenation is all that Palette needs: the network reads the condition at every noise level.

References:
    Palette: Image-to-Image Diffusion Models (Saharia et al., 2021) arXiv:2111.05826
    Image Super-Resolution via Iterative Refinement (Saharia et al., 2021) arXiv:2104.07636
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from nonesuch.core.degradation import cubic_matrix
from nonesuch.core.given import Given, Image, Schema
from nonesuch.core.image import ImageSpec


class ImageCondition(nn.Module):
    """The columns of images of a condition as channels (B, channels, *size); without such columns there are none.

    Raises ValueError for a column whose axes are not those of the pictures, or which is of categories.
    """

    def __init__(self, schema: Schema, spec: ImageSpec) -> None:
        super().__init__()
        self.size, self.columns = spec.size, {k: c for k, c in schema.columns.items() if isinstance(c, Image)}
        for name, column in self.columns.items():
            if len(column.spec.size) != len(spec.size):
                raise ValueError(
                    f"the images of the column {name!r} have axes {column.spec.axes!r} and those that are made {spec.axes!r}; "
                    "a condition is brought to another size, and not to other axes."
                )
            if column.spec.kind == "categorical":
                raise ValueError(f"this network reads images of values, and those of the column {name!r} are of categories.")
        self.channels = sum(column.spec.channels + 1 for column in self.columns.values())

    def forward(self, given: Given, size: tuple[int, ...] | None = None) -> Tensor:
        """A condition of B rows -> (B, channels, *size) float32; size: that of the pictures, where it is not the usual one."""
        parts = []
        for name in self.columns:
            value = given.columns[name]
            there = self.columns[name].present(value)
            wide = there.view(-1, *[1] * (value.dim() - 1))
            value = resized(torch.where(wide, value, torch.zeros_like(value)).float(), size or self.size)
            parts += [value, wide.to(value.dtype).expand(-1, 1, *value.shape[2:])]
        return torch.cat(parts, 1)


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, C, *old) as (B, C, *size) by cubic convolution, antialiased, along each axis; as it is where the sizes agree."""
    for axis, new in enumerate(size, 2):
        if x.shape[axis] != new:
            weights = _weights(x.shape[axis], new, x.dtype, str(x.device))
            x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


@lru_cache(maxsize=16)
def _weights(old: int, new: int, dtype: torch.dtype, device: str) -> Tensor:
    return cubic_matrix(old, new, new / old).to(device, dtype)
