"""Pictures and clips beyond the size that a model was trained at, made by driving diffusers' pipelines."""

from vidattn.pipelines.dual_path import dual_path_video
from vidattn.pipelines.image_from_video import image_from_video_model, transition_frames
from vidattn.pipelines.memory import MemoryEstimate, estimate_memory
from vidattn.pipelines.multi_shot import multi_shot_video
from vidattn.pipelines.stages import Stage
from vidattn.pipelines.upscale import Upscaled, upscale_generate
from vidattn.pipelines.vae import Seams, tiled_decode, tiled_encode

__all__ = [
    "MemoryEstimate",
    "Seams",
    "Stage",
    "Upscaled",
    "dual_path_video",
    "estimate_memory",
    "image_from_video_model",
    "multi_shot_video",
    "tiled_decode",
    "tiled_encode",
    "transition_frames",
    "upscale_generate",
]
