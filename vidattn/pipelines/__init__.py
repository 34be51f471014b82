"""Pictures and clips beyond the size that a model was trained at, made by driving diffusers' pipelines."""

from vidattn.pipelines.stages import Stage
from vidattn.pipelines.upscale import Upscaled, upscale_generate

__all__ = ["Stage", "Upscaled", "upscale_generate"]
