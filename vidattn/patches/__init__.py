"""The hook into diffusers: ``patch``, ``unpatch``, ``patched``, ``report``, ``supported``.

``api`` checks the arguments and puts patches on models; ``families`` holds what differs between models;
``model_patch`` decides before each forward how every layer runs; ``routes`` is where the layers' attention
turns off to ``vidattn.attention``. diffusers is imported when the first model is patched.
"""

from vidattn.patches.api import Handle, patch, patched, unpatch
from vidattn.patches.reporting import Report, report
from vidattn.patches.targets import supported

__all__ = ["Handle", "Report", "patch", "patched", "report", "supported", "unpatch"]
