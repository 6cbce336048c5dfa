"""Every operator that the reader of PyTorch's graphs knows, against what torch computes for it.

A norm stands before or behind the operator. The gauges of its plan must carry across: where the folded model holds
`p*v + q`, the operator, with the numbers that the plan gives it, has to give `p_out * op(v) + q_out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import getitem
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

import bnfold
from bnfold.core.absorb import new_bias, scale_weight, tapped
from bnfold.core.gauge.planner import gauges, plan
from bnfold.core.graph import Affine, Graph, Linear, Op, Opaque
from bnfold.core.plan import Plan, Remove, Replace, Rescale
from bnfold.torch.read.aliases import _shares
from bnfold.torch.read.bindings import ActivationBinding, LinearBinding
from bnfold.torch.read.read import READERS, House, Source, read
from bnfold.torch.trace.capture import Capture
from bnfold.torch.trace.constants import ALIASES
from tests.torch_nets import alive, positive

aten = torch.ops.aten
RNG = torch.Generator().manual_seed(5)


@dataclass(frozen=True)
class T:
    """A tensor: the data `x`, more data, or with `fixed` a constant of the model."""

    shape: tuple[int, ...]
    fixed: bool = False
    kind: str = "normal"

    def made(self) -> torch.Tensor:
        """Some values."""
        value = torch.randn(self.shape, generator=RNG, dtype=torch.float64)
        if self.kind == "mask":
            return value > 0
        if self.kind in ("all", "no"):
            return torch.full(self.shape, self.kind == "all")
        if self.kind == "none":
            return torch.zeros(self.shape, dtype=torch.int64)
        if self.kind == "whole":
            return torch.arange(1, 1 + math.prod(self.shape)).reshape(self.shape)
        return value.abs() + 0.5 if self.kind == "positive" else value


X = T((2, 4, 6, 6))
"""The data on which the norm works, along axis 1."""


def D(*shape: int, kind: str = "more") -> T:
    """More data."""
    return T(shape, False, kind)


def C(*shape: int, kind: str = "normal") -> T:
    """A constant."""
    return T(shape, True, kind)


@dataclass(frozen=True)
class Case:
    """`target`: name.overload. `carries`: what of a norm before it goes: + a positive scale, - one of both signs,
    s a shift."""

    target: str
    args: tuple[Any, ...]
    carries: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    x: T = X

    def __str__(self) -> str:
        shown = ",".join(str(a) for a in self.args if not isinstance(a, T)) + ",".join(map(str, self.kwargs.items()))
        return f"{self.target}({shown})"

    @property
    def overload(self) -> Any:
        """What is called."""
        name, _, overload = self.target.partition(".")
        return getattr(getattr(aten, name), overload or "default")


def c(target: str, *args: Any, carries: str = "", x: T = X, **kwargs: Any) -> Case:
    return Case(target, args or (x,), carries, kwargs, x)


def _pools() -> list[Case]:
    made = []
    for n in (1, 2, 3):
        x = T((2, 4, *([5] * n)))
        flat = T((4, *([5] * n)))
        made += [
            c(f"avg_pool{n}d", x, [2] * n, carries="+-s", x=x),
            c(f"avg_pool{n}d", x, [3] * n, [2] * n, [1] * n, carries="+-", x=x),
            c(f"avg_pool{n}d", x, [3] * n, [2] * n, [1] * n, False, False, carries="+-s", x=x),
            c(f"avg_pool{n}d", x, [3] * n, [2] * n, [0] * n, True, carries="+-s", x=x),
            c(f"adaptive_avg_pool{n}d", x, [2] * n, carries="+-s", x=x),
            c(f"adaptive_max_pool{n}d", x, [2] * n, carries="+s", x=x),
            c(f"max_pool{n}d", x, [3] * n, [2] * n, [1] * n, [1] * n, True, carries="+s", x=x),
            c(f"max_pool{n}d_with_indices", x, [2] * n, carries="+s", x=x),
            c(f"avg_pool{n}d", flat, [2] * n, x=flat),  # without a batch, axis 1 is pooled
        ]  # fmt: skip
        if n > 1:
            made += [
                c(f"_adaptive_avg_pool{n}d", x, [2] * n, carries="+-s", x=x),
                c(f"avg_pool{n}d", x, [2] * n, [2] * n, [0] * n, False, True, 5, carries="+-", x=x),
            ]
        sizes = [7] * n
        kinds = {1: ("nearest1d", "linear1d"), 2: ("nearest2d", "bilinear2d", "bicubic2d"), 3: ("nearest3d",
                 "trilinear3d")}[n]  # fmt: skip
        for kind in kinds:
            align = () if "nearest" in kind else (True,)
            made += [c(f"upsample_{kind}", x, sizes, *align, carries="+-s", x=x)]
            if kind not in ("nearest2d", "bilinear2d"):
                align = () if "nearest" in kind else (False,)
                made += [c(f"upsample_{kind}.vec", x, None, *align, [1.7] * n, carries="+-s", x=x)]
        made += [c(f"_upsample_nearest_exact{n}d", x, sizes, carries="+-s", x=x)]
        made += [c(f"_upsample_nearest_exact{n}d.vec", x, None, [0.6] * n, carries="+-s", x=x)]
        made += [c(f"{kind}_pad{n}d", x, [1, 2] * n, carries="+-s", x=x) for kind in ("reflection", "replication")]
        for kind, op in (("conv", "oi"), ("conv_transpose", "io")):
            weight = C(6, 2, *([3] * n)) if op == "oi" else C(4, 3, *([3] * n))
            at = f"{kind}{n}d" + (".input" if op == "io" and n > 1 else "")
            rest: tuple[Any, ...] = ([2] * n, [1] * n, *([] if op == "oi" else [[1] * n]), 2 if op == "io" else [1] * n)
            made += [
                c(at, x, weight, C(6), *rest, *((2,) if op == "oi" else ()), carries="+-", x=x),
                c(at, x, C(*((6, 4) if op == "oi" else (4, 6)), *([1] * n)), carries="+-s", x=x),
                c(at, x, C(*((6, 4) if op == "oi" else (4, 6)), *([3] * n)), C(6), carries="+-s" if op == "oi" else
                  "+-", x=x),
            ]  # fmt: skip
            transposed = op == "io"
            made += [c("convolution", x, weight, C(6), [1] * n, [1] * n, [2] * n, transposed, [0] * n, 2,
                       carries="+-", x=x)]  # fmt: skip
        made += [
            c(f"conv{n}d.padding", x, C(6, 4, *([k] * n)), None, [1] * n, word, [2] * n, carries=carried, x=x)
            for word, k, carried in (("same", 3, "+-"), ("same", 2, "+-"), ("valid", 2, "+-s"), ("same", 1, "+-s"))
        ]
    return made


M = T((3, 4))
S3 = T((2, 5, 4))
V = T((7,))


def _arithmetic() -> list[Case]:
    per, across, full, one = C(4, 1, 1), C(1, 1, 6, 1), C(1, 4, 6, 1), C()
    made = []
    for name in ("add", "sub", "subtract"):
        made += [
            c(f"{name}.Tensor", X, per, carries="+-s", alpha=3),
            c(f"{name}.Tensor", per, X, carries="+-s"),
            c(f"{name}.Tensor", per, X, carries="", alpha=3),
            c(f"{name}.Tensor", X, C(1, 4, 1, 1), carries="+-s", alpha=-0.5),
            c(f"{name}.Tensor", X, across),
            c(f"{name}.Tensor", X, full, carries="s"),
            c(f"{name}.Tensor", X, one, carries="+-s", alpha=2),
            c(f"{name}.Tensor", one, X, carries="+-s"),
            c(f"{name}.Scalar", X, 3, 2, carries="+-s"),
            c(f"{name}.Scalar", X, -0.7, carries="+-s"),
            c(f"{name}.Tensor", X, D(2, 4, 6, 6), carries="s", alpha=3),
            c(f"{name}.Tensor", D(2, 4, 1, 1), X, carries="s", alpha=3),
            c(f"{name}.Tensor", D(2, 4, 1, 1), X, carries="s"),
            c(f"{name}.Tensor", X, X, carries="+-s", alpha=0.5),
            c(f"{name}.Tensor", X, C(3, 1, 4, 1, 1)),
        ]
    for name in ("mul", "multiply", "div", "divide", "true_divide"):
        quotient = name not in ("mul", "multiply")
        made += [
            c(f"{name}.Tensor", X, per, carries="+-s"),
            c(f"{name}.Tensor", per, X, carries="" if quotient else "+-s"),
            c(f"{name}.Tensor", X, across, carries="+-"),
            c(f"{name}.Tensor", X, full, carries="+-"),
            c(f"{name}.Tensor", X, one, carries="+-s"),
            c(f"{name}.Tensor", one, X, carries="" if quotient else "+-s"),
            c(f"{name}.Scalar", X, 3, carries="+-s"),
            c(f"{name}.Scalar", X, -0.7, carries="+-s"),
            c(f"{name}.Tensor", X, D(2, 4, 1, 1, kind="positive"), carries="+-"),
            c(f"{name}.Tensor", D(2, 4, 1, 1, kind="positive"), X, carries="" if quotient else "+-"),
        ]
        if quotient and name != "true_divide":
            made += [
                c(f"{name}.{kind}_mode", X, by, rounding_mode=mode, carries="" if mode else "+-s")
                for kind, by in (("Tensor", per), ("Scalar", 3))
                for mode in (None, "floor", "trunc")
            ]
    made += [
        c("rsub.Tensor", X, per, carries="+-s"),
        c("rsub.Tensor", X, per, alpha=3),
        c("rsub.Scalar", X, 2.5, carries="+-s"),
        c("rsub.Scalar", X, 2.5, 2),
        c("rsub.Tensor", X, D(2, 4, 6, 6), carries="s", alpha=3),
        c("rsub.Tensor", D(2, 4, 6, 6), X, carries="s", alpha=3),
        *(c(name, X, carries="+-s") for name in ("neg", "negative")),
    ]
    return made


def _pointwise() -> list[Case]:
    made = [
        c("relu", carries="+s"),
        c("relu6", carries="+s"),
        c("leaky_relu", carries="+"),
        c("leaky_relu", X, 0.3, carries="+"),
        c("leaky_relu", X, -1.5, carries="+"),
        c("abs", carries="+"),
        c("absolute", carries="+"),
        c("hardtanh", carries="+s"),
        c("hardtanh", X, 0, 6, carries="+s"),
        c("hardtanh", X, -0.5, 0.25, carries="+s"),
        c("hardtanh", X, 0.0, math.inf, carries="+s"),
        c("prelu", X, C(1), carries="+"),
        c("prelu", X, C(4), carries="+"),
        c("prelu", M, C(4), carries="+", x=M),
        c("_prelu_kernel", X, C(1, 4, 1, 1), carries="+"),
        c("clamp_min", X, 0, carries="+s"),
        c("clamp_min", X, -0.3, carries="+s"),
        c("clamp_max", X, 0.3, carries="+s"),
        c("clamp_max", X, 0, carries="+s"),
        c("clamp_min.Tensor", X, C(4, 1, 1)),
        c("clamp_max.Tensor", X, C(4, 1, 1)),
        *(c(f"{name}.Tensor", X, C(4, 1, 1), D(2, 4, 6, 6)) for name in ("clamp", "clip")),
        *(c(f"{name}.other", X, D(2, 4, 6, 6), carries="") for name in ("max", "min")),
        *(c(f"{name}.other", X, X, carries="+s") for name in ("max", "min")),
        *(c(name, X, D(2, 4, 6, 6), carries="") for name in ("maximum", "minimum")),
        *(c(name, X, X, carries="+s") for name in ("maximum", "minimum", "fmax", "fmin")),
        *(c(name, X, C(4, 1, 1)) for name in ("maximum", "minimum")),
        c("where.self", D(2, 1, 6, 6, kind="mask"), X, X, carries="+-s"),
        c("where.self", D(2, 1, 6, 6, kind="mask"), X, C(4, 1, 1)),
        c("where.self", D(3, 2, 4, 6, 6, kind="mask"), X, X),
        c("where.self", C(2, 1, 6, 6, kind="all"), X, D(4, 1, 1), carries="+-s"),
        c("where.self", C(1, kind="no"), D(2, 4, 6, 6), X, carries="+-s"),
        c("where.ScalarOther", C(6, kind="all"), X, 2.0, carries="+-s"),
        c("where.ScalarSelf", C(6, kind="no"), 2.0, X, carries="+-s"),
        c("where.ScalarOther", D(2, 1, 6, 6, kind="mask"), X, 0.0),
        c("where.ScalarSelf", D(2, 1, 6, 6, kind="mask"), 0.0, X),
        c("masked_fill.Scalar", X, D(2, 1, 6, 6, kind="mask"), 0, carries="+-"),
        c("masked_fill.Scalar", X, D(2, 1, 6, 6, kind="mask"), -2.0),
        c("masked_fill.Scalar", X, D(3, 2, 1, 6, 6, kind="mask"), 0.0, carries="+-"),
        c("masked_fill.Tensor", X, D(2, 1, 6, 6, kind="mask"), C()),
        *(c(name, X, carries="+-s") for name in ("clone", "contiguous", "detach", "alias", "lift_fresh_copy",
                                                 "detach_copy", "alias_copy")),
        *(c(name, X, 0.5, False, carries="+-s") for name in ("dropout", "feature_dropout", "alpha_dropout",
                                                             "feature_alpha_dropout", "native_dropout")),
        c("_to_copy", X, carries="+-s", dtype=torch.float64),
        c("_to_copy", X, dtype=torch.int64),
        c("_to_copy", X, dtype=torch.complex128),
        c("to.dtype", X, torch.float64, carries="+-s"),
        c("to.dtype", X, torch.int32),
        c("to.other", X, D(1), carries="+-s"),
        c("to.device", X, torch.device("cpu"), torch.float64, carries="+-s"),
        c("to.dtype_layout", X, dtype=torch.float64, carries="+-s"),
        c("type_as", X, D(2), carries="+-s"),
        c("type_as", X, D(2, kind="mask")),
        c("_upsample_bilinear2d_aa", X, [3, 4], False, carries="+-s"),
        c("_upsample_bicubic2d_aa", X, [9, 4], True, carries="+-s"),
        c("_upsample_bilinear2d_aa.vec", X, [3, 4], False, None, carries="+-s"),
        c("_upsample_bicubic2d_aa.vec", X, None, True, [0.6, 1.4], carries="+-s"),
        c("upsample_nearest2d.vec", X, None, [1.5, 0.5], carries="+-s"),
        c("upsample_bilinear2d.vec", X, None, False, [1.5, 0.5], carries="+-s"),
        c("constant_pad_nd", X, [1, 2, 0, 1], carries="+-"),
        c("constant_pad_nd", X, [1, 2, 0, 1], 1.5),
        c("constant_pad_nd", X, [1, 2, 0, 1], -math.inf, carries="+s"),
        c("constant_pad_nd", X, [-1, -1, 0, -2], 1.5, carries="+-s"),
        c("constant_pad_nd", X, [0, 0, 0, 0, 1, 2], carries="+-s"),
        c("constant_pad_nd", X, [0, 0, 0, 0, -1, 2], carries="+-s"),
        c("constant_pad_nd", X, [0, 0, 0, 0, 1, 2], 2.0),
        c("constant_pad_nd", X, [0, 1, 0, 0, 1, 2], carries="+-"),
        c("pad", X, [1, 2, 0, 1], carries="+-"),
        c("pad", X, [1, 2, 0, 1], "constant", 2.0),
        c("pad", X, [1, 2, 0, 1], "constant", 0.0, carries="+-"),
        *(c("pad", X, [1, 2, 0, 1], mode, carries="+-s") for mode in ("reflect", "replicate", "circular")),
    ]  # fmt: skip
    for name in ("clamp", "clip"):
        made += [
            c(name, X, 0.0, carries="+s"),
            c(name, X, 0, 6, carries="+s"),
            c(name, X, -1.0, 0.5, carries="+s"),
            c(name, X, None, 0.5, carries="+s"),
            c(name, X, carries="+s", max=1),
            c(name, X, 1.0, -1.0, carries="+s"),
        ]
    return made


def _reductions() -> list[Case]:
    made = [
        c("mean", carries=""), c("sum", carries=""), c("mean", V, x=V),
        *(c("mean.dim", X, dims, keep, carries="+-s") for dims in ([2, 3], [-1], [0, -2]) for keep in (False, True)),
        *(c("sum.dim_IntList", X, dims, keep, carries="+-") for dims in ([2, 3], [-1]) for keep in (False, True)),
        c("mean.dim", X, [1]), c("sum.dim_IntList", X, [1], True), c("sum.dim_IntList", X, None),
        c("mean.dim", X, []),
        *(c(name, X, dims, keep, carries="+s") for name in ("amax", "amin") for dims in ([2, 3], [-1])
          for keep in (False, True)),
        *(c(name, X, [1]) for name in ("amax", "amin")), *(c(name, X) for name in ("amax", "amin")),
        *(c(f"{name}.dim", X, -1, keep, carries="+s") for name in ("max", "min") for keep in (False, True)),
        *(c(name, X) for name in ("max", "min")),
        *(c(f"{name}.dim", X, 1) for name in ("max", "min")),
    ]  # fmt: skip
    return made


def _movement() -> list[Case]:
    wide = T((2, 4, 6))
    shuffled = T((2, 8, 6, 6))
    made = []
    for end in ("", "_copy"):
        made += [
            c(f"view{end}", X, [2, 4, 36], carries="+-s"),
            c(f"view{end}", X, [2, 2, 2, 6, 6], carries="+-s"),
            c(f"view{end}", X, [2, -1], carries="+-s"),
            c(f"view{end}", X, [2, 12, 12], carries="+-s"),
            c(f"view{end}", X, [2, 9, 16], carries="+-s"),
            c(f"view{end}.dtype", X, torch.int64),
            c(f"squeeze{end}", T((2, 4, 1, 1)), carries="+-s", x=T((2, 4, 1, 1))),
            c(f"squeeze{end}.dim", T((2, 4, 1, 6)), -2, carries="+-s", x=T((2, 4, 1, 6))),
            c(f"squeeze{end}.dims", T((1, 4, 1, 6)), [0, -2], carries="+-s", x=T((1, 4, 1, 6))),
            c(f"unsqueeze{end}", X, -3, carries="+-s"),
            c(f"permute{end}", X, [0, -2, 3, 1], carries="+-s"),
            c(f"transpose{end}.int", X, 1, -1, carries="+-s"),
            c(f"t{end}", M, carries="+-s", x=M),
            c(f"expand{end}", T((2, 4, 1, 6)), [3, 2, 4, 5, -1], carries="+-s", x=T((2, 4, 1, 6))),
            c(f"select{end}.int", X, -1, -2, carries="+-s"),
            c(f"select{end}.int", X, 1, -2, carries="+-s"),
            c(f"slice{end}.Tensor", X, 1, 1, 9, 2, carries="+-s"),
            c(f"slice{end}.Tensor", X, -1, -4, -1, carries="+-s"),
            c(f"slice{end}.Tensor", X, 1, None, None, carries="+-s"),
            c(f"split{end}.Tensor", X, 3, 1, carries="+-s"),
            c(f"split_with_sizes{end}", X, [1, 3], -3, carries="+-s"),
            c(f"unbind{end}.int", X, 1, carries="+-s"),
            c(f"unbind{end}.int", X, -1, carries="+-s"),
        ]
    made += [
        *(c(name, X, [2, 4, 36], carries="+-s") for name in ("reshape", "_unsafe_view", "_reshape_copy")),
        c("_reshape_alias", X, [2, 4, 36], [144, 36, 1], carries="+-s"),
        c("flatten.using_ints", X, 1, -1, carries="+-s"),
        c("flatten.using_ints", X, -2, -1, carries="+-s"),
        c("unflatten.int", X, 1, [2, -1], carries="+-s"),
        *(c(name, X, carries="+-s") for name in ("numpy_T", "numpy_T.a")),
        c("split.default", X, [1, 3], 1, carries="+-s"),
        c("narrow.Tensor", X, 1, C(kind="whole"), 2),
        *(c(name, [X, D(2, 3, 6, 6)], dim, carries="+-s") for name in ("cat", "concat", "concatenate")
          for dim in (1, -3)),
        *(c(name, [X, C(2, 4, 2, 6)], 2, carries="") for name in ("cat", "concat", "concatenate")),
        *(c(name, [X, X], -1, carries="+-s") for name in ("cat", "concat", "concatenate")),
        c("cat", [C(0), X], 1),
        c("stack", [X, X], -1, carries="+-s"),
        c("stack", [X, D(2, 4, 6, 6)], 1),
        c("stack", [X, D(2, 4, 6, 6)], -3),
        c("split.sizes", X, [1, 3], 1, carries="+-s"),
        c("unsafe_split.Tensor", X, 3, 1, carries="+-s"),
        c("unsafe_split_with_sizes", X, [1, 3], 1, carries="+-s"),
        *(c(name, X, 3, 1, carries="+-s") for name in ("chunk", "unsafe_chunk")),
        c("narrow", X, 1, -3, 2, carries="+-s"),
        c("narrow_copy", X, 1, 1, 2, carries="+-s"),
        c("narrow", X, 2, 1, 2, carries="+-s"),
        c("index_select", X, -3, C(3, kind="whole"), carries="+-s"),
        c("index_select", X, 1, D(2, kind="whole")),
        c("pixel_shuffle", X, 2),  # the four channels of a block become one
        c("pixel_shuffle", X, 1, carries="+-s"),
        c("pixel_shuffle", T((4, 4, 6)), 2, x=T((4, 4, 6))),
        c("pixel_unshuffle", X, 3, carries="+-s"),
        *(c(name, shuffled, 4, carries="+-s", x=shuffled) for name in ("channel_shuffle", "native_channel_shuffle")),
        c("channel_shuffle", T((2, 8, 6)), 2, carries="+-s", x=T((2, 8, 6))),
        c("flatten.using_ints", wide, 0, 1, carries="+-s", x=wide),
    ]  # fmt: skip
    return made


def _matrices() -> list[Case]:
    channels_last, square = T((2, 5, 5, 4)), T((2, 5, 4))
    return [
        c("linear", M, C(6, 4), C(6), carries="+-s", x=M),
        c("linear", M, C(6, 4), carries="+-s", x=M),
        c("linear", channels_last, C(6, 4), C(6), x=channels_last),
        c("linear", square, C(6, 4), x=square),
        c("mm", M, C(4, 6), carries="+-", x=M),
        c("matmul", M, C(4, 6), carries="+-", x=M),
        c("matmul", C(6, 3), M, x=M),
        c("matmul", M, D(4, 6), x=M),
        c("addmm", C(6), M, C(4, 6), carries="+-s", x=M),
        c("addmm", C(3, 6), M, C(4, 6), carries="+-", x=M),
        c("addmm", C(6), M, C(4, 6), beta=2, x=M),
        c("addmm", C(6), M, C(4, 6), alpha=2, x=M),
        c("addmm", D(6), M, C(4, 6), x=M),
    ]


def _rank_zero() -> list[Case]:
    x = T(())
    return [
        c("add.Scalar", x, 1, x=x), c("mul.Tensor", x, C(), x=x), c("mul.Tensor", x, D(4, 2), x=x),
        c("sub.Tensor", x, C(4, 1), x=x), c("mean.dim", x, [0], x=x), c("sum.dim_IntList", x, [-1], True, x=x),
        c("amax", x, x=x), c("max.dim", x, 0, x=x), c("transpose.int", x, 0, -1, x=x), c("permute", x, [], x=x),
        c("t", x, x=x), c("index_select", x, 0, C(1, kind="none"), x=x), c("flatten.using_ints", x, x=x),
        c("unsqueeze", x, 0, x=x), c("squeeze.dim", x, 0, x=x), c("expand", x, [3, 2], x=x), c("view", x, [1], x=x),
        c("stack", [x, x], x=x), c("relu", x, x=x), c("clamp", x, 0, 1, x=x), c("prelu", x, C(1), x=x),
        c("maximum", x, D(3), x=x), c("where.self", D(3, kind="mask"), x, x, x=x), c("neg", x, x=x),
        c("clone", x, x=x), c("masked_fill.Scalar", x, D(2, kind="mask"), 0, x=x),
    ]  # fmt: skip


def _named() -> list[Case]:
    """Arguments by name."""
    return [
        Case("sub.Tensor", (), "+-s", {"self": X, "other": C(4, 1, 1), "alpha": 2}),
        Case("mul.Tensor", (), "+-s", {"other": X, "self": C(4, 1, 1)}),
        Case("relu", (), "+s", {"self": X}),
        Case("view", (X,), "+-s", {"size": [2, 4, 36]}),
        Case("mean.dim", (X,), "+-s", {"dim": [2, 3], "keepdim": True}),
    ]


CASES = [*_rank_zero(), *_named(), *_arithmetic(), *_pointwise(), *_reductions(), *_movement(), *_matrices(), *_pools()]
ELSEWHERE = {"batch_norm", "lstm", "gru", "rnn_tanh", "rnn_relu", "native_batch_norm"}
"""Operators that other tests run as networks: norms, recurrent layers; and those that give no values."""
SIZES = {"sym_size", "sym_numel", "sym_stride", "size", "numel", "_assert_tensor_metadata"}


@dataclass
class Law:
    """An operator in a graph of its own, as it was read, and the tensors that it is given."""

    case: Case
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = fx.Graph()
        self.data: dict[T, fx.Node] = {}
        args, kwargs = (
            [self._node(v) for v in self.case.args],
            {k: self._node(v) for k, v in self.case.kwargs.items()},
        )
        self.node = self.graph.call_function(self.case.overload, tuple(args), kwargs)
        self.expected = self._run(self.values)
        self.node.meta["val"] = self.expected[0] if len(self.expected) == 1 and not self.listed else self.expected
        self.outputs = [self.node.name]
        if self.listed:
            self.expected = [value for value in self.expected if value.is_floating_point()]
            taken = [self.graph.call_function(getitem, (self.node, i)) for i in range(len(self.expected))]
            for node, value in zip(taken, self.expected, strict=True):
                node.meta["val"] = value
            self.outputs = [node.name for node in taken]

    def _node(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._node(v) for v in value]
        if not isinstance(value, T):
            return value
        if value in self.data:
            return self.data[value]
        node = self.graph.placeholder(f"c{len(self.weights)}" if value.fixed else f"d{len(self.values)}")
        node.meta["val"] = (self.weights if value.fixed else self.values).setdefault(node.name, value.made())
        if not value.fixed:
            self.data[value] = node
        return node

    @property
    def given(self) -> dict[str, torch.Tensor]:
        """Data and constants."""
        return {**self.weights, **self.values}

    @property
    def x(self) -> str:
        """The name of the data."""
        return self.data[self.case.x].name

    def _run(self, values: dict[str, torch.Tensor], other: dict[str, torch.Tensor] | None = None) -> Any:
        known = {**self.weights, **values, **(other or {})}
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), lambda n: known[n.name].clone())
        found = self.case.overload(*args, **kwargs)
        self.listed = isinstance(found, list | tuple)
        return list(found) if self.listed else [found]

    def read(self, program: bool) -> Source:
        """As it is read in a program, or in a module where it is a line of code."""
        specs = [InputSpec(InputKind.PARAMETER, TensorArgument(name), name) for name in self.weights]
        traced: Any = SimpleNamespace(
            graph=self.graph, graph_signature=SimpleNamespace(input_specs=specs, output_specs=[])
        )
        return read(Capture(traced, None, self.weights), "law", None if program else House())

    def around(self, source: Source, norm: Affine) -> Graph:
        """The operator with a norm before it, or behind its first output."""
        ops = source.graph.ops
        graph = replace(source.graph, ops=[*ops, norm], pinned={}, shapes=dict(source.graph.shapes))
        if norm.outputs[0] == self.x:
            graph.ops = [norm, *ops]
            graph.pinned = {norm.inputs[0]: "input"}
        else:
            graph.ops = [*([self._source()] if self.case.x.shape else []), *ops, norm]
            graph.pinned = {norm.outputs[0]: "output"}
        others = [node.name for node in self.data.values() if node.name != self.x]
        graph.pinned.update(dict.fromkeys(others, "input"))
        graph.shapes.update({"before": self.case.x.shape, "behind": tuple(self.expected[0].shape)})
        return graph

    def _source(self) -> Op:
        """A layer that gives the data, with any gauge along axis 1."""
        shape, axis = self.case.x.shape, min(1, len(self.case.x.shape) - 1)
        channels = shape[axis]
        return Linear("layer", ("before",), (self.x,), axis, axis, channels, channels, len(shape))

    def fault(self, source: Source, graph: Graph, made: Plan) -> str:
        """What is wrong with the gauges of a plan, "" where nothing is."""
        held = gauges(graph, leftovers="all")
        moved = {name: self._held(held, name, value) for name, value in self.values.items()}
        found = self._edited(source, graph, made, moved)
        for name, value, new in zip(self.outputs, self.expected, found, strict=False):
            if not value.is_floating_point():
                continue
            want = self._held(held, name, value)
            if not torch.allclose(new, want, rtol=1e-9, atol=1e-9, equal_nan=True):
                return f"{name} holds something else: {(new - want).abs().max().item():.2g} away"
        return ""

    def _held(self, held: Any, name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in held or not value.is_floating_point():
            return value
        p, q = (torch.from_numpy(np.array(v)) for v in held[name])
        return value * p + q

    def _edited(self, source: Source, graph: Graph, made: Plan, moved: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """What the operator gives with the plan's numbers."""
        first = graph.ops.index(source.graph.ops[0])
        edits = {edit.op - first: edit for edit in made.edits if 0 <= edit.op - first < len(source.graph.ops)}
        if not edits:
            return list(self._run(moved))
        (op, edit), *more = edits.items()
        assert not more
        binding, x = source.bindings[op], moved[self.x]
        if isinstance(edit, Rescale) and isinstance(binding, LinearBinding):
            return self._rescaled(edit, binding, moved)
        if isinstance(edit, Remove):
            return [x]
        assert isinstance(edit, Replace)
        scale, offset = (self._along(v, edit.axis, x.dim()) for v in (edit.scale, edit.offset))
        if isinstance(binding, ActivationBinding):
            low = offset if edit.form == "max" else scale * binding.low + offset
            high = None if edit.form == "max" else scale * binding.high + offset
            return [torch.clamp(x, low, high)]
        return [x * scale + (offset if edit.form != "mul" else 0)]

    def _rescaled(self, edit: Rescale, at: LinearBinding, moved: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        names = [name if name in self.weights else self._argument(name) for name in (at.weight, at.bias)]
        weight = tapped(self.weights[names[0]].numpy(), at.layout, edit)
        old = self.weights[names[1]].numpy() if names[1] else None
        new = {names[0]: torch.from_numpy(scale_weight(weight, at.layout, edit))}
        bias = torch.from_numpy(new_bias(old, weight, at.layout, edit, at.out_channels))
        if names[1]:
            return list(self._run(moved, {**new, names[1]: bias}))
        values = self._run(moved, new)
        axis = 1 if "conv" in at.node else values[0].dim() - 1
        return [values[0] + self._along(bias.numpy(), axis, values[0].dim())]

    def _argument(self, role: str) -> str:
        place = [argument.name for argument in self.case.overload._schema.arguments].index(role) if role else 99
        node = self.node.args[place] if place < len(self.node.args) else None
        return node.name if isinstance(node, fx.Node) else ""

    def _along(self, vector: Any, axis: int, rank: int) -> torch.Tensor:
        return torch.from_numpy(np.array(vector)).reshape(-1, *[1] * (rank - 1 - axis))


KINDS = {"+": (True, False), "-": (False, False), "s": (True, True)}
"""Of a norm: whether all factors are positive, and whether it has an offset."""


def _norm(kind: str, before: bool, law: Law) -> Affine | None:
    """A norm before the operator or behind it; None where there is no room for one."""
    shape = law.case.x.shape if before else tuple(law.expected[0].shape)
    if not shape or not law.expected[0].is_floating_point():
        return None
    rng, axis = np.random.default_rng(3), min(1, len(shape) - 1)
    scale = rng.uniform(0.3, 2.5, shape[axis])
    if kind == "-":
        scale *= np.where(np.arange(scale.size) % 2, -1, 1)
    shift = rng.normal(0, 1, scale.size) if kind == "s" else np.zeros(scale.size)
    if kind == "s":
        scale[:] = 1
    names = (("before",), (law.x,)) if before else ((law.outputs[0],), ("behind",))
    return Affine("norm", *names, axis=axis, scale=scale, offset=shift)


PLACES = [(True, True, "+"), (True, True, "-"), (True, True, "s"), (True, False, "s"), (False, True, "+"),
          (False, True, "s")]  # fmt: skip
"""In a program or in a module's code, a norm before the operator or behind it, and of which kind."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_read_is_what_torch_computes(case: Case) -> None:
    law = Law(case)
    sources = {program: law.read(program) for program in (True, False)}
    carried = ""
    for program, before, kind in PLACES:
        norm = _norm(kind, before, law)
        if norm is None:
            continue
        graph = law.around(sources[program], norm)
        made = plan(graph, leftovers="all")
        fault = law.fault(sources[program], graph, made)
        assert not fault, f"{'before' if before else 'behind'}, {kind}: {fault}"
        assert not graph.faults
        assert not sources[program].graph.faults
        entry = next(bn for bn in made.batch_norms if bn.name == "norm")
        gone = entry.verdict == "folded" or entry.form in ("max", "clip")
        carried += kind if program and before and gone else ""
    assert carried == case.carries


NO_DATA = {"_assert_tensor_metadata", "numel", "size", "sym_numel", "sym_size", "sym_stride"}
"""Operators that read no values."""
ELSEWHERE = {"batch_norm", "_batch_norm_no_update", "_batch_norm_with_update", "_batch_norm_with_update_functional",
             "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
             "_native_batch_norm_legit_no_training", "gru", "lstm", "rnn_relu", "rnn_tanh",
             "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d_with_indices",
             "adaptive_max_pool3d_with_indices"}  # fmt: skip
"""Norms and recurrent layers, which other tests run in networks."""


UNUSED = {"aten.mm.dtype", "aten.addmm.dtype", "aten.where.Scalar", "aten.where.default", "aten.to.prim_Device",
          "aten.to.prim_dtype", "aten.to.prim_other"}  # fmt: skip
"""Overloads that only a GPU has, that work on no data, or that only TorchScript knows."""


def _of_tensors(overload: Any) -> bool:
    """Whether an overload works on tensors, and gives new ones; torch gave up those with names of axes."""
    kinds = " ".join(str(argument.type) for argument in overload._schema.arguments)
    named = any(word in str(overload).lower() for word in ("names", "named", "dimname"))
    return "Tensor" in kinds and not overload._schema.is_mutable and not named


def test_every_overload_of_every_operator_that_is_read_is_in_the_table() -> None:
    tested = {str(case.overload) for case in CASES}
    missing = []
    for name in {*READERS, *ALIASES} - NO_DATA - ELSEWHERE:
        packet = getattr(aten, name)
        overloads = [getattr(packet, key) for key in packet.overloads()]
        missing += [str(o) for o in overloads if _of_tensors(o) and str(o) not in tested | UNUSED]
    assert not missing


def test_what_shares_memory_is_known_to() -> None:
    for law in map(Law, CASES):
        given = law.given
        args, kwargs = fx.map_arg((law.node.args, law.node.kwargs), lambda node: given[node.name])  # noqa: B023
        found = law.case.overload(*args, **kwargs)
        outputs = found if isinstance(found, list | tuple) else [found]
        memory = {value.untyped_storage().data_ptr() for value in outputs if value.numel()}
        shared = {node for node in law.node.all_input_nodes if given[node.name].untyped_storage().data_ptr() in memory}
        assert shared <= {node for node, _ in _shares(law.node)}, str(law.case)


RANDOM: dict[str, Callable[[], torch.Tensor]] = {
    "rand": lambda: torch.rand([8, 1, 1]),
    "exponential": lambda: torch.ones(8, 1, 1).exponential_(),
    "uniform": lambda: torch.ones(8, 1, 1).uniform_(0.5, 1),
    "poisson": lambda: torch.poisson(torch.full((8, 1, 1), 5.0)),
    "cauchy": lambda: torch.Tensor.cauchy_(torch.zeros(8, 1, 1)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_drawn_is_no_constant(name: str) -> None:
    module = alive(Named(lambda x: x + RANDOM[name]()))
    x = torch.randn(2, 3, 9, 9, generator=RNG)
    made = bnfold.fold(torch.export.export(module, (x,)), verify=False).model.module()
    found = []
    for model in (module, made):
        torch.manual_seed(3)
        found.append(model(x))
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_what_writes_into_its_arguments_is_not_read() -> None:
    case = Case("add.out", (X, 3.0), "")
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = X.made()
    node = graph.call_function(aten.relu.out, (x,), {"out": x})
    node.meta["val"] = x.meta["val"]
    traced: Any = SimpleNamespace(graph=graph, graph_signature=SimpleNamespace(input_specs=[], output_specs=[]))
    assert isinstance(read(Capture(traced, None, {}), str(case), None).graph.ops[0], Opaque)


class Named(nn.Module):
    """A layer, a function in code, a norm, a layer."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.run(self.norm(self.run(self.first(x) * 4))))  # type: ignore[no-any-return]


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu6": F.relu6,
    "subtract": lambda x: torch.subtract(x, 2.0, alpha=3),
    "multiply": lambda x: torch.multiply(x, torch.linspace(0.5, 2, 8, dtype=x.dtype).reshape(8, 1, 1)),
    "divide": lambda x: torch.divide(torch.true_divide(x, 3), 0.5),
    "floor": lambda x: torch.divide(x, 3, rounding_mode="floor"),
    "clip": lambda x: torch.clip(x, -0.5, 2),
    "concat": lambda x: torch.concat([x[:, 4:], torch.concatenate([x[:, :2], x[:, 2:4]], 1)], 1),
    "max": lambda x: torch.max(x, x.mul(0.5)),
    "absolute": lambda x: torch.negative(torch.absolute(x)),
    "bits": lambda x: (x.view(torch.int64) & ~1023).view(torch.float64),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_all_their_names(name: str) -> None:
    module = alive(Named(FUNCTIONS[name])).double()
    x = torch.randn(2, 3, 9, 9, generator=RNG, dtype=torch.float64)
    for model in (module, torch.export.export(module, (x,))):
        made = bnfold.fold(model, (x,), verify=False).model
        found = made(x) if isinstance(made, nn.Module) else made.module()(x)
        assert torch.allclose(found, module(x), rtol=1e-9, atol=1e-9)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x) * 2


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu6(x - 1.0)


class Bare(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x)


@pytest.mark.parametrize("kind", [Twice, Shifted, Bare])
def test_a_module_that_is_more_than_its_activation_keeps_the_rest(kind: Any) -> None:
    """A maximum may take the place of a module that is a Relu, and no more."""
    layers = nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.BatchNorm2d(4), kind(), nn.Conv2d(4, 4, 1)
    module = positive(alive(nn.Sequential(*layers))).double()
    x = torch.randn(2, 3, 9, 9, generator=RNG, dtype=torch.float64)
    result = bnfold.fold(module, (x,), verify=False)
    assert torch.allclose(result.model(x), module(x), rtol=1e-9, atol=1e-9)
    assert kind is not Bare or result.plan.batch_norms[0].form == "max"


@pytest.mark.parametrize("program", [True, False])
def test_a_fault_in_a_reader_costs_what_it_touches(program: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(node: Any) -> Any:
        raise KeyError("no such thing")

    monkeypatch.setitem(READERS, "tanh", broken)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
    module = alive(nn.Sequential(*layers))
    x = torch.randn(2, 3, 9, 9, generator=RNG)
    result = bnfold.fold(torch.export.export(module, (x,)) if program else module, (x,))
    assert [norm.verdict for norm in result.plan.batch_norms] == ["folded", "folded"]
    assert any("tanh" in note and "please report" in note for note in result.plan.notes)


def test_types_are_kept_where_an_operator_changes_them() -> None:
    """Whole numbers by a constant for each channel: without the division the layer would get whole numbers."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)
            self.deviation: torch.Tensor
            self.register_buffer("deviation", torch.tensor([50.0, 60.0, 70.0]).reshape(3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x / self.deviation)  # type: ignore[no-any-return]

    x = torch.randint(0, 255, (2, 3, 9, 9), dtype=torch.uint8)
    module = Images().eval()
    made = bnfold.fold(torch.export.export(module, (x,)), verify=False).model.module()
    assert torch.allclose(made(x), module(x), atol=1e-5)
