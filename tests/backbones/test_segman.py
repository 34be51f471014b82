"""SegMAN: four selective scans, the mixer around them, and the models."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.checks import check_mixer, close, randomized
from tests.backbones.surface import check_surface
from tests.backbones.test_gated import rotation, turned
from vidattn.backbones import create_model
from vidattn.backbones.mixers import LASS, SS2D
from vidattn.backbones.mixers.lass import scan


def ss2d(p, x, state, at=""):
    """One token after the other, one direction after the other."""
    height, width, dim = x.shape[1:]
    p = {k.removeprefix(at): v for k, v in p.items() if k.startswith(at)}
    if "proj.weight" in p:
        x = x @ p["proj.weight"].T + p["proj.bias"]
    inner, rank = x.shape[-1], math.ceil(dim / 16)
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    out = dict.fromkeys(rows, 0)
    for k, order in enumerate((rows, columns, rows[::-1], columns[::-1])):
        own = slice(k * inner, (k + 1) * inner)
        project = p["x_proj_weight"].reshape(4, -1, inner)[k]
        hidden = x.new_zeros(x.shape[0], inner, state)
        for i, j in order:
            u = x[:, i, j]
            low, enter, leave = (u @ project.T).split([rank, state, state], -1)
            step = F.softplus(low @ p["dt_projs_weight"][k].T + p["dt_projs_bias"][k])[..., None]
            decay = (step * -p["A_logs"][own].exp()).exp()
            hidden = decay * hidden + step * enter[:, None] * u[..., None]
            out[i, j] = out[i, j] + (hidden * leave[:, None]).sum(-1) + p["Ds"][own] * u
    y = torch.stack([out[place] for place in rows], 1).unflatten(1, (height, width))
    return y @ p["yproj.weight"].T + p["yproj.bias"] if "yproj.weight" in p else y


@pytest.mark.parametrize(
    ("grid", "state", "expansion"), [((3, 5), 1, 1.0), ((4, 2), 3, 1.0), ((1, 6), 2, 1.5), ((2, 1), 1, 1.0)]
)
def test_the_scan_is_its_equations(grid, state, expansion):
    mixer = SS2D(18, state=state, expansion=expansion)
    check_mixer(mixer, lambda p, x: ss2d(p, x, state), grid)


def test_a_long_scan_neither_grows_nor_drifts():
    decay, drive = torch.rand(2, 3, 1000, dtype=torch.float64), torch.randn(2, 3, 1000, dtype=torch.float64)
    decay[:, 0] = 1
    decay[:, 1] = 0
    hidden, found = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(1000):
        hidden = decay[..., t] * hidden + drive[..., t]
        found.append(hidden)
    close(scan(decay, drive), torch.stack(found, -1), "scan")


def window(p, q, k, v, grid, size):
    """Neighborhood attention with a bias, as dense attention with a mask."""
    axes = []
    for extent in grid:
        w = min(size, extent)
        starts = [min(max(i - w // 2, 0), extent - w) for i in range(extent)]
        axes.append([set(range(s, s + w)) for s in starts])
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    seen = torch.tensor([[c in axes[0][a] and d in axes[1][b] for c, d in places] for a, b in places])
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    if "rpb" in p:
        apart = torch.tensor([[(c - a + size - 1, d - b + size - 1) for c, d in places] for a, b in places])
        apart = apart.clamp(0, 2 * size - 2)
        scores = scores + p["rpb"][:, apart[..., 0], apart[..., 1]]
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def lass(heads, size, state, far):
    def call(p, x):
        grid = x.shape[1:3]

        def conv(name, t, reach):
            kernel = p[f"{name}.weight"], p[f"{name}.bias"]
            return F.conv2d(t.movedim(-1, 1), *kernel, padding=reach, groups=x.shape[-1]).movedim(1, -1)

        def layer(name, t):
            return t @ p[f"{name}.weight"][:, :, 0, 0].T + p[f"{name}.bias"]

        q, k, v = layer("qkv", x).flatten(1, 2).chunk(3, -1)
        q, k, w = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        r = rotation(grid, 0, q.shape[-1])
        q, k = turned(r, q), turned(r, k)
        u = window(p, q, k, w, grid, size)
        if far:
            scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
            weights = (scores + p.get("global_bias", torch.zeros(()))).softmax(-1)
            out = torch.einsum("bhij,bjhd->bihd", weights, u).flatten(-2).unflatten(1, grid)
        else:
            u = u.flatten(-2).unflatten(1, grid)
            z = conv("dwconv.0", u, 1)
            z = (z - p["dwconv.1.running_mean"]) / (p["dwconv.1.running_var"] + 1e-5).sqrt()
            z = z * p["dwconv.1.weight"] + p["dwconv.1.bias"]
            z = ss2d(p, z * torch.sigmoid(z), state, "ssm.")
            z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            out = z * p["norm.weight"] + p["norm.bias"] + u
        local = conv("lepe", v.unflatten(1, grid), 2)
        return layer("proj", out + local)

    return call


@pytest.mark.parametrize(
    ("grid", "size", "state", "bias", "far"),
    [
        ((4, 6), 3, 1, False, False),
        ((5, 3), 3, 2, True, False),
        ((2, 5), 3, 1, False, False),
        ((5, 4), 3, 1, True, True),
        ((3, 3), 3, 1, False, True),
    ],
)
def test_the_mixer_is_its_equations(grid, size, state, bias, far):
    biased = grid if far and bias else None
    mixer = LASS(8, 2, size, rel_pos_bias=bias, global_mode=far, global_grid=biased, state=state)
    check_mixer(mixer, lass(2, size, state, far), grid, batch=1)


def test_the_bias_of_all_pairs_is_resized():
    mixer = randomized(LASS(8, 2, 3, global_mode=True, global_grid=(2, 3)))
    bias = mixer._bias(torch.zeros(1, 4, 6, 8, dtype=torch.float64)).detach()

    def weights(extent, wanted):
        """Rows of linear interpolation between centres."""
        rows = torch.zeros(wanted, extent, dtype=torch.float64)
        for i in range(wanted):
            at = min(max((i + 0.5) * extent / wanted - 0.5, 0), extent - 1)
            first = min(int(at), extent - 2)
            rows[i, first], rows[i, first + 1] = 1 - (at - first), at - first
        return rows

    both = torch.kron(weights(2, 4), weights(3, 6))
    close(bias, both @ mixer.global_bias.detach() @ both.T, "bias")


def test_bad_arguments():
    with pytest.raises(ValueError, match="state=0"):
        SS2D(8, state=0)
    for mixer in (SS2D(8), LASS(8, 2)):
        with pytest.raises(ValueError, match="grid of 1 axes"):
            mixer(torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="needs global_mode=True"):
        LASS(8, 2, global_grid=(2, 2))
    with pytest.raises(ValueError, match="kernel_size=4"):
        LASS(8, 2, 4)


TINY = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "windows": (3, 3, 3, 3)}


def test_the_authors_keys_load():
    """Stages and downsamplers are counted together; the angles are left out."""
    model = create_model("segman_b", projection=24, **TINY)
    state = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "stages":
            blocks = parts[2] == "blocks"
            parts = ["layers", str(2 * int(parts[1]) + (not blocks)), *parts[2 if blocks else 3 :]]
        theirs = ".".join(parts).replace(".rpb", ".rpb.0").replace(".global_bias", ".rpb.1")
        state[theirs] = value + 1 if value.is_floating_point() else value
    own = "layers.6.blocks.0.token_mixer"
    assert {f"{own}.qkv.weight", f"{own}.rpb.1", "layers.1.0.weight", "classifier.4.bias"} <= set(state)
    model.load_state_dict({**state, "layers.0.rope.angle": torch.zeros(4)}, strict=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["stages.2.blocks.0.cpe1.bias"], state["layers.4.blocks.0.cpe1.bias"])


def test_the_surface(tmp_path):
    check_surface("segman_l", tmp_path, size=(64, 96), projection=24, layer_scale=0.1, **TINY)
