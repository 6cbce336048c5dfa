"""Random PyTorch networks: layers in any order, reused, tied, hooked, in place, on streams that others read.

    python -m tests.torch_random FIRST COUNT

folds COUNT networks from seed FIRST on, in float64, as modules and as exported programs, and prints what goes wrong.
"""

from __future__ import annotations

import copy
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnfold
from tests.torch_nets import alive, error, positive

Step = tuple[str, Any]


class RandomNet(nn.Module):
    """Runs a list of steps over a list of values; every step adds a value."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.channels = [4]
        self.sizes = [8]
        for _ in range(self.rng.randint(4, 14)):
            self._grow()
        self.last = nn.Conv2d(self.channels[-1], 3, self.rng.choice([1, 3]))
        self._tie()

    def _add(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _grow(self) -> None:
        last = len(self.channels) - 1
        i = last if self.rng.random() < 0.75 else self.rng.randrange(max(0, last - 3), last + 1)
        c, size = self.channels[i], self.sizes[i]
        kind = self.rng.choice(KINDS)
        made = getattr(self, f"_{kind}")(i, c, size)
        if made is not None:
            step, out, new = made
            self.steps.append(step)
            self.channels.append(out)
            self.sizes.append(new)

    def _conv(self, i: int, c: int, size: int) -> Any:
        out = self.rng.choice([c, c, 4, 6])
        groups = self.rng.choice([1, 1, 2]) if c % 2 == 0 and out % 2 == 0 else 1
        mode: Any = self.rng.choice(["zeros", "zeros", "reflect", "circular"])
        kernel = self.rng.choice([1, 3])
        pad = self.rng.choice([0, kernel // 2])
        bias = self.rng.random() < 0.5
        layer = nn.Conv2d(c, out, kernel, padding=pad, groups=groups, padding_mode=mode, bias=bias)
        new = size - (kernel - 1) + 2 * pad
        return (("layer", (self._add(layer), i)), out, new) if new > 2 else None

    def _again(self, i: int, c: int, size: int) -> Any:
        fitting = [k for k, m in enumerate(self.layers) if _fits(m, c)]
        if not fitting:
            return None
        k = self.rng.choice(fitting)
        layer: Any = self.layers[k]
        if isinstance(layer, nn.Conv2d):
            new = size - (layer.kernel_size[0] - 1) + 2 * int(layer.padding[0])
            return (("layer", (k, i)), layer.out_channels, new) if new > 2 else None
        return ("layer", (k, i)), c, size

    def _norm(self, i: int, c: int, size: int) -> Any:
        return ("layer", (self._add(nn.BatchNorm2d(c, affine=self.rng.random() < 0.9)), i)), c, size

    def _act(self, i: int, c: int, size: int) -> Any:
        inplace = self.rng.random() < 0.4
        layer = self.rng.choice(
            [nn.ReLU(inplace), nn.LeakyReLU(0.1, inplace), nn.ReLU6(inplace), nn.PReLU(c), nn.SiLU()]
        )
        return ("layer", (self._add(layer), i)), c, size

    def _code(self, i: int, c: int, size: int) -> Any:
        return ("code", (self.rng.randrange(len(CODE)), i)), c, size

    def _join(self, i: int, c: int, size: int) -> Any:
        same = [j for j in range(len(self.channels)) if j != i and (self.channels[j], self.sizes[j]) == (c, size)]
        if not same:
            return None
        kind = self.rng.choice(["add", "add", "iadd", "mul", "sub"])
        return (kind, (i, self.rng.choice(same))), c, size

    def _cat(self, i: int, c: int, size: int) -> Any:
        same = [j for j in range(len(self.channels)) if self.sizes[j] == size]
        j = self.rng.choice(same)
        return ("cat", (i, j)), c + self.channels[j], size

    def _pool(self, i: int, c: int, size: int) -> Any:
        return (("pool", (self.rng.randrange(2), i)), c, size // 2) if size >= 6 else None

    def _shuffle(self, i: int, c: int, size: int) -> Any:
        return (("shuffle", (2, i)), c, size) if c % 2 == 0 else None

    def _tie(self) -> None:
        convs = [m for m in self.layers if isinstance(m, nn.Conv2d)]
        if len(convs) > 1 and self.rng.random() < 0.2:
            a, b = self.rng.sample(convs, 2)
            if a.weight.shape == b.weight.shape:
                b.weight = a.weight
        if self.rng.random() < 0.2 and len(self.layers):
            self.rng.choice(list(self.layers)).register_forward_hook(lambda module, args, out: None)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for kind, what in self.steps:
            values.append(STEPS[kind](self, values, *what))
        return [self.last(values[-1]), torch.tanh(values[-2])] if len(values) % 2 else [self.last(values[-1])]


def _fits(layer: nn.Module, channels: int) -> bool:
    size = getattr(layer, "in_channels", getattr(layer, "num_features", None))
    return size == channels or isinstance(layer, nn.ReLU | nn.ReLU6)


KINDS = ["conv", "conv", "conv", "norm", "norm", "norm", "act", "act", "again", "code", "join", "join", "cat", "pool",
         "shuffle"]  # fmt: skip
CODE: list[Callable[[Tensor], Tensor]] = [
    F.relu, lambda t: F.relu_(t.clone()), torch.tanh, lambda t: t * 0.5, lambda t: t + 1, F.relu_, lambda t: -t,
    lambda t: t.mul_(2), lambda t: F.dropout(t, 0.5, False), lambda t: t.view(t.shape), F.hardtanh,
    lambda t: F.pad(t, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
]  # fmt: skip


def _shuffled(t: Tensor, groups: int) -> Tensor:
    n, c, h, w = t.shape
    return t.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def _iadd(net: RandomNet, values: list[Tensor], i: int, j: int) -> Tensor:
    y = values[i].clone() if i == 0 else values[i]
    y += values[j]
    return y


STEPS: dict[str, Any] = {
    "layer": lambda net, values, k, i: net.layers[k](values[i]),
    "code": lambda net, values, k, i: CODE[k](values[i].clone() if i == 0 else values[i]),
    "add": lambda net, values, i, j: values[i] + values[j],
    "sub": lambda net, values, i, j: values[i] - values[j],
    "mul": lambda net, values, i, j: values[i] * torch.sigmoid(values[j]),
    "iadd": _iadd,
    "cat": lambda net, values, i, j: torch.cat([values[i], values[j]], 1),
    "pool": lambda net, values, k, i: (F.max_pool2d, F.avg_pool2d)[k](values[i], 2),
    "shuffle": lambda net, values, groups, i: _shuffled(values[i], groups),
}


def check(seed: int) -> Counter[str]:
    """Fold one network in both ways; what became of its norms. AssertionError where something differs."""
    torch.manual_seed(seed)
    net = alive(RandomNet(seed), seed, zeros=seed % 2 == 0)
    net = (positive(net) if seed % 4 > 1 else net).double()
    x, other = torch.randn(2, 4, 8, 8).double(), 3 * torch.randn(3, 4, 8, 8).double() + 0.5
    leftovers = ("fast", "all", "none")[seed % 3]
    result = bnfold.fold(net, (x,), leftovers=leftovers)
    fates = Counter(bn.form or bn.verdict for bn in result.plan.batch_norms)
    blamed = [bn.name for bn in result.plan.batch_norms if bn.reason and bn.reason.code == "uncooperative-code"]
    assert not blamed, f"seed {seed}: the first fold did not pass ({result.plan.notes})"
    with torch.no_grad():
        for value in (x, other):
            expected = copy.deepcopy(net)(value.clone())
            if all(torch.isfinite(t).all() for t in expected):
                assert error(expected, result.model(value.clone())) < 1e-7, f"seed {seed}: the module differs"
        expected = copy.deepcopy(net)(x.clone())
        program = torch.export.export(net, (x.clone(),), strict=False)
        if error(expected, program.run_decompositions({}).module()(x.clone())) > 1e-7:
            return fates + Counter({"another function in torch.export": 1})
        found = bnfold.fold(program, leftovers=leftovers).model.module()(x.clone())
        assert error(expected, found) < 1e-7, f"seed {seed}: the program differs"
    return fates


def main(first: int, count: int) -> int:
    """Fold them all; how many went wrong."""
    warnings.simplefilter("ignore")
    total: Counter[str] = Counter()
    wrong = 0
    for seed in range(first, first + count):
        try:
            total += check(seed)
        except Exception as problem:
            wrong += 1
            where = traceback.extract_tb(problem.__traceback__)[-1]
            said = " ".join(str(problem).split())[:200]
            print(f"seed {seed}: {type(problem).__name__}: {said} ({where.name}:{where.lineno})", flush=True)
    print(f"{count} networks, {wrong} wrong, norms: {dict(total)}")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]))))
