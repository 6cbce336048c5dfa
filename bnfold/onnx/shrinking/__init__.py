"""Takes channels that carry nothing out of ONNX models: `shrink`."""

from .report import Group, Shrunk
from .shrink import shrink

__all__ = ["Group", "Shrunk", "shrink"]
