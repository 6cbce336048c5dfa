"""Calls of torch modules: on copies, as they are and in float64, with arrays in and out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_unflatten

from ...errors import VerificationError
from ...torch.trace.capture import computed
from ...torch.trace.leaves import tensors_in
from ...torch.write.apply import write
from ..criteria.device import Device
from ..criteria.inputs import Array, Feed, InputSpec


class ModuleCall:
    """A module with the arguments that it is called with; their tensors are its inputs, by the names of parameters."""

    def __init__(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None,
        device: Device | None = None, program: ExportedProgram | None = None, single: bool = False,
    ) -> None:  # fmt: skip
        """`device`: run a copy there; where the module is, by default. `program`: what it is the module of. `single`:
        whether what it gives in float64 has the digits of float32 only (see `single`)."""
        if device is not None and device.name == "tensorrt":
            raise VerificationError("device tensorrt: torch modules do not run there; export them to ONNX first")
        if device is not None and device.name == "cuda" and not torch.cuda.is_available():
            raise VerificationError("device cuda: torch finds no card, or is built without CUDA")
        self.module, self.name, self.device = module, type(module).__name__, device
        self.program, self.single = program, single
        leaves, self.layout = tree_flatten((tuple(args), dict(kwargs or {})))
        paths = [path for path, _ in tree_flatten_with_path((tuple(args), dict(kwargs or {})))[0]]
        parameters = list(inspect.signature(module.forward).parameters)
        self.leaves = leaves
        self.names = [
            _name(path, parameters) if isinstance(leaf, torch.Tensor) else ""
            for path, leaf in zip(paths, leaves, strict=True)
        ]

    @property
    def label(self) -> str:
        """What runs it, and where."""
        place = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        where = self.device.label if self.device is not None else {"cpu": "CPU"}.get(place.type, place.type)
        return f"torch ({where})"

    def specs(self) -> list[InputSpec]:
        """Tensors as they were given; whole numbers no larger than those."""
        found = []
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if name:
                value = to_array(leaf)
                high = int(value.max(initial=0)) + 1 if value.dtype.kind in "iu" else 8
                found.append(InputSpec(name, value.dtype, tuple(value.shape), high))
        return found

    def given(self) -> Feed | None:
        """The tensors that it was given with."""
        return {name: to_array(leaf) for name, leaf in zip(self.names, self.leaves, strict=True) if name}


class ModuleRunner:
    """Runs a copy of a module, in float64 where that is wanted."""

    def __init__(self, subject: ModuleCall, wide: bool) -> None:
        self.subject, self.wide = subject, wide
        try:
            self.module = copy.deepcopy(subject.module, dict(computed(subject.module)))
        except Exception:  # a module that cannot be copied is run itself
            if wide:
                raise
            self.module = subject.module
        if subject.device is not None:
            self.module.to(subject.device.name)
        if wide:
            self.module.double()
        self.name = subject.label

    def run(self, feed: Feed) -> dict[str, Array]:
        """The tensors in what the module returns, in order, as output_0, output_1, ..."""
        with torch.no_grad(), _multiplying(self.subject.device), unchanged(self.module):
            args, kwargs = self._call(feed)
            with _Widening() if self.wide else nullcontext():  # type: ignore[no-untyped-call]
                found = [_real(tensor) for tensor in tensors_in(self.module(*args, **kwargs))]
            if self.subject.single and not self.wide:
                found = [tensor.float() if tensor.dtype is torch.float64 else tensor for tensor in found]
            tensors = [to_array(tensor).copy() for tensor in found]
        return {f"output_{i}": tensor for i, tensor in enumerate(tensors)}

    def recorded(self, feed: Feed, interpreter: type[torch.fx.Interpreter]) -> None:
        """Run the graph of an exported program, node by node."""
        assert isinstance(self.module, torch.fx.GraphModule)
        with torch.no_grad(), _multiplying(self.subject.device):
            args, kwargs = self._call(feed)
            interpreter(self.module).run(*args, *kwargs.values())

    def prepared(self, feed: Feed) -> Callable[[], object]:
        """A call that runs the module on inputs that already are where it is, for timing."""
        args, kwargs = self._call(feed)
        device = self.subject.device
        place = next((p.device.type for p in self.module.parameters()), "cpu")

        def call() -> None:
            with torch.inference_mode(), _multiplying(device):
                self.module(*args, **kwargs)
                if place == "cuda":
                    torch.cuda.synchronize()

        return call

    def _call(self, feed: Feed) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [
            self._tensor(feed[name], leaf) if name else leaf
            for name, leaf in zip(self.subject.names, self.subject.leaves, strict=True)
        ]
        args, kwargs = tree_unflatten(values, self.subject.layout)
        return tuple(args), dict(kwargs)

    def _tensor(self, value: Array, like: torch.Tensor) -> torch.Tensor:
        tensor = from_array(value).to(like.device if self.subject.device is None else self.subject.device.name)
        if tensor.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor.double() if self.wide and tensor.is_floating_point() else tensor


def single(module: nn.Module) -> bool:
    """Whether a module holds floating numbers of fewer digits than float64: its outputs have no more than those."""
    tensors = (*module.parameters(), *module.buffers())
    return any(tensor.is_floating_point() and tensor.dtype is not torch.float64 for tensor in tensors)


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Casts to shorter types are casts to float64: a module in float64 stays there, whatever its code asks for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and getattr(kwargs.get("dtype"), "is_floating_point", False):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Buffers that change inside the block, counters and running means, are put back."""
    holders = [inner._buffers for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule)]
    before = [dict(held) for held in holders]
    values = [(buffer, buffer.detach().clone()) for held in before for buffer in held.values() if buffer is not None]
    versions = {id(buffer): buffer._version for buffer, _ in values if buffer.layout is not torch.strided}
    try:
        yield
    finally:
        for held, names in zip(holders, before, strict=True):
            held.clear()
            held.update(names)
        for buffer, value in values:
            if id(buffer) not in versions:
                if not torch.equal(buffer, value):
                    write(buffer, value)
            elif buffer._version != versions[id(buffer)]:  # sparse ones cannot be compared
                buffer.copy_(value)


@contextmanager
def _multiplying(device: Device | None) -> Iterator[None]:
    """float32 products of CUDA with all bits, or with TF32 where that was asked for; nothing without CUDA."""
    if not torch.cuda.is_available():
        yield
        return
    switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = bool(device is not None and device.tf32)
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def _name(path: Sequence[Any], parameters: Sequence[str]) -> str:
    """`x`, `features[0]`, `mask`: the parameter, and where in it."""
    kind, place, *rest = path
    first = str(place.key) if kind.idx == 1 else _positional(place.idx, parameters)
    return first + "".join(f"[{getattr(step, 'key', getattr(step, 'idx', step))!r}]" for step in rest)


def _positional(i: int, parameters: Sequence[str]) -> str:
    return parameters[i] if i < len(parameters) and parameters[i] not in ("args", "values", "inputs") else f"input_{i}"


def _real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs along a last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor of any type as an array; bfloat16 as that of ml_dtypes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        array: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return array
    return np.asarray(tensor.numpy())


def from_array(array: Array) -> torch.Tensor:
    """The inverse of `to_array`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
