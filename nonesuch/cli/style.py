"""`nonesuch style`: one picture in the style of another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nonesuch.cli._words import (
    Json,
    Provenance,
    Seed,
    app,
    examples,
    print_json,
    require_place,
)

if TYPE_CHECKING:
    from torch import Tensor

Picture = Annotated[Path, typer.Argument(metavar="CONTENT", help="The picture whose things stay.")]
Reference = Annotated[Path, typer.Argument(metavar="REFERENCE", help="The picture whose colours and textures are taken.")]
Out = Annotated[Path, typer.Option(help="A .png; a sheet of all four pictures goes beside it, NAME-sheet.png.")]
Keep = Annotated[float, typer.Option(help="How much of the content's structure stays: 0.05 (loose) to 1 (close).")]
Side = Annotated[int, typer.Option(help="The longest side, in pixels, that larger pictures are brought to.")]
Vgg = Annotated[Path | None, typer.Option("--vgg", help="A safetensors file of a VGG network's weights; it is never fetched.")]


@app.command(epilog=examples("nonesuch style photo.jpg painting.png --out styled.png",
                              "nonesuch style photo.jpg painting.png --keep 0.5 --side 384"))  # fmt: skip
def style(
    content: Picture, reference: Reference, out: Out = Path("styled.png"), keep: Keep = 0.15, side: Side = 320,
    steps: Annotated[int, typer.Option(help="Steps at each of up to four sizes.")] = 120, vgg: Vgg = None, seed: Seed = 0,
    told: Provenance = True, as_json: Json = False,
) -> None:  # fmt: skip
    """Give one picture the colours and textures of another, without a trained network."""
    from nonesuch.applications import bar
    from nonesuch.applications.style import Options
    from nonesuch.applications.style import style as styled

    if out.suffix.lower() != ".png":
        raise ValueError(f"--out takes a .png, not {out}.")
    require_place(out)
    options = Options(keep=keep, steps=steps, features=vgg, seed=seed)
    mine, theirs = _together(_read(content, side), _read(reference, side))
    start = time.perf_counter()
    with bar("style") as draw:
        found = styled(mine, theirs, options, draw)
    seconds = time.perf_counter() - start
    sheet = out.with_name(f"{out.stem}-sheet.png")
    _save(found, mine, theirs, out, sheet, options, told)
    errors = {k.replace(" ", "_"): round(v, 4) for k, v in found.errors.items()}
    if as_json:
        return print_json({"out": str(out), "sheet": str(sheet), "seconds": round(seconds, 1), **errors, "vgg": found.features})
    print(f"{seconds:.0f} s: {out}; side by side: {sheet}")
    for name, of in (("content error", "content"), ("Gram error", "gram")):
        print(f"{name} {errors[of]:.3f}, of plain colour transfer {errors[f'colour_{of}']:.3f}")


def _read(path: Path, side: int) -> Tensor:
    """A picture (1, 1 or 3, H, W) on [-1, 1], alpha left out, no larger than `side`."""
    import numpy as np
    import torch

    from nonesuch.applications.style import SMALLEST_SIDE
    from nonesuch.data.formats import read

    if side < SMALLEST_SIDE:
        raise ValueError(f"--side must be at least {SMALLEST_SIDE}, not {side}.")
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    found = read(path)
    values = found.values
    if found.axes != "hw" or values.dtype.name not in ("uint8", "uint16"):
        raise ValueError(f"{path} is not a picture of 8 or 16 bits; style takes photos and paintings.")
    values = values[:1] if len(values) < 3 else values[:3]
    x = torch.from_numpy(values.astype(np.float32))[None] / float(np.iinfo(values.dtype).max) * 2 - 1
    scale = side / max(x.shape[2:])
    if scale < 1:
        size = [max(1, round(s * scale)) for s in x.shape[2:]]
        x = torch.nn.functional.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return x


def _together(content: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both of colour if one is."""
    channels = max(content.shape[1], reference.shape[1])
    return content.expand(-1, channels, -1, -1), reference.expand(-1, channels, -1, -1)


def _save(found: Any, content: Tensor, reference: Tensor, out: Path, sheet: Path, options: Any, told: bool) -> None:
    """The result, and the sheet: content, reference, plain colour transfer, result."""
    import torch

    from nonesuch.applications.provenance import SOURCES, Origin, stamping, utc_day
    from nonesuch.core.artifact import write_atomic
    from nonesuch.core.image import ImageSpec
    from nonesuch.data.formats import encode
    from nonesuch.data.pictures import save_sheet, stored

    spec = ImageSpec(content.shape[1], tuple(content.shape[2:]))
    said = {"keep": options.keep, "steps": options.steps, **({"vgg_sha256": found.features} if found.features else {})}
    origin = Origin("style", seed=options.seed, options=said, date=utc_day(), source=SOURCES[2])
    write = stamping([origin], spec) if told else None
    picture = stored(found.x[0], spec)
    write_atomic(out, encode(picture, ".png")[0] if write is None else write(picture, 0)[0])
    scale = min(a / b for a, b in zip(content.shape[2:], reference.shape[2:], strict=True))
    size = [max(1, int(s * scale)) for s in reference.shape[2:]]
    framed = torch.full_like(content, torch.nan)
    small = torch.nn.functional.interpolate(reference, size, mode="bicubic", antialias=True).clamp(-1, 1)
    framed[..., : size[0], : size[1]] = small
    save_sheet(torch.cat([content, framed, found.colour, found.x]), spec, sheet, write=write)
