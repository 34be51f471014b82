"""Local attention and a selective scan in four directions (SegMAN, Fu et al., arXiv 2412.11890)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import BatchNorm2d, Pointwise, depthwise
from vidattn.backbones.layers.rope import GridRotary
from vidattn.backbones.mixers.base import Mixer, dense_attention
from vidattn.backbones.mixers.neighborhood import NeighborhoodAttention

DIRECTIONS = 4


def scan(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t h_{t-1} + drive_t along the last axis, h_{-1} = 0.

    In ceil(log2 L) steps over the whole sequence, each of which doubles the reach of every position. Decays
    of at most 1 keep it stable: nothing is divided.
    """
    length, reach = drive.shape[-1], 1
    while reach < length:
        drive = drive + decay * F.pad(drive[..., :-reach], (reach, 0))
        # what has reached the beginning has nothing more to gather
        decay = decay * F.pad(decay[..., :-reach], (reach, 0))
        reach *= 2
    return drive


class SS2D(Mixer):
    """Selective scans along the rows, the columns, and both backwards; their sum (VMamba, arXiv 2401.10166).

    Per direction: [d, B, C] = x_proj u, D_t = softplus(W d + b), A = -exp(A_logs),
    h_t = exp(D_t A) h_{t-1} + D_t B_t u_t, y_t = C_t . h_t + Ds u_t. There is no gate.

    Args:
        dim: channels.
        state: numbers kept per channel.
        expansion: channels of the scan over ``dim``; linear layers lead there and back unless it is 1.

    Raises:
        ValueError: values out of range.
    """

    takes_prefix = False
    no_decay = ("A_logs", "Ds")

    def __init__(self, dim: int, *, state: int = 1, expansion: float = 1.0) -> None:
        super().__init__(dim, 1)
        inner, self.rank = int(dim * expansion), math.ceil(dim / 16)
        if state < 1 or inner < 1:
            raise ValueError(f"state={state}, expansion={expansion}: the state and all channels at least 1")
        self.state = state
        self.proj = nn.Linear(dim, inner) if expansion != 1 else None
        self.yproj = nn.Linear(inner, dim) if expansion != 1 else None
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS * (self.rank + 2 * state), inner, 1))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, state))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.reset_own()

    @torch.no_grad()
    def reset_own(self) -> None:
        """First values: steps spread evenly over the logarithms of 0.001 to 0.1."""
        bound = self.x_proj_weight.shape[1] ** -0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.dt_projs_weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
        step = torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))
        self.A_logs.copy_(torch.arange(1.0, self.state + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1.0)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """All directions at once, in float32 (float64 for float64)."""
        if x.ndim != 4:
            raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be 2")
        dtype = x.dtype
        if self.proj is not None:
            x = self.proj(x)
        x = x.to(torch.promote_types(dtype, torch.float32))
        rows, columns = x.permute(0, 3, 1, 2).flatten(2), x.permute(0, 3, 2, 1).flatten(2)
        u = torch.stack([rows, columns, rows.flip(-1), columns.flip(-1)], 1)
        y = self._scans(u)
        # the sequences that ran backwards are turned around, then columns are brought into the rows' order
        both = y[:, :2] + y[:, 2:].flip(-1)
        height, width = x.shape[1:3]
        out = both[:, 0].unflatten(-1, (height, width))
        out = out + both[:, 1].unflatten(-1, (width, height)).transpose(-1, -2)
        out = out.permute(0, 2, 3, 1).to(dtype)
        return out if self.yproj is None else self.yproj(out)

    def _scans(self, u: Tensor) -> Tensor:
        """(B, 4, C, L) to the same."""
        weights = [t.to(u.dtype) for t in (self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias)]
        made = torch.einsum("krc,bkcl->bkrl", weights[0][..., 0].unflatten(0, (DIRECTIONS, -1)), u)
        low, enter, leave = made.split([self.rank, self.state, self.state], 2)
        step = torch.einsum("kcr,bkrl->bkcl", weights[1], low) + weights[2][..., None]
        step = F.softplus(step)[:, :, :, None]
        rate = -self.A_logs.to(u.dtype).exp().unflatten(0, (DIRECTIONS, -1))[..., None]
        hidden = scan((step * rate).exp(), step * enter[:, :, None] * u[:, :, :, None])
        skip = self.Ds.to(u.dtype).unflatten(0, (DIRECTIONS, -1))[..., None] * u
        return (hidden * leave[:, :, None]).sum(3) + skip


class LASS(NeighborhoodAttention):
    """Neighborhood attention u, and out of it what is far: proj(far(u) + u + lepe(v)).

    Queries and keys are turned by rotary positions. far is a scan, LN(SS2D(silu(BN(dwconv3(u))))); with
    ``global_mode`` the map is instead proj(softmax(q k^T / sqrt(D)) u + lepe(v)) with the same queries and
    keys. Where windows do not fit, see :class:`NeighborhoodAttention`.

    With ``global_mode`` the authors also learn a bias for all pairs of tokens of one grid (their ``rpb.1``,
    ``global_bias`` here), and their code fails on others. Here it is resized, linearly along each axis, over
    the keys and then over the queries.

    Args:
        dim: channels.
        num_heads: heads; channels per head must be a multiple of 4.
        kernel_size: window per axis, odd.
        dilation: distance of neighbouring keys.
        rel_pos_bias: learn a bias per head and displacement; the authors' ``rpb.0`` is ``rpb`` here.
        global_mode: attention instead of the scan.
        global_grid: (height, width) whose pairs of tokens get a bias in ``global_mode``, or None.
        state: of the scan, see :class:`SS2D`.
        backend: as in ``vidattn.na2d``.

    Raises:
        ValueError: sizes out of range.
    """

    takes_prefix = False
    linear = Pointwise

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel_size: int = 7,
        dilation: int = 1,
        *,
        rel_pos_bias: bool = False,
        global_mode: bool = False,
        global_grid: tuple[int, int] | None = None,
        state: int = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__(dim, num_heads, kernel_size, dilation, rel_pos_bias=rel_pos_bias, backend=backend)
        self.global_mode, self.global_grid = global_mode, global_grid
        if global_grid is not None and not global_mode:
            raise ValueError(f"global_grid={global_grid}: needs global_mode=True")
        self.lepe = depthwise(dim, 5)
        if not global_mode:
            self.dwconv = nn.Sequential(depthwise(dim, 3), BatchNorm2d(dim))
            self.ssm = SS2D(dim, state=state)
            self.norm = nn.LayerNorm(dim, eps=1e-6)
        if global_grid is not None:
            tokens = global_grid[0] * global_grid[1]
            self.global_bias = nn.Parameter(torch.zeros(num_heads, tokens, tokens))
            self.no_decay = (*self.no_decay, "global_bias")

    def reset_own(self) -> None:
        """The biases stay zero at first."""

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        if x.ndim != 4:
            raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be 2")
        grid = x.shape[1:3]
        q, k, v = self.qkv(x).flatten(1, 2).chunk(3, -1)
        turn = GridRotary(grid, self.head_dim, x.device)
        scaled, turned = turn(self.heads(q)) * self.head_dim**-0.5, turn(self.heads(k))
        near = self.local(scaled, turned, self.heads(v), x)
        if self.global_mode:
            far = dense_attention(scaled, turned, near.flatten(1, 2), scale=1.0, bias=self._bias(x))
            out = far.flatten(-2).unflatten(1, grid)
        else:
            near = near.flatten(-2)
            out = self.norm(self.ssm(F.silu(self.dwconv(near)))) + near
        return self.proj(out + self.lepe(v.unflatten(1, grid)))

    def _bias(self, x: Tensor) -> Tensor | None:
        """The bias of all pairs of tokens on x's grid, (H, N, N), or None."""
        if self.global_grid is None:
            return None
        grid, wanted = self.global_grid, (x.shape[1], x.shape[2])
        bias: Tensor = self.global_bias
        if grid == wanted:
            return bias.to(x.dtype)
        for _ in range(2):
            image = bias.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, grid)
            # the second time over the queries
            bias = F.interpolate(image, wanted, mode="bilinear").flatten(-2).transpose(1, 2)
        return bias.to(x.dtype)
