"""Linear layers of exported programs that become one; the algebra and the search are tested in `test_merging`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import bnfold
from bnfold.torch.trace.constants import op_name
from bnfold.torch.write.merging import merge
from tests.random_linear import RandomLinear
from tests.torch_linear import OfGraph

LAYERS = {"convolution", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "addmm"}


def norm(channels: int) -> nn.BatchNorm2d:
    """Statistics far from trivial: gammas of both signs, one of them 0."""
    made = nn.BatchNorm2d(channels)
    with torch.no_grad():
        made.weight.uniform_(0.5, 1.5).mul_(torch.tensor([1.0, -1.0] * channels)[:channels])
        made.weight[0] = 0
        made.bias.normal_()
        made.running_mean.normal_()  # type: ignore[union-attr]
        made.running_var.uniform_(0.3, 2.5)  # type: ignore[union-attr]
    return made


class Branches(nn.Module):
    """MobileOne's block: convolutions, a scale and a norm side by side."""

    def __init__(self, into: int, out: int, k: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False), norm(out))
            for size in (k, k, 1)
        )
        self.skip = norm(into) if into == out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = sum(conv(x) for conv in self.convs)
        return torch.relu(y + self.skip(x) if self.skip is not None else y)


def network() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 24), nn.Dropout(), nn.Linear(24, 3)]
    return nn.Sequential(Branches(3, 8, 3, 2), Branches(8, 8, 3, 1, 8), Branches(8, 12, 1), *head).eval().double()


def layers(program: ExportedProgram) -> Counter[str]:
    return Counter(op_name(n) for n in program.graph.nodes if n.op == "call_function" and op_name(n) in LAYERS)


def demand_equal(first: Any, second: Any, x: Tensor) -> None:
    with torch.no_grad():
        pairs = [(v,) if isinstance(v, Tensor) else v for v in (first(x), second(x))]
    for a, b in zip(*pairs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-11 * a.abs().max().clamp(min=1)


def test_a_training_form_becomes_its_deploy_form(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net, x = network(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    sizes: Any = ({0: Dim("n"), 2: Dim.AUTO, 3: Dim.AUTO},)
    folded = bnfold.fold(export(net, (x,), dynamic_shapes=sizes), verify=False, merge=False).model
    before = dict(folded.state_dict)
    found = merge(folded)
    assert layers(found.program) == {"convolution": 3, "linear": 1}
    assert [c.kind for c in found.candidates] == ["sum", "sum", "sum", "chain"]
    assert "0.convs.0.0" in found.candidates[0].nodes
    assert not any(op_name(n) in ("add", "mul") for n in found.program.graph.nodes if n.op == "call_function")
    assert dict(folded.state_dict) == before
    demand_equal(net, found.program.module(), x)
    torch.export.save(found.program, tmp_path / "merged.pt2")
    again = torch.export.load(tmp_path / "merged.pt2").module()
    demand_equal(net, again, torch.randn(5, 3, 20, 12, dtype=torch.float64))


def test_random_programs_stay_the_same_function() -> None:
    changed = 0
    for seed in range(6):
        drawn = RandomLinear(seed)
        net, x = OfGraph(drawn.model()).eval(), torch.from_numpy(drawn.feed())
        found = merge(export(net, (x,)))
        demand_equal(net, found.program.module(), x)
        changed += found.changed
    assert changed > 2


class Sides(nn.Module):
    """Two layers of one tensor, added."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x) + self.second(x))


@pytest.mark.filterwarnings("ignore:Using padding")
@pytest.mark.parametrize(
    ("code", "first", "second"),
    [
        ("merge-kinds", nn.ConvTranspose2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)),
        ("merge-stride", nn.Conv2d(4, 4, 3, 2, 5), nn.Conv2d(4, 4, 1)),
        ("merge-pooling", nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.Conv2d(4, 4, 1)),
        ("merge-unknown-padding", nn.Conv2d(4, 4, 2, padding="same"), nn.Conv2d(4, 4, 1)),
    ],
)
def test_what_cannot_be_merged_is_left_and_says_why(code: str, first: nn.Module, second: nn.Module) -> None:
    program = export(Sides(first, second).eval(), (torch.randn(1, 4, 8, 8),))
    found = merge(program)
    assert found.program is program
    assert [c.reason.code for c in found.candidates if c.reason] == [code]


def test_layers_that_are_to_be_left_alone_are() -> None:
    sides = Sides(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)).eval()
    program = export(sides, (torch.randn(1, 4, 8, 8),))
    assert merge(program).changed
    assert not merge(program, kept={"second"}).changed


def test_queries_keys_and_values_are_one_layer_where_that_is_wanted() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)
            return made

    torch.manual_seed(0)
    net, x = Attention().eval().double(), torch.randn(2, 5, 6, dtype=torch.float64)
    program = export(net, (x,))
    assert not merge(program).changed
    found = merge(program, siblings=True)
    assert layers(found.program)["linear"] == 1
    demand_equal(net, found.program.module(), x)


def test_weights_that_are_tied_stay_for_their_other_reader() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = torch.relu(self.a(x) + self.b(x)) + self.a(torch.sigmoid(x))
            return made

    torch.manual_seed(0)
    net, x = Tied().eval().double(), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    found = merge(export(net, (x,)))
    assert layers(found.program).total() == 2
    assert "a.weight" in found.program.state_dict
    assert "b.weight" not in found.program.state_dict
    demand_equal(net, found.program.module(), x)
