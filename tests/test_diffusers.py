"""Networks of diffusers brought in: the same answers, and refusals by name. (UNet2DModel is in test_ddpm.py.)"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import nonesuch as ns
from nonesuch.catalog import from_diffusers
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion.dit import DiT
from nonesuch.models.vae.autoencoder_kl import AutoencoderKL

WEIGHTS = "diffusion_pytorch_model.safetensors"


Pair = tuple[object, Path]  # their network, and the folder it was written to


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b).norm() / b.norm())


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=4, sample_size=16,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    folder = tmp_path_factory.mktemp("dit")
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2, norm_num_groups=8,
    ).eval()  # fmt: skip
    folder = tmp_path_factory.mktemp("autoencoder")
    theirs.save_pretrained(folder)
    return theirs, folder


@torch.no_grad()
def test_a_dit_says_the_same_noise(dit: Pair):
    theirs, folder = dit
    model = from_diffusers(folder)
    assert isinstance(model, DiT)
    x, k = Seeds.of(0, 4).normal("x", 4, 16, 16), torch.tensor([0, 10, 500, 999])
    given = model.schema.given(4, {"label": ["0", "3", "9", None]})
    wanted = theirs(x, timestep=k, class_labels=torch.tensor([0, 3, 9, 10])).sample[:, :4]  # type: ignore[operator]
    assert apart(model.noise_of(x, k + 1, given), wanted) < 1e-5
    model.compute_dtype = torch.bfloat16
    assert apart(model.noise_of(x, k + 1, given), wanted) < 1e-2


@torch.no_grad()
def test_an_autoencoder_encodes_and_decodes_the_same(autoencoder: Pair):
    theirs, folder = autoencoder
    model = from_diffusers(folder)
    assert isinstance(model, AutoencoderKL)
    x = Seeds.of(0, 4).uniform("x", 3, 32, 32) * 2 - 1
    posterior = theirs.encode(x).latent_dist  # type: ignore[attr-defined]
    decoded = theirs.decode(posterior.mean).sample  # type: ignore[attr-defined]
    z = posterior.mean * model.config.scaling
    mean, log_variance = model._posterior(x)
    assert apart(mean, z) < 1e-5
    assert apart(log_variance - 2 * torch.tensor(model.config.scaling).log(), posterior.logvar) < 1e-5
    assert apart(model.decode(z), decoded) < 1e-5
    model.compute_dtype = torch.bfloat16
    rough = theirs.bfloat16()  # type: ignore[attr-defined]  # of random weights, whose rounding in bf16 is over one per cent in either
    assert apart(model._posterior(x)[0], z) < 1e-2
    assert apart(model.decode(z), decoded) < 1.05 * apart(rough.decode(posterior.mean.bfloat16()).sample, decoded)


@torch.no_grad()
@pytest.mark.slow
def test_a_dit_of_the_published_size(tmp_path: Path):
    """DiT-XL/2 at 256 pixels: 675 M parameters, random."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32,
        num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(tmp_path)
    x, k, labels = Seeds.of(0, 2).normal("x", 4, 32, 32), torch.tensor([10, 900]), torch.tensor([3, 999])
    wanted = theirs(x, timestep=k, class_labels=labels).sample[:, :4]
    theirs = theirs.bfloat16()  # of random weights and 28 blocks, whose rounding in bf16 is about one per cent in either
    rough = theirs(x.bfloat16(), timestep=k, class_labels=labels).sample[:, :4]
    del theirs
    model = from_diffusers(tmp_path)
    given = model.schema.given(2, {"label": ["3", "999"]})
    assert apart(model.noise_of(x, k + 1, given), wanted) < 1e-5
    model.compute_dtype = torch.bfloat16
    assert apart(model.noise_of(x, k + 1, given), wanted) < max(1e-2, 1.05 * apart(rough, wanted))


@torch.no_grad()
@pytest.mark.slow
def test_an_autoencoder_of_the_published_size(tmp_path: Path):
    """That of Stable Diffusion: 84 M parameters, random."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=128, **kinds
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    model = from_diffusers(tmp_path)
    assert isinstance(model, AutoencoderKL)
    x = Seeds.of(0, 1).uniform("x", 3, 128, 128) * 2 - 1
    mean = theirs.encode(x).latent_dist.mean
    assert apart(model._posterior(x)[0], mean * model.config.scaling) < 1e-5
    assert apart(model.decode(mean * model.config.scaling), theirs.decode(mean).sample) < 1e-5


def changed(folder: Path, to: Path, **settings: object) -> Path:
    to.mkdir()
    about = json.loads((folder / "config.json").read_text()) | settings
    (to / "config.json").write_text(json.dumps(about))
    (to / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    return to


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention_bias": False}, "attention_bias"), ({"num_layers": 3}, "which the network of its config.json has not"),
        ({"num_layers": 5}, "lack"), ({"patch_size": 4}, "missing or differs"), ({"caption_channels": 7}, "caption_channels"),
        ({"out_channels": 7}, "out_channels"), ({"_class_name": "PixArtTransformer2DModel"}, "known are"),
    ],
)  # fmt: skip
def test_what_a_dit_is_not_is_refused_by_name(dit: Pair, settings: dict[str, object], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        from_diffusers(changed(dit[1], tmp_path / "changed", **settings))


def test_embeddings_that_differ_from_block_to_block_are_refused(dit: Pair, tmp_path: Path):
    folder = changed(dit[1], tmp_path / "changed")
    tensors = load_file(folder / WEIGHTS)
    tensors["transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match="differently"):
        from_diffusers(folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_quant_conv": False}, "use_quant_conv"), ({"block_out_channels": [32, 48, 64]}, "multiples"),
        ({"norm_type": 1}, "norm_type"), ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "AttnDown"),
    ],
)  # fmt: skip
def test_what_the_autoencoder_is_not_is_refused(autoencoder: Pair, settings: dict[str, object], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        from_diffusers(changed(autoencoder[1], tmp_path / "changed", **settings))


def test_of_a_pipeline_with_two_networks_one_has_to_be_named(dit: Pair, autoencoder: Pair, tmp_path: Path):
    changed(dit[1], tmp_path / "transformer")
    changed(autoencoder[1], tmp_path / "vae")
    with pytest.raises(ValueError, match="give the folder of one"):
        ns.from_diffusers(tmp_path)
    assert isinstance(ns.from_diffusers(tmp_path / "vae"), AutoencoderKL)
