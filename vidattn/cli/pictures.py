"""What the command line saves: see ``vidattn.pipelines.files``, which writes it."""

from vidattn.pipelines.files import read_settings, save_clip, save_mp4, save_png

STILL = (".png",)
MOVING = (".gif", ".png", ".mp4")
"""A .png of several frames is an APNG."""

__all__ = ["MOVING", "STILL", "read_settings", "save_clip", "save_mp4", "save_png"]
