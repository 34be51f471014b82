"""Tiled VAEs against whole ones."""

import pytest
import torch
from diffusers import AutoencoderKL

from tests.patches import tiny_pipelines as tiny
from tests.pipelines.conftest import options
from vidattn.pipelines import estimate_memory, tiled_decode, tiled_encode, upscale_generate
from vidattn.pipelines.memory import decode_bytes, read_memory


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    made = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    for module in made.modules():  # fresh norms have no bias, and hide mistakes with it
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.bias)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return made.double()


@pytest.mark.parametrize(("height", "width", "tile"), [(31, 43, 8), (9, 70, 16), (12, 12, 12)])
def test_decoding_in_tiles_is_exact(vae, height, width, tile):
    z = torch.randn(2, 4, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = vae.decode(z).sample
    made, seams = tiled_decode(vae, z, tile, overlap=4)
    # norms are applied in float32, as the model does in half precision
    assert (made - whole).abs().max() < 1e-5 * whole.abs().max()
    assert seams.exact
    assert seams.tiles == -(-height // tile) * -(-width // tile)


@pytest.mark.parametrize(("height", "width", "tile"), [(64, 136, 32), (100, 52, 48)])
def test_encoding_in_tiles_is_exact(vae, height, width, tile):
    x = (
        torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2
        - 1
    )
    with torch.no_grad():
        whole = vae.encode(x).latent_dist.parameters
    made, seams = tiled_encode(vae, x, tile, overlap=8)
    assert (made - whole).abs().max() < 1e-5 * whole.abs().max()
    assert seams.exact
    assert seams.tiles > 1


def test_norms_are_put_back(vae):
    z = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    broken = vae.decoder.conv_out.forward
    vae.decoder.conv_out.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tiled_decode(vae, z, 4, 1)
    del vae.decoder.conv_out.forward
    assert broken == vae.decoder.conv_out.forward
    assert not any("forward" in m.__dict__ for m in vae.modules())


def test_other_vaes_are_feathered_and_their_seams_measured(pipes):
    video = pipes("wan").vae
    z = torch.randn(1, 16, 2, 12, 20, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = video.decode(z).sample
    made, seams = tiled_decode(video, z, 8, 4)
    assert made.shape == whole.shape
    assert not seams.exact
    assert seams.tiles == 2 * 4
    assert 0 < seams.rms <= seams.largest
    # the blend is between the tiles: no further from the whole than tiles are from each other, by far
    assert (made - whole).square().mean().sqrt() < 2 * seams.rms
    one, alone = tiled_decode(video, z, 20, 4)
    assert alone.exact
    torch.testing.assert_close(one, whole)


def test_a_budget_makes_tiles_and_changes_nothing(pipes):
    pipe = pipes("flux")
    call = {"base": (64, 96), "size": (128, 192), **options("flux")}
    free = upscale_generate(pipe, tiny.PROMPT, **call)
    budget = decode_bytes(pipe.vae, 128 * 192) // 2
    assert estimate_memory(pipe, 128, 192).denoiser < budget  # it is the VAE that must save
    tight = upscale_generate(pipe, tiny.PROMPT, max_memory=budget, **call)
    assert [len(stage.seams) for stage in tight.stages] == [0, 2]  # encode and decode of the second stage
    assert all(seam.exact and seam.tiles > 1 for seam in tight.stages[1].seams)
    assert (tight.frames.int() - free.frames.int()).abs().max() <= 1
    assert "decode" not in pipe.vae.__dict__
    with pytest.raises(ValueError, match="too little for FluxPipeline"):
        upscale_generate(pipe, tiny.PROMPT, max_memory="1KiB", **call)


def test_estimates(pipes):
    pipe = pipes("flux")
    small, large = estimate_memory(pipe, 64, 64), estimate_memory(pipe, 128, 256, batch=2)
    counted = sum(
        p.numel() for m in pipe.components.values() if hasattr(m, "parameters") for p in m.parameters()
    )
    assert small.weights == large.weights >= 4 * counted
    assert (large.denoiser, large.vae) == (16 * small.denoiser, 16 * small.vae)
    assert "GiB" in str(small)


@pytest.mark.parametrize(("text", "value"), [("20GiB", 20 * 2**30), ("1.5 MB", 1_500_000), (4096, 4096)])
def test_amounts_of_memory(text, value):
    assert read_memory(text) == value


@pytest.mark.parametrize("text", ["lots", "20 apples", 0, -1, True])
def test_wrong_amounts_of_memory(text):
    with pytest.raises(ValueError, match="max_memory"):
        read_memory(text)
