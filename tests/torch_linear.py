"""The random graphs of linear layers as modules of PyTorch."""

from __future__ import annotations

from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

CONVS: Any = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
POOLS: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class OfGraph(nn.Module):
    """Runs the nodes of an ONNX graph of `RandomLinear`, whose constants are its parameters."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.nodes, self.outputs = list(model.graph.node), [value.name for value in model.graph.output]
        self.named = [t.name for t in model.graph.initializer]
        for tensor in model.graph.initializer:
            self.register_parameter(tensor.name, nn.Parameter(torch.from_numpy(numpy_helper.to_array(tensor).copy())))

    def forward(self, x: Tensor) -> list[Tensor]:
        """All outputs."""
        values = {"x": x, **{name: getattr(self, name) for name in self.named}}
        for node in self.nodes:
            attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = run(node.op_type, attrs, [values[name] for name in node.input])
        return [values[name] for name in self.outputs]


def run(op: str, attrs: dict[str, Any], inputs: list[Tensor]) -> Tensor:
    """One operator."""
    x = inputs[0]
    match op:
        case "Conv":
            return conv(attrs, *inputs)
        case "ConvTranspose":
            return transposed(attrs, *inputs)
        case "AveragePool":
            n = x.dim() - 2
            pads, counted = attrs["pads"][:n], bool(attrs["count_include_pad"])
            pooled: Tensor = POOLS[n - 1](x, attrs["kernel_shape"], attrs["strides"], pads, count_include_pad=counted)
            return pooled
        case "Gemm":
            weight = inputs[1].T if attrs["transB"] else inputs[1]
            y: Tensor = float(attrs["alpha"]) * (x @ weight)
            return y + float(attrs["beta"]) * inputs[2] if len(inputs) > 2 else y
        case "BatchNormalization":
            gamma, beta, mean, var = inputs[1:]
            return F.batch_norm(x, mean, var, gamma, beta, eps=attrs["epsilon"])
        case "Sum":
            return added(inputs)
        case "Concat":
            return torch.cat(inputs, attrs["axis"])
        case "Identity":
            return x.clone()
        case "Relu":
            return x.relu()
    calls: Any = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "MatMul": torch.matmul}
    made: Tensor = calls[op](*inputs)
    return made


def added(inputs: list[Tensor]) -> Tensor:
    """Their sum from left to right."""
    first, *rest = inputs
    for other in rest:
        first = first + other
    return first


def conv(attrs: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv, with an own op for paddings that differ."""
    n = weight.dim() - 2
    strides, steps = attrs["strides"], attrs["dilations"]
    pads = list(attrs.get("pads", [0] * 2 * n))
    auto = attrs.get("auto_pad", b"").decode()
    if auto.startswith("SAME"):
        whole = [
            max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            for size, s, d, k in zip(x.shape[2:], strides, steps, weight.shape[2:], strict=True)
        ]
        less, more = [w // 2 for w in whole], [w - w // 2 for w in whole]
        pads = less + more if auto == "SAME_UPPER" else more + less
    same = pads[:n] == pads[n:]
    if not same:
        x = F.pad(x, [p for axis in reversed(range(n)) for p in (pads[axis], pads[axis + n])])
    made: Tensor = CONVS[n - 1](x, weight, bias, strides, pads[:n] if same else 0, steps, attrs["group"])
    return made


def transposed(attrs: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ConvTranspose; what paddings cut off where they differ is cut off by itself."""
    n = weight.dim() - 2
    pads, more, groups = attrs["pads"], attrs["output_padding"], attrs["group"]
    if pads[:n] == pads[n:]:
        arguments = (x, weight, bias, attrs["strides"], pads[:n], more, groups, attrs["dilations"])
        made: Tensor = TRANSPOSED[n - 1](*arguments)
        return made
    made = TRANSPOSED[n - 1](x, weight, bias, attrs["strides"], 0, more, groups, attrs["dilations"])
    for axis in range(n):
        size = made.shape[2 + axis] - pads[axis] - pads[axis + n]
        made = made.narrow(2 + axis, pads[axis], size)
    return made
