"""Memory of a run: what it will need, what there is, and what it took at its highest."""

from __future__ import annotations

import threading
from typing import Any

import torch

GIB = 2**30
_FRAMES = 8  # that a VAE decodes at a time: Wan's 4; others tile
_SAMPLE = 0.02  # seconds between looks at the process's memory


def needed(pipe: Any, height: int, width: int, frames: int = 1) -> int:
    """About how many bytes a run takes beyond the weights: the larger of decoding and one forward.

    The VAE's last block holds about ten maps of its narrowest width at full size (measured on emoji-flux: 10
    at 512 px, 7 at 1024), of clips for a few frames at a time; a transformer's block holds about six vectors
    of its width per latent.
    """
    size = torch.finfo(_dtype(pipe)).bits // 8
    pixels = height * width * frames
    config = getattr(getattr(pipe, "vae", None), "config", {})
    widths = config.get("block_out_channels") or [config.get("base_dim", 64)]
    decoding = 10 * height * width * min(frames, _FRAMES) * min(widths) * size
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    inner = model.config if model is not None else {}
    heads, head = inner.get("num_attention_heads") or 16, inner.get("attention_head_dim") or 64
    heads, head = (max(x) if isinstance(x, (list, tuple)) else int(x) for x in (heads, head))
    latent = getattr(pipe, "vae_scale_factor", 8)
    tokens = pixels // max(1, int(latent)) ** 2
    return max(decoding, 6 * tokens * heads * head * size)


def available(device: torch.device) -> int:
    """Bytes that a run may take on the device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil  # a dependency of accelerate

    return int(psutil.virtual_memory().available)


def check(pipe: Any, height: int, width: int, frames: int = 1) -> None:
    """Refuse a size that would not fit.

    Raises:
        ValueError: it would not; says which size would.
    """
    need, have = needed(pipe, height, width, frames), available(torch.device(pipe.device))
    if need > have:
        share = (have / need) ** 0.5
        raise ValueError(
            f"{height}x{width} needs about {need / GIB:.1f} GiB of memory, and {have / GIB:.1f} GiB are free:"
            f" choose at most about {int(height * share)}x{int(width * share)}"
        )


def _dtype(pipe: Any) -> torch.dtype:
    dtype = getattr(pipe, "dtype", torch.float32)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


class Peak:
    """Highest memory during a ``with`` block, in bytes: of the device, or of this whole process on a CPU.

    Args:
        device: where the run is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._over = threading.Event()

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            return
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._over.wait(_SAMPLE):
                return
