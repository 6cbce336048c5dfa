"""PyTorch networks at which other folders give wrong results, each a test by name."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import bnfold
from bnfold import ModelError, UsageError
from tests.torch_nets import alive, codes, error, fates, folded, positive, tensors, widened

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def conv(inputs: int = 8, out: int = 8, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, kernel, **{"padding": kernel // 2, "bias": False, **more})


class Net(nn.Module):
    """Layers by name; `run` is its forward."""

    def __init__(self, run: Any, **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def net(run: Any, **layers: Any) -> Any:
    torch.manual_seed(0)
    return alive(Net(run, **layers))


# --- one layer, several calls


def test_a_conv_called_with_and_without_its_norm() -> None:
    m = net(lambda s, x: s.b(s.c(x)) + s.c(torch.sin(x)), c=conv(), b=nn.BatchNorm2d(8))
    result = folded(m, X)
    assert fates(result)["b"] != "folded"
    assert isinstance(result.model.b, nn.BatchNorm2d)


def test_a_conv_called_twice_with_two_different_norms() -> None:
    m = net(lambda s, x: s.b(s.c(x)) * 2 + s.d(s.c(torch.sin(x))), c=conv(), b=nn.BatchNorm2d(8), d=nn.BatchNorm2d(8))
    assert set(fates(folded(m, X)).values()) != {"folded"}


def test_a_block_called_twice_folds_as_a_whole() -> None:
    block = nn.Sequential(conv(), nn.BatchNorm2d(8))
    m = net(lambda s, x: s.last(torch.tanh(s.block(torch.tanh(s.block(x))))), block=block, last=conv())
    result = folded(alive(m, zeros=False), X)
    assert fates(result) == {"block.1": "folded"}
    assert isinstance(result.model.block[1], nn.Identity)


def test_a_norm_called_twice_behind_different_convs_stays_whole_or_goes_whole() -> None:
    m = net(lambda s, x: s.b(s.c(x)) + s.b(torch.relu(s.d(x))), c=conv(), d=conv(), b=nn.BatchNorm2d(8))
    result = folded(m, X)
    assert codes(result)["b"] == "shared"
    assert isinstance(result.model.b, nn.BatchNorm2d)


def test_one_submodule_under_two_names() -> None:
    shared = nn.Sequential(conv(), nn.BatchNorm2d(8))
    m = net(lambda s, x: torch.tanh(s.second(torch.tanh(s.first(x)))), first=shared, second=shared)
    result = folded(alive(m, zeros=False), X)
    assert set(fates(result).values()) == {"folded"}
    assert result.model.first is result.model.second


# --- other readers


def test_a_conv_output_with_a_second_reader() -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = s.c(x)
        return s.b(y) + torch.sigmoid(y)

    assert fates(folded(net(run, c=conv(), b=nn.BatchNorm2d(8)), X))["b"] != "folded"


def test_a_conv_output_that_is_returned() -> None:
    def run(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = s.c(x)
        return torch.tanh(s.b(y)), y

    assert codes(folded(net(run, c=conv(), b=nn.BatchNorm2d(8)), X)) == {"b": "scale-fixed"}


def test_a_forward_hook_sees_what_it_saw() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8))
    seen: list[Tensor] = []
    m.c.register_forward_hook(lambda module, args, out: seen.append(out))
    result = folded(m, X)
    assert codes(result) == {"b": "scale-fixed"}
    with torch.no_grad():
        seen.clear()
        m(X)
        copy.deepcopy(result.model).float()(X)
    assert error(seen[0], seen[1]) < 1e-6


def test_a_forward_hook_that_changes_the_output() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8))
    m.c.register_forward_hook(lambda module, args, out: out.abs())
    assert fates(folded(m, X))["b"] != "folded"


def test_a_forward_pre_hook_of_a_norm() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8))
    m.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    result = folded(m, X)
    assert codes(result) == {"b": "hook"}
    assert isinstance(result.model.b, nn.BatchNorm2d)


def test_a_hook_that_needs_nothing_can_be_ignored() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8))
    m.c.register_forward_hook(lambda module, args, out: None)
    assert fates(folded(m, X, ignore_hooks=True)) == {"b": "folded"}


def test_a_norm_whose_numbers_other_code_reads_stays() -> None:
    def run(s: Any, x: Tensor) -> Any:
        return torch.tanh(s.b(s.c(x))) * s.b.weight.sum()

    assert isinstance(folded(net(run, c=conv(), b=nn.BatchNorm2d(8)), X).model.b, nn.BatchNorm2d)


# --- tied and computed weights


def test_two_layers_share_one_weight_and_one_has_a_norm() -> None:
    m = net(lambda s, x: s.b(s.c(x)) + torch.tanh(s.d(x)), c=conv(), d=conv(), b=nn.BatchNorm2d(8))
    m.d.weight = m.c.weight
    result = folded(m, X)
    assert fates(result)["b"] != "folded"
    assert result.model.d.weight is result.model.c.weight


def test_a_weight_that_a_layer_outside_the_graph_owns_too() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), unused=conv(), b=nn.BatchNorm2d(8))
    m.unused.weight = m.c.weight
    assert "shares its weight" in str(folded(m, X).plan.batch_norms[0].reason)


def test_an_embedding_tied_to_the_last_layer() -> None:
    m = net(lambda s, i: torch.tanh(s.b(s.out(s.e(i).mean(1)))), e=nn.Embedding(12, 8), out=nn.Linear(8, 12),
            b=nn.BatchNorm1d(12))  # fmt: skip
    m.out.weight = m.e.weight
    result = bnfold.fold(m.double(), (torch.randint(0, 12, (3, 5)),))
    assert fates(result)["b"] != "folded"


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight is computed on every call."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


def test_a_conv_that_computes_its_weight() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=Standardised(8, 8, 3), b=nn.BatchNorm2d(8))
    result = folded(m, X)
    assert "computes its weight" in str(result.plan.batch_norms[0].reason)


@pytest.mark.parametrize("which", ["new", "old", "spectral", "pruned"])
def test_weight_norm_stays_or_is_baked(which: str) -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8))
    norms: dict[str, Any] = {"new": nn.utils.parametrizations.weight_norm, "old": nn.utils.weight_norm,
                             "spectral": nn.utils.spectral_norm,
                             "pruned": partial(prune.l1_unstructured, name="weight", amount=0.3)}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norms[which](m.c)
    m = m.double().eval()  # the old ones compute the weight anew on the next call only
    reference = m(X.double())
    kept = bnfold.fold(m, (X.double(),))
    assert kept.plan.notes == ()
    assert "c computes its weight from other values (bake=True" in str(kept.plan.batch_norms[0].reason)
    assert error(reference, kept.model(X.double())) < 1e-10
    baked = bnfold.fold(m, (X.double(),), bake=True)
    assert fates(baked) == {"b": "folded"}
    assert isinstance(baked.model.c.weight, nn.Parameter)
    assert error(reference, baked.model(X.double())) < 1e-10
    assert not isinstance(m.c.weight, nn.Parameter)


# --- axes


def test_linear_and_batch_norm_on_another_axis_of_equal_size() -> None:
    m = net(lambda s, x: s.b(s.c(x)), c=nn.Linear(8, 8), b=nn.BatchNorm1d(8))
    assert codes(folded(m, torch.randn(2, 8, 8))) == {"b": "channels-tied"}


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_grouped_transposed_convs(groups: int) -> None:
    m = net(lambda s, x: s.e(torch.relu(s.b(s.c(x)))), c=nn.ConvTranspose2d(8, 8, 3, 2, groups=groups, bias=False),
            b=nn.BatchNorm2d(8), e=conv())  # fmt: skip
    assert fates(folded(m, X)) == {"b": "folded"}


def test_norm_before_a_grouped_transposed_conv() -> None:
    m = net(lambda s, x: s.c(s.b(s.e(x))), e=conv(), b=nn.BatchNorm2d(8), c=nn.ConvTranspose2d(8, 16, 2, 2, groups=4))
    assert fates(folded(m, X)) == {"b": "folded"}


def test_norm_flatten_linear() -> None:
    m = net(lambda s, x: s.out(torch.flatten(s.b(torch.relu(s.c(x))), 1)), c=conv(), b=nn.BatchNorm2d(8),
            out=nn.Linear(8 * 36, 5))  # fmt: skip
    assert fates(folded(m, X)) == {"b": "folded"}


@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 1)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_padding_modes_and_strings(padding: Any, mode: str) -> None:
    m = net(lambda s, x: s.c(s.b(torch.relu(s.a(x)))), a=conv(), b=nn.BatchNorm2d(8),
            c=conv(padding=padding, padding_mode=mode))  # fmt: skip
    carries = mode != "zeros" or padding == "valid"
    assert (fates(folded(m, X))["b"] == "folded") == carries


def test_even_kernels_with_same_padding() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = net(lambda s, x: s.b(s.c(x) + s.d(x)), c=conv(kernel=4, padding="same"), d=nn.BatchNorm2d(8),
                b=nn.BatchNorm2d(8))  # fmt: skip
        folded(m, X)


def test_a_constant_along_the_width() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(6) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    m = net(lambda s, x: s.d(s.w(s.b(s.c(x)))), c=conv(), b=nn.BatchNorm2d(8), w=Wide(), d=conv())
    result = folded(m, X)
    assert "w" not in fates(result) or fates(result)["w"] != "folded"


# --- modes and statistics


def test_a_module_in_train_mode_is_refused() -> None:
    m = net(lambda s, x: s.b(s.c(x)), c=conv(), b=nn.BatchNorm2d(8)).train()
    with pytest.raises(UsageError, match="train mode"):
        bnfold.fold(m, (X,))
    result = bnfold.fold(m, (X,), eval=True)
    assert fates(result) == {"b": "folded"}
    assert m.training
    assert not result.model.training


def test_one_norm_in_train_mode_stays() -> None:
    m = net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=conv(), b=nn.BatchNorm2d(8), d=conv())
    m.b.train()
    result = bnfold.fold(m, (X,), verify=False)
    assert codes(result) == {"b": "training-mode"}


def test_a_norm_without_running_statistics_stays() -> None:
    m = net(lambda s, x: s.b(s.c(x)), c=conv(), b=nn.BatchNorm2d(8, track_running_stats=False))
    assert codes(folded(m, X)) == {"b": "training-mode"}


@pytest.mark.parametrize("form", ["affine=False", "only a scale", "only an offset"])
def test_norms_with_parts_absent(form: str) -> None:
    b: Any = nn.BatchNorm2d(8, affine=form != "affine=False")
    m = net(lambda s, x: s.d(s.b(torch.relu(s.c(x)))), c=conv(), b=b, d=conv(padding=0))
    if form == "only a scale":
        b.bias = None
    if form == "only an offset":
        b.weight = None
    assert fates(folded(m, X)) == {"b": "folded"}


def test_a_norm_that_stays_takes_other_numbers_without_affine() -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = s.b(s.first(x))
        return s.d(F.relu(y)) + s.e(torch.sigmoid(s.c(F.relu(y))))

    m = net(run, first=conv(), b=nn.BatchNorm2d(8), c=nn.BatchNorm2d(8, affine=False), d=conv(), e=conv())
    folded(m, X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_do_not_lose_eps(dtype: torch.dtype) -> None:
    m = net(lambda s, x: s.b(s.c(x)), c=conv(), b=nn.BatchNorm2d(8, eps=1e-6))
    with torch.no_grad():
        m.b.running_var.copy_(torch.linspace(1e-7, 1e-6, 8))
        m.b.weight.mul_(1e-3)
    short = copy.deepcopy(m).to(dtype)
    exact = copy.deepcopy(short).double()(X.to(dtype).double())
    result = bnfold.fold(short, (X.to(dtype),))
    assert fates(result) == {"b": "folded"}
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert error(exact, result.model(X.to(dtype))) < 30 * torch.finfo(dtype).eps


def test_channels_last_stays() -> None:
    m = net(lambda s, x: torch.relu(s.b(s.c(x))), c=conv(), b=nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    result = bnfold.fold(m, (x,))
    assert result.model.c.weight.is_contiguous(memory_format=torch.channels_last)
    assert error(m(x), result.model(x)) < 1e-5


# --- in-place


def test_an_in_place_activation_behind_a_removed_norm() -> None:
    def run(s: Any, x: Tensor) -> Any:
        stream = s.stem(x)
        return stream + s.c(s.act(s.b(stream)))

    m: Any = positive(net(run, stem=conv(), b=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True), c=conv()))
    m.stem.bias = nn.Parameter(torch.zeros(8))
    result = folded(net_with_second_stream(m), X)
    assert fates(result)["inner.b"] == "folded"
    assert result.model.inner.act.inplace is False


def net_with_second_stream(inner: Any) -> Any:
    """Behind it a conv, so that the stream may have another scale."""
    torch.manual_seed(1)
    return Net(lambda s, x: torch.tanh(s.last(s.inner(x))), inner=inner, last=conv()).eval()


def test_an_in_place_function_behind_a_removed_norm_gets_a_copy() -> None:
    def run(s: Any, x: Tensor) -> Any:
        stream = s.stem(x)
        return torch.tanh(s.last(stream + s.c(F.relu_(s.b(stream)))))

    m = positive(net(run, stem=conv(), b=nn.BatchNorm2d(8), c=conv(), last=conv()))
    result = folded(m, X)
    assert fates(result) == {"b": "copy"}
    assert codes(result) == {"b": "in-place"}


def test_an_in_place_sum_of_the_input_itself() -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = s.b(s.a(x))
        y += 1
        return s.c(y) + x

    m = net(run, a=nn.Identity(), b=nn.BatchNorm2d(8), c=conv(padding=0, kernel=1))
    x = X.clone()
    folded(m, x)
    assert torch.equal(x, X)


def test_an_in_place_activation_whose_result_is_dropped_stays_in_place() -> None:
    """The code reads what it overwrote by the name of its input: made to leave that alone, it would do nothing."""

    def run(s: Any, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = s.b(x)
        s.act(y)
        return x + s.c(y)  # type: ignore[no-any-return]

    m: Any = positive(net(run, stem=conv(), b=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True), c=conv()))
    result = folded(m, X)
    assert result.model.act.inplace is True
    assert codes(result) == {"b": "in-place"}


def test_an_in_place_activation_that_is_read_by_both_names_stays_in_place() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        x = s.stem(x)
        y = s.b(x)
        z = s.act(y)
        return x + s.c(z) + s.d(y)  # type: ignore[no-any-return]

    act = nn.LeakyReLU(0.1, inplace=True)
    m: Any = positive(net(run, stem=conv(), b=nn.BatchNorm2d(8), act=act, c=conv(), d=conv()))
    assert folded(m, X).model.act.inplace is True


def test_a_clamp_in_place_of_an_in_place_activation_writes_there_too(tmp_path: Any) -> None:
    """BN and ReLU become one Max; the code reads the ReLU's input afterwards, and means what was written there."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.b(torch.tanh(x))
        z = s.act(y)
        return s.c(z) + s.d(y)  # type: ignore[no-any-return]

    m: Any = positive(net(run, b=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True), c=conv(kernel=1), d=conv(kernel=1)))
    result = folded(m, X, leftovers="all")
    assert fates(result) == {"b": "max"}
    assert type(result.model.act).__name__ == "ChannelClampInPlace"
    assert pickle.loads(pickle.dumps(result.model.act)) is not None
    torch.jit.script(result.model.act)
    exported = bnfold.export(m, (X,), out=tmp_path / "net.onnx", leftovers="all")
    assert exported.check is not None
    assert exported.check.passed


def test_a_hook_on_an_in_place_activation_whose_result_is_dropped() -> None:
    """What stands for the hook in the trace must leave the value where the code reads it."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.stem(x)
        s.act(y)
        return s.c(s.b(y))  # type: ignore[no-any-return]

    m: Any = positive(net(run, stem=conv(), act=nn.ReLU6(inplace=True), b=nn.BatchNorm2d(8), c=conv()))
    m.act.register_forward_hook(lambda module, args, out: None)
    assert fates(folded(m, X))["b"] == "add"  # between fixed bounds and zero padding


def test_what_is_made_from_an_overwritten_value_is_meant_to_be() -> None:
    """The second norm reads the sum behind the write: taking it out leaves nothing in danger, and no copy is needed."""

    def run(s: Any, x: Tensor) -> Tensor:
        y = s.a(s.stem(x))
        y += torch.sin(x)
        return s.c(s.b(y))  # type: ignore[no-any-return]

    m: Any = net(run, stem=conv(), a=nn.BatchNorm2d(8), b=nn.BatchNorm2d(8), c=conv(kernel=1))
    assert fates(folded(m, X)) == {"a": "folded", "b": "folded"}


def test_norms_behind_a_copy_that_the_code_writes_into_go_without_a_copy_of_their_own() -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = s.b(s.c(x)).clone()
        y[:, 2:4] += 1
        return s.last(s.d(y))

    m = net(run, c=conv(), b=nn.BatchNorm2d(8), d=nn.BatchNorm2d(8), last=conv(kernel=1))
    assert fates(folded(m, X)) == {"b": "folded", "d": "folded"}


def test_an_in_place_activation_that_nobody_minds_stays_in_place() -> None:
    m = net(lambda s, x: s.d(s.act(s.b(s.c(x)))), c=conv(), b=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True), d=conv())
    assert folded(m, X).model.act.inplace is True


# --- the code decides, not the order of declaration


def test_pairs_by_data_flow_and_not_by_declaration() -> None:
    m = net(lambda s, x: s.b2(s.c1(torch.relu(s.b1(s.c2(x))))), c1=conv(), b1=nn.BatchNorm2d(8), c2=conv(),
            b2=nn.BatchNorm2d(8))  # fmt: skip
    result = folded(m, X)
    assert {bn.name: bn.into[0] for bn in result.plan.batch_norms} == {"b1": "c1", "b2": "c1"} or set(
        fates(result).values()
    ) == {"folded"}


def test_a_norm_that_is_not_called_is_not_folded() -> None:
    m = net(lambda s, x: s.c(x), c=conv(), b=nn.BatchNorm2d(8))
    result = folded(m, X)
    assert fates(result) == {"b": "kept"}
    assert codes(result) == {"b": "untraced"}
    assert isinstance(result.model.b, nn.BatchNorm2d)


# --- subclasses and code


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: buffers and arithmetic."""

    def __init__(self, n: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))  # type: ignore[operator]
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: an activation inside."""

    def __init__(self, n: int, inplace: bool = True) -> None:
        super().__init__(n)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))  # type: ignore[no-any-return]


class WithCode(nn.BatchNorm2d):
    """An activation in its own code."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


def test_a_frozen_batch_norm() -> None:
    m = net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=conv(), b=Frozen(8), d=conv())
    result = folded(m, X)
    assert fates(result) == {"b": "folded"}
    assert result.plan.batch_norms[0].op_type == "BatchNormalization"
    assert isinstance(result.model.b, nn.Identity)


def test_a_norm_with_an_activation_module_inside_keeps_it() -> None:
    m = net(lambda s, x: s.d(s.b(s.c(x))), c=conv(), b=WithActivation(8), d=conv())
    result = folded(m, X)
    assert fates(result) == {"b": "folded"}
    assert isinstance(result.model.b.act, nn.ReLU)


def test_a_norm_with_an_activation_in_its_code_stays() -> None:
    m = net(lambda s, x: s.d(s.b(s.c(x))), c=conv(), b=WithCode(8), d=conv())
    result = folded(m, X)
    assert codes(result) == {"b": "in-code"}


def test_a_functional_batch_norm_stays_in_a_module_and_goes_in_a_program() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.d = conv(), conv()
            self.inner = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            b = self.inner
            y = F.batch_norm(self.c(x), b.running_mean, b.running_var, b.weight, b.bias)
            return self.d(torch.relu(y))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    m = alive(Functional()).double()
    x = X.double()
    kept = bnfold.fold(m, (x,))
    assert list(codes(kept).values()) == ["in-code"]
    program = torch.export.export(m, (x,))
    gone = bnfold.fold(program)
    assert set(fates(gone).values()) == {"folded"}
    assert error(m(x), gone.model.module()(x)) < 1e-10


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, nn.LazyBatchNorm2d])
def test_other_classes_of_norms(kind: Any) -> None:
    torch.manual_seed(0)
    b = nn.SyncBatchNorm(8) if kind is nn.SyncBatchNorm else nn.LazyBatchNorm2d()
    m = Net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=conv(), b=b, d=conv()).eval()
    m(X)
    assert fates(folded(alive(m), X)) == {"b": "folded"}


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    kinds: dict[int, Any] = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}
    make, norm = kinds[dims]
    torch.manual_seed(0)
    m = Net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=make(4, 6, 3), b=norm(6), d=make(6, 5, 3)).eval()
    assert fates(folded(alive(m), torch.randn(2, 4, *[7] * dims))) == {"b": "folded"}


# --- what comes out


def test_the_state_dict_keeps_its_keys() -> None:
    m = net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=conv(), b=nn.BatchNorm2d(8), d=conv())
    result = folded(m, X)
    left = {k for k in m.state_dict() if not k.startswith("b.")}
    assert set(result.model.state_dict()) == left | {"c.bias"}


def test_the_folded_module_can_be_pickled_scripted_and_exported() -> None:
    torch.manual_seed(0)
    m = alive(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.BatchNorm2d(8), nn.ReLU()))
    made: nn.Module = bnfold.fold(m, (X,), leftovers="all").model
    expected = made(X)
    assert error(expected, pickle.loads(pickle.dumps(made))(X)) == 0
    assert error(expected, torch.jit.script(made)(X)) < 1e-6
    assert error(expected, torch.export.export(made, (X,)).module()(X)) < 1e-6
    assert error(expected.double(), made.double()(X.double())) < 1e-5


@pytest.mark.parametrize("leftovers", ["all", "fast", "none"])
def test_leftovers_in_a_module(leftovers: str) -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = s.stem(x)
        return torch.cat([s.c(s.act(s.b(y))), s.d(s.act2(s.e(y))), torch.tanh(y[:, :, 1:-1, 1:-1])], 1)

    m = positive(net(run, stem=conv(out=9), b=nn.BatchNorm2d(9), c=conv(9, padding=0), act=nn.ReLU(),
                     act2=nn.ReLU6(), e=nn.BatchNorm2d(9), d=conv(9, padding=0)))  # fmt: skip
    result = folded(m, torch.randn(2, 8, 16, 16), leftovers=leftovers)
    if leftovers == "none":
        assert set(fates(result).values()) <= {"kept", "folded"}
    pickle.loads(pickle.dumps(result.model.act))
    torch.jit.script(result.model.act)


def test_a_functional_relu_takes_the_next_form_in_a_module_and_the_best_in_a_program() -> None:
    def run(s: Any, x: Tensor) -> Any:
        y = torch.cat([s.a(x), s.e(x)], 1)
        return s.c(F.relu(s.b(y))) + s.d(F.relu(s.n(y))) + s.k(F.relu(y))

    m = positive(net(run, a=conv(8, 5), e=conv(8, 4), b=nn.BatchNorm2d(9), n=nn.BatchNorm2d(9), c=conv(9, padding=0),
                     d=conv(9, padding=0), k=conv(9, padding=0)))  # fmt: skip
    x = torch.randn(2, 8, 20, 20)
    assert fates(folded(m, x, leftovers="all")) == {"b": "add", "n": "add"}
    program = bnfold.fold(torch.export.export(m.double(), (x.double(),)), leftovers="all")
    assert fates(program) == {"b": "max", "n": "max"}
    assert error(m(x.double()), program.model.module()(x.double())) < 1e-10


class Code(nn.Module):
    """Convs and a linear layer that are function calls over parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 8, 3, 3)), nn.Parameter(torch.randn(5, 6))
        self.o = nn.Parameter(torch.randn(6))
        self.b, self.d = nn.BatchNorm2d(6), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(F.conv2d(x, self.w, self.o)))
        return self.d(F.linear(y.mean((2, 3)), self.v, torch.zeros(5, dtype=x.dtype)))  # type: ignore[no-any-return]


def test_functional_layers_over_parameters() -> None:
    torch.manual_seed(0)
    result = folded(alive(Code()), X)
    assert fates(result)["b"] == "folded"


def test_norms_in_float32_among_layers_in_bfloat16() -> None:
    m = net(lambda s, x: s.d(torch.relu(s.b(s.c(x)))), c=conv(), b=nn.BatchNorm2d(8), d=conv())
    m.c.to(torch.bfloat16)
    m.d.to(torch.bfloat16)
    x = X.to(torch.bfloat16)
    exact = copy.deepcopy(m).double()(x.double())
    result = bnfold.fold(m, (x,))
    assert fates(result) == {"b": "folded"}
    assert error(exact, result.model(x)) < 3 * max(error(exact, m(x)), torch.finfo(torch.bfloat16).eps)


def test_an_identity_branch_goes_into_the_conv_beside_it() -> None:
    torch.manual_seed(0)
    m = Net(lambda s, x: torch.relu(s.c(x) + s.b(x)), c=conv(), b=nn.BatchNorm2d(8)).eval()
    outer = alive(Net(lambda s, x: s.two(s.one(s.stem(x))), stem=nn.Sequential(conv(), nn.ReLU()), one=m,
                      two=copy.deepcopy(m)))  # fmt: skip
    result = folded(outer, X)
    assert set(fates(result).values()) == {"folded"}


def test_a_plain_sum_of_input_and_conv_under_a_norm_is_right() -> None:
    m = net(lambda s, x: torch.tanh(s.b(s.c(torch.relu(x)) + torch.relu(x))), c=conv(), b=nn.BatchNorm2d(8))
    folded(m, X)


def test_in_place_changes_the_module_itself() -> None:
    m = net(lambda s, x: s.b(s.c(x)), c=conv(), b=nn.BatchNorm2d(8))
    expected = m(X)
    result = bnfold.fold(m, (X,), inplace=True)
    assert result.model is m
    assert isinstance(m.b, nn.Identity)
    assert error(expected, m(X)) < 1e-5


def test_several_inputs_outputs_and_keywords() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.d = conv(), nn.BatchNorm2d(8), conv()

        def forward(self, x: Tensor, parts: dict[str, Tensor], flag: bool = False) -> dict[str, Any]:
            y = self.b(self.c(x)) * parts["gate"]
            return {"y": self.d(y) if flag else y, "rest": [y.mean(), x.sum()]}

    torch.manual_seed(0)
    m = alive(Many()).double()
    gate = torch.rand(2, 8, 1, 1).double()
    result = bnfold.fold(m, (X.double(),), kwargs={"parts": {"gate": gate}, "flag": True})
    found, expected = (f(X.double(), parts={"gate": gate}, flag=True) for f in (result.model, m))
    assert error(expected, found) < 1e-10
    assert len(tensors(found)) == 3


# --- what torch.export cannot see


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.BatchNorm2d(8))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.body(x))
        return y if y.sum() > 0 else -y


def test_parts_are_folded_where_the_whole_cannot_be_traced() -> None:
    torch.manual_seed(0)
    result = folded(alive(Branching()), X)
    assert fates(result) == {"body.1": "folded", "body.4": "folded", "norm": "kept"}
    assert codes(result) == {"norm": "untraced"}
    (note,) = result.plan.notes
    assert "torch.export cannot trace Branching" in note
    assert "body" in note


def test_parts_leave_what_is_used_outside_them() -> None:
    class Outside(Branching):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y + self.body[0](torch.sin(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    folded(alive(Outside()), X)


def test_a_module_that_does_not_run_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="does not run on the inputs given"):
        bnfold.fold(alive(Branching()), (torch.randn(2, 5, 6, 6),))


def test_inputs_are_needed() -> None:
    with pytest.raises(UsageError, match="example inputs"):
        bnfold.fold(alive(Branching()))


def test_a_wrong_fold_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.torch.write import apply as applying

    real: Any = vars(applying)["scale_weight"]
    monkeypatch.setattr(applying, "scale_weight", lambda *a: real(*a) * 1.01)
    m = net(lambda s, x: s.b(s.c(x)), c=conv(), b=nn.BatchNorm2d(8))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    with pytest.raises(bnfold.VerificationError, match="did not pass"):
        bnfold.fold(m, (X,), inplace=True)
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in before.items())


def test_widened_leaves_integers() -> None:
    assert widened((torch.arange(3), X))[0].dtype == torch.int64


# --- memory that weights share, when the module itself is edited


def _flat_pair(gap: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Two weights in one flat tensor, so many numbers apart."""
    flat = torch.randn(576 + gap) * 0.1
    return nn.Parameter(flat[:576].view(8, 8, 3, 3)), nn.Parameter(flat[gap:].view(8, 8, 3, 3))


def _two(run: Any = lambda s, x: s.b(s.c(x)) + s.d(x)) -> Any:
    return net(run, c=conv(), d=conv(), b=nn.BatchNorm2d(8))


def _tied(how: str) -> Any:
    """A network in which the weight of `c`, in front of a norm, is read by other code too."""
    m = _two()
    if how == "parameter":
        m.d.weight = nn.Parameter(m.c.weight.detach())
    elif how == "data":
        m.d.weight.data = m.c.weight.data
    elif how == "overlapping":
        m.c.weight, m.d.weight = _flat_pair(100)
    else:
        m.run = lambda s, x: s.b(s.c(x)) + F.conv2d(x, s.w[0] if how == "list" else s.w, padding=1)
        if how == "buffer":
            m.register_buffer("w", m.c.weight.data)
        else:
            m.w = [m.c.weight.data] if how == "list" else m.c.weight.data
    return m


@pytest.mark.parametrize("how", ["parameter", "data", "overlapping", "buffer", "attribute", "list"])
def test_weights_that_share_memory_are_tied_in_place(how: str) -> None:
    m = _tied(how)
    expected = m(X)
    result = bnfold.fold(m, (X,), inplace=True)
    assert "c shares its weight c.weight with other code" in str(result.plan.batch_norms[0].reason)
    assert error(expected, m(X)) < 1e-5
    copied = bnfold.fold(m, (X,))  # a copy parts them
    assert fates(copied) == {"b": "folded"}
    assert error(expected, copied.model(X)) < 1e-5


def test_a_transposed_weight_is_tied_in_place() -> None:
    m = net(lambda s, x: s.b(s.c(x)) + torch.tanh(s.d(x)), c=nn.Linear(8, 8), d=nn.Linear(8, 8), b=nn.BatchNorm1d(8))
    m.d.weight = nn.Parameter(m.c.weight.data.t())
    x = torch.randn(5, 8)
    expected = m(x)
    result = bnfold.fold(m, (x,), inplace=True)
    assert fates(result) == {"b": "kept"}
    assert error(expected, m(x)) < 1e-5


@pytest.mark.parametrize("columns", [False, True])
def test_views_of_one_tensor_that_do_not_meet_are_not_tied(columns: bool) -> None:
    m = _two()
    m.c.weight, m.d.weight = _flat_pair(576)
    if columns:
        both = torch.randn(8, 16, 3, 3) * 0.1
        m.c.weight, m.d.weight = nn.Parameter(both[:, :8]), nn.Parameter(both[:, 8:])
    expected = m(X)
    assert fates(bnfold.fold(m, (X,), inplace=True)) == {"b": "folded"}
    assert error(expected, m(X)) < 1e-5


def _state(m: nn.Module) -> dict[str, Any]:
    return {"types": {n: type(i) for n, i in m.named_modules()}, **{k: v.clone() for k, v in m.state_dict().items()}}


def _untouched(m: nn.Module, before: dict[str, Any]) -> None:
    after = _state(m)
    assert before.keys() == after.keys()
    assert before.pop("types") == after.pop("types")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_memory_that_only_code_knows_is_found_by_running_the_module_itself() -> None:
    m = _two()
    hidden = m.c.weight.data
    m.run = lambda s, x: s.b(s.c(x)) + F.conv2d(x, hidden, padding=1)
    before, weight, norm = _state(m), m.c.weight, m.b
    with pytest.raises(bnfold.VerificationError, match=r"output_0 differs.*it was put back"):
        bnfold.fold(m, (X,), inplace=True)
    _untouched(m, before)
    assert m.c.weight is weight
    assert m.b is norm
    assert m.c.bias is None
    assert hidden.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("bake", [False, True])
def test_a_failure_in_the_middle_puts_everything_back(bake: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.torch.write import apply as applying

    real: Any = vars(applying)["write"]
    m = net(lambda s, x: s.e(s.d(torch.relu(s.b(s.c(x))))), c=conv(), b=nn.BatchNorm2d(8), d=conv(bias=True),
            e=nn.BatchNorm2d(8))  # fmt: skip
    if bake:
        nn.utils.parametrizations.weight_norm(m.d)
    m.train()
    before, expected = _state(m), copy.deepcopy(m).eval()(X)
    own = {id(p) for p in m.parameters()}

    def failing(tensor: Tensor, value: Tensor) -> None:
        if id(tensor) in own and tensor is m.d.bias:
            raise RuntimeError("no more")
        real(tensor, value)

    monkeypatch.setattr(applying, "write", failing)
    with pytest.raises(ModelError, match="cannot be edited in place, and was put back: no more"):
        bnfold.fold(m, (X,), inplace=True, bake=bake, eval=True)
    _untouched(m, before)
    assert m.training
    assert torch.equal(m.eval()(X), expected)


@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("inference", [False, True])
def test_expanded_tensors_and_those_made_for_inference_take_new_values(which: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        m = net(lambda s, x: s.e(s.d(torch.relu(s.b(s.c(x))))), c=conv(), b=nn.BatchNorm2d(8), d=conv(bias=True),
                e=nn.BatchNorm2d(8))  # fmt: skip
        if which == "weight":
            m.d.weight = nn.Parameter(torch.randn(1, 8, 3, 3).expand(8, 8, 3, 3))
        else:
            m.d.bias = nn.Parameter(torch.ones(1).expand(8))
        positive(m)
    with torch.no_grad():
        expected = m(X)
        result = bnfold.fold(m, (X,), inplace=True)
        assert fates(result) == {"b": "folded", "e": "folded"}
        assert error(expected, m(X)) < 1e-5


# --- code that does more with a norm than to call it


class Branch(nn.Module):
    """A RepVGG block; `run` adds the two."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.c, self.b, self.run = conv(), nn.BatchNorm2d(8), run

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.run(self, x))


def _added(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.b(x)
    y += s.c(x)
    return y


def _same_shape(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.b(x)
    assert y.shape == x.shape
    y = y + s.c(x)
    return y


@pytest.mark.parametrize("run", [_added, _same_shape, lambda s, x: s.b(x).add_(s.c(x))])
def test_identity_branches_whose_code_needs_their_shape(run: Any) -> None:
    torch.manual_seed(0)
    m = alive(nn.Sequential(conv(), nn.ReLU(), *(Branch(run) for _ in range(3))))
    result = folded(m, X)
    assert set(fates(result).values()) == {"folded"}
    assert any("zeros of full shape" in note for note in result.plan.notes)


class Masked(nn.BatchNorm2d):
    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        return super().forward(x)


class Pair(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


def _sized(s: Any, y: Tensor) -> Tensor:
    assert y.shape[1] == s.b.num_features
    return s.b(y)  # type: ignore[no-any-return]


class Uncooperative(nn.Module):
    """A block whose code does more with its norm; plain blocks behind it do not."""

    def __init__(self, norm: nn.Module, run: Any) -> None:
        super().__init__()
        self.c, self.b, self.run = conv(), norm, run
        self.layers = [self.c, self.b]

    def forward(self, x: Tensor) -> Tensor:
        if self.run is not None:
            return torch.relu(self.run(self, self.c(x)))
        for layer in self.layers:
            x = layer(x)
        return x


def _biased(s: Any, y: Tensor) -> Tensor:
    return s.b(y * 2 if s.c.bias is not None else y)  # type: ignore[no-any-return]


CODE: dict[str, tuple[Any, Any]] = {
    "a list of modules": (nn.BatchNorm2d, None),
    "a further argument": (Masked, lambda s, y: s.b(y, None)),
    "a tuple": (Pair, lambda s, y: s.b(y)[0]),
    "an attribute": (nn.BatchNorm2d, _sized),
    "its class": (nn.BatchNorm2d, lambda s, y: s.b(y) if isinstance(s.b, nn.BatchNorm2d) else s.b(y) * 2),
    "a bias": (nn.BatchNorm2d, _biased),
}


def _uncooperative(case: str, blocks: int = 1) -> nn.Module:
    torch.manual_seed(0)
    kind, run = CODE[case]
    plain = [conv(), nn.BatchNorm2d(8), nn.ReLU(), conv(), nn.BatchNorm2d(8)]
    return positive(alive(nn.Sequential(*(Uncooperative(kind(8), run) for _ in range(blocks)), *plain), zeros=False))


@pytest.mark.slow
def test_one_norm_that_the_code_does_not_let_go_stays_and_others_fold() -> None:
    for case in CODE:
        result = folded(_uncooperative(case), X, blamed=True)
        assert fates(result) == {"0.b": "kept", "2": "folded", "5": "folded"}, case
        assert codes(result) == {"0.b": "uncooperative-code"}
        assert "kept, because the network did not pass without: 0.b (" in result.plan.notes[0]


def test_norms_of_alike_blocks_are_blamed_together() -> None:
    result = folded(_uncooperative("an attribute", 9), X, blamed=True)
    assert codes(result) == {f"{i}.b": "uncooperative-code" for i in range(9)}
    assert "'Identity' object has no attribute 'num_features'" in str(result.plan.batch_norms[0].reason)


def test_the_module_itself_keeps_what_its_code_does_not_let_go() -> None:
    m: Any = _uncooperative("its class")
    expected = m(X)
    assert codes(bnfold.fold(m, (X,), inplace=True)) == {"0.b": "uncooperative-code"}
    assert isinstance(m[0].b, nn.BatchNorm2d)
    assert isinstance(m[2], nn.Identity)
    assert error(expected, m(X)) < 1e-5


def test_a_part_keeps_what_its_code_does_not_let_go() -> None:
    class Outer(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.body = _uncooperative("a further argument")  # type: ignore[assignment]

    result = folded(alive(Outer(), zeros=False), X, blamed=True)
    assert codes(result) == {"body.0.b": "uncooperative-code", "norm": "untraced"}
    assert len(result.plan.notes) == 2


def test_a_network_whose_code_raises_without_any_of_its_norms_stays_as_it_is() -> None:
    m = net(lambda s, x: s.b(s.c(x).to(s.b.weight.dtype)), c=conv(), b=nn.BatchNorm2d(8))
    result = folded(m, X, blamed=True)
    assert codes(result) == {"b": "uncooperative-code"}
    assert "'Identity' object has no attribute 'weight'" in result.plan.notes[0]
    assert isinstance(result.model.b, nn.BatchNorm2d)


def test_a_network_that_gives_other_numbers_without_any_of_its_norms_fails() -> None:
    """A fault of the fold would look the same."""
    m = net(lambda s, x: s.b(s.c(x)) if isinstance(s.b, nn.BatchNorm2d) else x, c=conv(), b=nn.BatchNorm2d(8))
    with pytest.raises(bnfold.VerificationError, match="did not pass"):
        bnfold.fold(m, (X,))


def test_layers_at_whose_biases_the_code_looks_get_none() -> None:
    m = net(lambda s, x: s.b(s.c(x)) * (1 if s.c.bias is None else 2), c=conv(), b=nn.BatchNorm2d(8))
    result = folded(m, X)
    assert fates(result) == {"b": "add"}
    assert result.model.c.bias is None
    assert "no layer got a bias" in result.plan.notes[0]


def test_leftovers_take_their_input_by_the_name_that_norms_give_it() -> None:
    m = net(lambda s, x: torch.tanh(s.b(input=torch.sigmoid(x))), b=nn.BatchNorm2d(8))
    m.b.weight.data.fill_(1)
    m.b.running_var.data.fill_(1 - m.b.eps)
    folded(m, X, leftovers="all")
    from bnfold.layers import ChannelAffine, ChannelClamp, Copy, Nothing, Zeros

    made = (
        ChannelAffine(None, torch.ones(8, 1, 1)),
        ChannelClamp(torch.ones(8, 1, 1), None),
        Copy(),
        Nothing(),
        Zeros(),
    )
    assert all(layer(input=X).shape in (X.shape, (1,)) for layer in made)


def test_wrong_weights_are_not_blamed_on_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.torch.write import apply as applying

    real: Any = vars(applying)["scale_weight"]
    monkeypatch.setattr(applying, "scale_weight", lambda *a: real(*a) * 1.01)
    with pytest.raises(bnfold.VerificationError, match="did not pass"):
        bnfold.fold(alive(nn.Sequential(*(nn.Sequential(conv(), nn.BatchNorm2d(8)) for _ in range(5)))), (X,))


def test_norms_that_do_not_run_are_named() -> None:
    """One is never called, of one nothing depends on what comes out."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.aside, self.never = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(self.conv(x))
            self.aside(y)
            return y

    plan = bnfold.inspect(alive(Net()), (torch.randn(2, 3, 8, 8),))
    found = [(bn.name, bn.verdict, bn.reason and bn.reason.code) for bn in plan.batch_norms]
    assert found == [("norm", "folded", None), ("aside", "kept", "untraced"), ("never", "kept", "untraced")]


# --- blocks of code of which torch.export makes graphs of their own


BLOCKS: dict[str, Any] = {
    "autocast, disabled": lambda: torch.autocast("cpu", enabled=False),
    "autocast, for another device": lambda: torch.autocast("cuda", torch.float16),
    "enable_grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def _in_a_block(block: Any) -> Any:
    """Of two norms in the block, one has an in-place activation behind it that would write into the stream."""

    def run(s: Any, x: Tensor) -> Tensor:
        with block():
            y = s.c(x)
            with torch.enable_grad():
                z = F.relu_(s.b(y))
            return s.e(s.d(z)) + s.f(y)  # type: ignore[no-any-return]

    layers = {name: conv(kernel=1) for name in "cdf"}
    return positive(net(run, b=nn.BatchNorm2d(8), e=nn.BatchNorm2d(8), **layers))


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_norms_in_blocks_that_change_no_number_fold(block: Any) -> None:
    m = _in_a_block(block)
    assert fates(folded(m, X)) == {"b": "copy", "e": "folded"}
    program = torch.export.export(m, (X,), strict=False)
    result = bnfold.fold(program)
    assert set(fates(result).values()) == {"folded"}
    assert error(m(X), result.model.module()(X)) < 1e-5


def test_norms_under_autocast_stay() -> None:
    m = _in_a_block(lambda: torch.autocast("cpu", torch.bfloat16))
    result = bnfold.fold(m, (X,))
    assert codes(result) == {"b": "autocast", "e": "autocast"}


def test_code_under_autocast_may_write_into_what_a_norm_outside_gave() -> None:
    def run(s: Any, x: Tensor) -> Tensor:
        y = s.c(x)
        z = s.b(y)
        with torch.autocast("cpu", torch.bfloat16):
            z = F.relu_(z)
        return s.d(z) + s.f(y)  # type: ignore[no-any-return]

    m = positive(net(run, b=nn.BatchNorm2d(8), **{name: conv(kernel=1) for name in "cdf"}))
    assert fates(folded(m, X)) == {"b": "copy"}


RECURRENT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "lstm": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 2}, "folded"),
    "gru": (nn.GRU, {"bidirectional": True}, "folded"),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}, "folded"),
    "no bias": (nn.GRU, {"bias": False}, "add"),
}


@pytest.mark.parametrize(("kind", "options", "form"), RECURRENT.values(), ids=RECURRENT)
def test_recurrent_layers_take_the_norm_before_them(kind: Any, options: dict[str, Any], form: str) -> None:
    m = net(lambda s, x: s.r(s.b(x).transpose(1, 2)), b=nn.BatchNorm1d(5), r=kind(5, 3, **options))
    m.b.weight.data[0] = 0.5 if form == "add" else 0
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    result = folded(m, x)
    assert fates(result) == {"b": form}
    assert result.plan.batch_norms[0].into == ("r",)
    m, x = m.double(), x.double()
    program = bnfold.fold(torch.export.export(m, (x,), strict=False))
    assert set(fates(program).values()) == {form}
    assert error(m(x), program.model.module()(x)) < 1e-12


def test_a_recurrent_layer_whose_weights_others_read_is_left_alone() -> None:
    def twice(s: Any, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        return s.r(s.b(x).transpose(1, 2))[0] + s.r(torch.sin(y))[0]  # type: ignore[no-any-return]

    def once(s: Any, x: Tensor) -> Tensor:
        return s.r(s.b(x).transpose(1, 2))[0]  # type: ignore[no-any-return]

    tied = net(once, b=nn.BatchNorm1d(5), r=nn.GRU(5, 3, bidirectional=True))
    tied.r.weight_ih_l0_reverse = tied.r.weight_ih_l0
    for m in (tied, net(twice, b=nn.BatchNorm1d(5), r=nn.GRU(5, 3))):
        assert fates(folded(m, torch.randn(2, 5, 4))) == {"b": "kept"}


class Borrowed(nn.Module):
    """A layer that is called twice, and whose weight the code reads too: the calls share a bias and no gauge."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(self.layer(x))
        z = self.second(self.layer(y)) * self.layer.weight.abs().mean()
        found: torch.Tensor = self.last(torch.cat([y, z.tanh()], 1))
        return found


def test_calls_that_share_no_gauge_share_no_bias() -> None:
    x = torch.randn(2, 4, 6, 6)
    for leftovers in ("none", "all"):
        assert "second" in fates(folded(alive(Borrowed()), x, leftovers=leftovers))
