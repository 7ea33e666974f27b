"""A folder of any depth goes in, and what is sampled comes out in the same type, channels and range, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nonesuch import cli
from nonesuch.data import formats

KINDS = {  # name -> channels, dtype, suffix, lowest and highest value
    "16-bit grey PNG": (1, "uint16", ".png", 0, 65535),
    "16-bit colour PNG": (3, "uint16", ".png", 0, 65535),
    "16-bit colour TIFF": (3, "uint16", ".tif", 0, 65535),
    "float TIFF": (1, "float32", ".tif", -3.5, 1200.25),
    "5-channel TIFF": (5, "uint16", ".tif", 0, 4095),
    "RGBA PNG": (4, "uint8", ".png", 0, 255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_is_as_what_was_learned_from(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    channels, dtype, suffix, low, high = KINDS[kind]
    rng, folder = np.random.default_rng(0), tmp_path / "in"
    folder.mkdir()
    for i in range(24):
        values = np.linspace(low, high, channels * 64).reshape(channels, 8, 8)[:, :, :: 1 if i % 2 else -1]
        values = np.roll(values, rng.integers(8), 2).astype(dtype)
        data, _ = formats.encode(formats.Picture(values), suffix)
        (folder / f"{i}{suffix}").write_bytes(data)
        assert np.array_equal(formats.read(folder / f"{i}{suffix}").values, values)
    run, out = tmp_path / "run", tmp_path / "out"
    model = "diffusion" if dtype == "float32" else "vae"
    asked = ["fit", model, str(folder), "--preset", "tiny", "--budget", "512", "--out", str(run), "--json"]
    assert cli.main(asked) == 0
    assert json.loads(capsys.readouterr().out)["images"] >= 512
    assert cli.main(["sample", str(run), "-n", "4", "--out", str(out)]) == 0
    written = sorted(p for p in out.rglob("*") if p.is_file())
    assert len(written) == 4
    for path in written:
        found = formats.read(path).values
        assert path.suffix == (".tif" if channels == 5 or dtype == "float32" else ".png")
        assert found.shape == (channels, 8, 8)
        assert str(found.dtype) == dtype
        assert len(np.unique(found)) > 8  # not collapsed to 8 bits or to a constant
        assert low <= found.min() <= found.max() <= (65535 if dtype == "uint16" else high)
    if dtype == "uint16" and high > 4095:
        values = np.concatenate([formats.read(p).values.ravel() for p in written])
        assert (values % 257 != 0).mean() > 0.5  # more than 8 bits of depth
