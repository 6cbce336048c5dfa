"""Where models run: the device that will serve them, and proof that they ran there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError, VerificationError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What onnxruntime calls each device."""
SHOWN = 3


@dataclass(frozen=True)
class Device:
    """`name`: "cpu", "cuda" or "tensorrt". `tf32`: let CUDA multiply float32 with 10 bits of mantissa, as some
    frameworks do unasked. `optimise`: let onnxruntime change the graph, as when serving.
    """

    name: str = "cpu"
    tf32: bool = False
    optimise: bool = False

    def __post_init__(self) -> None:
        if self.name not in PROVIDERS:
            raise UsageError(f"device {self.name!r}: one of {', '.join(PROVIDERS)} expected")

    @property
    def label(self) -> str:
        """For tables: the device, and what is set on it."""
        tf32 = "" if self.name == "cpu" else f", TF32 {'on' if self.tf32 else 'off'}"
        return f"{ {'cpu': 'CPU', 'cuda': 'CUDA', 'tensorrt': 'TensorRT'}[self.name] }{tf32}"

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """Execution providers for onnxruntime, the wanted one first."""
        cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
        cuda = (PROVIDERS["cuda"], {"use_tf32": str(int(self.tf32)), "cudnn_conv_algo_search": "HEURISTIC"})
        if self.name == "cpu":
            return [cpu]
        if self.name == "cuda":
            return [cuda, cpu]
        return [(PROVIDERS["tensorrt"], {"trt_fp16_enable": "0"}), cuda, cpu]


def require(device: Device, available: Iterable[str], loaded: Iterable[str] | None = None) -> None:
    """VerificationError unless onnxruntime has the provider of a device, and a session (`loaded`) really took it.

    onnxruntime itself goes on with the CPU when a provider cannot be loaded.
    """
    wanted = PROVIDERS[device.name]
    if wanted not in available:
        raise VerificationError(
            f"device {device.name}: this onnxruntime has no {wanted} (it has {', '.join(available)}); "
            "onnxruntime-gpu has it, where a card, its driver, CUDA and cuDNN are"
        )
    if loaded is not None and wanted not in loaded:
        raise VerificationError(
            f"device {device.name}: {wanted} could not be loaded, and the model would run on the CPU; a library of "
            "CUDA or cuDNN is missing or of another version (onnxruntime says which on stderr)"
        )


def placements(profile: Path) -> dict[str, str]:
    """Where each node with floating outputs ran, by `name (op)`, from a profile of onnxruntime.

    Nodes that compute sizes and indices belong on the CPU, and onnxruntime puts them there on purpose.
    """
    found = {}
    for event in json.loads(profile.read_text()):
        arguments = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in arguments and _floating(arguments):
            name = str(event["name"]).removesuffix("_kernel_time")
            found[f"{name} ({arguments.get('op_name', '?')})"] = str(arguments["provider"])
    return found


def _floating(arguments: Mapping[str, Any]) -> bool:
    shapes: Sequence[Mapping[str, Any]] = arguments.get("output_type_shape") or []
    return any("float" in kind or kind == "double" for entry in shapes for kind in entry)


def check_placement(device: Device, placed: Mapping[str, str]) -> None:
    """VerificationError where nodes ran on the CPU that the device should have run, or where nothing is known."""
    if device.name == "cpu":
        return
    elsewhere = [name for name, provider in placed.items() if provider == PROVIDERS["cpu"]]
    if not placed:
        raise VerificationError(f"device {device.name}: onnxruntime does not say where the nodes ran")
    if elsewhere:
        more = f" and {len(elsewhere) - SHOWN} more" if len(elsewhere) > SHOWN else ""
        raise VerificationError(
            f"device {device.name}: {len(elsewhere)} of {len(placed)} nodes ran on the CPU: "
            f"{', '.join(elsewhere[:SHOWN])}{more}"
        )
