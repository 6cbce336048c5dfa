"""The front door: inspect, fold, verify, for ONNX and PyTorch alike. PyTorch is imported for its own models only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.plan import Plan
from .doors.opening import is_onnx, open_model
from .errors import UsageError
from .limits import LEFTOVERS, MULTIPLE, PRECISION_LIMIT
from .options import Folding, Progress, TorchOptions

if TYPE_CHECKING:
    from .calibration.report import CalibrationResult
    from .data.samples import Pixels
    from .judge.criteria.check import Check
    from .judge.latency import Bench
    from .lrn.report import SwapResult
    from .train.retrain import RetrainResult

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FoldResult:
    """A folded model, the plan that made it, and the judge's verdict (None when it was not asked)."""

    plan: Plan
    check: Check | None
    _model: Callable[[], Any]

    def __repr__(self) -> str:
        return f"FoldResult({self.plan!r}, {'not verified' if self.check is None else repr(self.check)})"

    @property
    def model(self) -> Any:
        """The folded model, of the kind that was given; large ONNX weights are computed when it is first asked for."""
        return self._model()


def inspect(
    model: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    skip: Iterable[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    precision_limit: float = PRECISION_LIMIT,
    leftovers: str = LEFTOVERS[0],
    merge: bool = True,
    shrink: bool = True,
    eval: bool = False,
    bake: bool = False,
    ignore_hooks: bool = False,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
) -> Plan:
    """What `fold` would do to a model: every norm with its verdict. Nothing is changed or written.

    `skip`: names, or patterns with * and ?, of norms to leave alone, each that of a norm. Graph inputs of ONNX with a
    default stay as they are (from IR 4 on callers may override them), unless a file lists all its weights so, as old
    exporters did: then they are constants. `freeze_inputs`: all are; `keep_inputs`: none. `precision_limit`: how much
    precision the other readers of a tensor may lose to a fold, as a factor (docs/precision.md). `leftovers`: in which
    forms a norm that cannot go may be left: "fast", those that measure no slower in the model's runtime
    (docs/benchmarks.md); "all", any single op; "none". `merge`: linear layers that are added, or that stand in a row,
    become one where that is exact and no slower; `shrink`: channels that hold a constant or that nobody reads go
    (docs/merging.md; ONNX models, and what `export` writes).
    The rest is for PyTorch: see `fold`. Raises ModelError where the model cannot be read, UsageError where arguments do
    not fit.
    """
    options = TorchOptions(inputs, kwargs, eval, bake, ignore_hooks, arch, arch_args, trust_pickle)
    folding = Folding.of(skip, precision_limit, leftovers, freeze_inputs, keep_inputs, merge, shrink)
    return open_model(model, options, folding).inspect()


def fold(
    model: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    out: str | PathLike[str] | None = None,
    verify: bool = True,
    data: Any = None,
    samples: int | None = None,
    seed: int = 0,
    kinds: Iterable[str] = (),
    shapes: Shapes | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    skip: Iterable[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    precision_limit: float = PRECISION_LIMIT,
    leftovers: str = LEFTOVERS[0],
    merge: bool = True,
    shrink: bool = True,
    eval: bool = False,
    inplace: bool = False,
    bake: bool = False,
    ignore_hooks: bool = False,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> FoldResult:
    """Fold the norms of a model, and verify the result. The model is left alone (but see `inplace`).

    `model`: the path of an ONNX file or an onnx.ModelProto; a torch.nn.Module, with the example inputs that
    torch.export needs in `inputs` (a tuple, or one tensor) and `kwargs`; a torch.export.ExportedProgram; the path of a
    .pt2, TorchScript, .pt, .pth or .safetensors file. The result is of the same kind.

    `out`: where to write it; the file appears only when the result passed. `data`, `samples`, `seed`, `kinds`,
    `shapes`, `mean`, `std`: the inputs of the check, as for `verify`; where nothing changes nothing is run. `skip`,
    `freeze_inputs`, `keep_inputs`, `precision_limit`, `leftovers`, `merge`, `shrink`: as for `inspect`. `progress` is
    called with the name of each stage.

    For PyTorch: `eval`: put the module (the copy of it) in eval mode first; one in train mode is refused otherwise.
    `inplace`: change the module itself, once a copy has passed; it is put back when it then differs. `bake`: make
    parametrizations and weight norm plain weights first. `ignore_hooks`: no hook needs to see the values as they are
    (those that a hook sees are kept otherwise). `arch`, `arch_args`: for checkpoints, what makes the network:
    "package.module:factory", "path/to/net.py:Net", or a function; and its arguments as JSON. `trust_pickle`: read files
    that run code when read.
    For `inputs` shapes in text will do: "1x3x224x224" or "1x16:int64".

    Raises ModelError (a model that cannot be read or traced), OutputError (cannot write), UsageError (arguments that do
    not fit), VerificationError (the result differs, or nothing here can run the model).
    """
    from .judge.criteria.inputs import Judging, inputs_of

    options = TorchOptions(inputs, kwargs, eval, bake, ignore_hooks, arch, arch_args, trust_pickle)
    folding = Folding.of(skip, precision_limit, leftovers, freeze_inputs, keep_inputs, merge, shrink)
    judging = Judging(verify, inputs_of(seed, shapes, kinds, data, samples, mean, std), progress)
    if (inplace or inputs is not None) and is_onnx(model):
        raise UsageError("inputs (--input) and inplace are for models of PyTorch; this one was read as ONNX")
    made, plan, check = open_model(model, options, folding).fold(_path(out), judging, inplace)
    return FoldResult(plan, check, made)


def verify(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    device: str = "",
    tf32: bool = False,
    optimise: bool = False,
    multiple: float = MULTIPLE,
    limit: float | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    cosine: float | None = None,
    top_k: int | None = None,
    agreement: float = 1.0,
    data: Any = None,
    samples: int | None = None,
    seed: int = 0,
    kinds: Iterable[str] = (),
    shapes: Shapes | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    candidate_arch: str | Callable[[], Any] | None = None,
    candidate_arch_args: str | None = None,
    eval: bool = False,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> Check:
    """Whether two models are the same function, in finite precision.

    `reference`, `candidate`: paths (ONNX files, exported programs, TorchScript archives, checkpoints with `arch`),
    onnx.ModelProtos, or torch modules and exported programs with `inputs` and `kwargs`; inputs and outputs of models of
    different kinds are matched by their order. `candidate_arch`: where the candidate is made by something else than
    the reference.

    `device`: "cpu", "cuda" or "tensorrt"; by default onnxruntime runs on the CPU, and a module where it is. `tf32`: let
    CUDA round products of float32 to 10 bits. `optimise`: let onnxruntime change the graphs, as when serving.

    The candidate passes when its error against a float64 run of the reference is at most `multiple` times the
    reference's own (docs/judging.md). Fixed bounds take the place of that, and all that are given must hold: `limit`
    (largest difference over largest magnitude), `atol` and `rtol`, `cosine` (the least similarity of a sample), `top_k`
    (the same k best entries for a share `agreement` of the samples).

    Inputs are seeded random numbers of several kinds (`kinds` chooses), or `data`: a path (.npz, .npy, a folder of
    images, for which `mean` and `std` of the channels count), an array, or a mapping of names to arrays. `samples`: how
    many. `shapes`: sizes of ONNX inputs, by name; else dynamic sizes are filled in, and others tried too.

    Raises ModelError where a file cannot be read, DataError where data do not fit, UsageError where arguments do not,
    and VerificationError where nothing here can run the reference, or not on that device.
    """
    from .doors.verify import Pair
    from .judge.criteria.criterion import Criterion
    from .judge.criteria.device import Device
    from .judge.criteria.inputs import inputs_of

    first = TorchOptions(inputs, kwargs, eval, arch=arch, arch_args=arch_args, trust_pickle=trust_pickle)
    second = first
    if candidate_arch is not None:
        second = replace(first, arch=candidate_arch, arch_args=candidate_arch_args)
    pair = Pair(
        reference, candidate, first, second, inputs_of(seed, shapes, kinds, data, samples, mean, std),
        Criterion(multiple, limit, atol, rtol, cosine, top_k, agreement),
        Device(device or "cpu", tf32, optimise) if device or tf32 or optimise else None,
    )  # fmt: skip
    return pair.judge(progress)


def bench(
    reference: Any,
    candidate: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    device: str = "cpu",
    tf32: bool = False,
    optimise: bool = True,
    threads: int | None = None,
    seconds: float = 5.0,
    rounds: int | None = None,
    seed: int = 0,
    shapes: Shapes | None = None,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    candidate_arch: str | Callable[[], Any] | None = None,
    candidate_arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> Bench:
    """Latency of two models side by side: runs in turn, for `seconds` or for `rounds` (at least 6), after a warm-up.

    Models and other arguments: as for `verify`. Inputs are random, and lie on the device before the clock starts.
    `optimise`: let onnxruntime change the graphs, as when serving. `threads`: of the CPU. Errors as for `verify`.
    """
    from .doors.verify import Pair
    from .judge.criteria.device import Device
    from .judge.criteria.inputs import inputs_of

    first = TorchOptions(inputs, kwargs, arch=arch, arch_args=arch_args, trust_pickle=trust_pickle)
    second = first
    if candidate_arch is not None:
        second = replace(first, arch=candidate_arch, arch_args=candidate_arch_args)
    pair = Pair(
        reference, candidate, first, second, inputs_of(seed, shapes, (), None, None, 0.0, 1.0),
        device=Device(device, tf32, optimise),
    )  # fmt: skip
    return pair.bench(seconds, rounds, threads or 0, progress)


def export(
    model: Any,
    inputs: Any = None,
    *,
    out: str | PathLike[str],
    kwargs: Mapping[str, Any] | None = None,
    keep_bn: bool = False,
    opset: int | None = None,
    dynamic: Iterable[str] = (),
    external_data: bool = False,
    verify: bool = True,
    data: Any = None,
    samples: int | None = None,
    seed: int = 0,
    kinds: Iterable[str] = (),
    mean: Any = 0.0,
    std: Any = 1.0,
    skip: Iterable[str] = (),
    precision_limit: float = PRECISION_LIMIT,
    leftovers: str = LEFTOVERS[0],
    merge: bool = True,
    shrink: bool = True,
    eval: bool = False,
    bake: bool = False,
    ignore_hooks: bool = False,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> FoldResult:
    """Write a PyTorch model as ONNX, folded, and verified in onnxruntime against the model as it was.

    `model`, `inputs`, `kwargs` and what is not named here: as for `fold`; the model is left alone. `out`: the file,
    which appears only when it passed. `keep_bn`: fold nothing. `opset`: the ONNX operator set. `dynamic`: "batch" makes
    axis 0 of every input dynamic under that name, "x:2=height" one axis of one input. `external_data`: weights in a
    file beside it; models of 1.8 GB and more have them there always. The result's `model` is the path.

    Raises as `fold` does, and UsageError where onnxscript is not installed.
    """
    if is_onnx(model):
        raise UsageError("export: a model of PyTorch expected; bnfold fold takes ONNX files as they are")
    from .doors.export import Settings, export_model
    from .doors.torch_models import opened
    from .judge.criteria.inputs import Judging, inputs_of

    options = TorchOptions(inputs, kwargs, eval, bake, ignore_hooks, arch, arch_args, trust_pickle)
    loaded = opened(model, options, Folding.of(skip, precision_limit, leftovers, merge=merge, shrink=shrink))
    loaded.check_skip()
    path = Path(fspath(out))
    settings = Settings(keep_bn, opset, tuple(dynamic), external_data)
    judging = Judging(verify, inputs_of(seed, None, kinds, data, samples, mean, std), progress)
    plan, check = export_model(loaded, path, settings, judging)
    kept = Plan(path.name, notes=("every batch norm was kept",))
    return FoldResult(plan or kept, check, lambda: path)


def restore(module: Any, path: str | PathLike[str]) -> Any:
    """Give a freshly made module the folded form that a checkpoint of `fold` has, and its tensors; the module itself.

    `path`: a .pt, .pth or .safetensors file that `bnfold fold` wrote. ModelError where it is none, or does not fit.
    """
    from .torch.store.checkpoint import Checkpoint
    from .torch.store.load import load
    from .torch.store.save import restore as rebuild

    state = load(Path(fspath(path)))
    if not isinstance(state, Checkpoint):
        raise UsageError(f"{fspath(path)}: a checkpoint expected, {type(state).__name__} found")
    return rebuild(module, state, fspath(path))


def find_lrn(
    model: Any,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
) -> list[Any]:
    """Every LRN of a network, in the order in which they run; the network is left alone.

    `model`: a torch.nn.Module, the path of a checkpoint with `arch`, or an ONNX model or the path of one. `inputs`,
    `kwargs`: arguments with which a PyTorch network can be run; for `inputs` shapes in text will do. Found are the ONNX
    operator, nn.LocalResponseNorm, calls of torch.nn.functional.local_response_norm, and what answers random inputs as
    an LRN does: modules, parts of a forward that torch.fx can follow, and what exporters write into ONNX files. LRN
    within channels is listed too. Each has a `name`, a `kind` and `to_dict()`. Raises DataError where the network does
    not take the inputs, ModelError where it cannot be read or copied.
    """
    if is_onnx(model):
        from .doors.onnx import find_onnx_lrns

        return find_onnx_lrns(model)
    from .doors.swap import find_sites

    return find_sites(model, TorchOptions(inputs, kwargs, arch=arch, arch_args=arch_args, trust_pickle=trust_pickle))


def swap_lrn(
    model: Any,
    inputs: Any = None,
    *,
    data: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    placement: str = "foldable",
    init: str = "fit",
    drop_dropout: bool = False,
    batch_size: int = 64,
    samples: int | None = None,
    pixels: Pixels | None = None,
    seed: int = 0,
    inplace: bool = False,
    out: str | PathLike[str] | None = None,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> SwapResult:
    """Put a batch norm in the place of every LRN of a network, fitted to it on data. What is given is left alone.

    `model`: a torch.nn.Module, the path of a checkpoint with `arch`, or an ONNX model or the path of one. `inputs`,
    `kwargs`: arguments with which it can be run; taken from the data where they are missing. `data`: paths of .npz,
    .npy or folders of images, arrays, mappings of names to arrays. `pixels`: what images become. `samples`: how
    many of them to use.

    `placement`: "foldable" makes `conv -> ReLU -> LRN` a `conv -> BN -> ReLU`, in which the norm folds into the
    convolution, where the network allows that, and says why elsewhere; "in-place" puts it where the LRN was. `init`:
    "fit" chooses gamma and beta by least squares, so that each norm answers on the data as the old LRN did; "standard"
    takes 1 and 0. The running mean and variance are those of the data. `drop_dropout`: nn.Dropout becomes Identity.
    `seed`: of the choice of values for the fit, where there are too many. `inplace`: change the module itself.

    The result has the `model` and a `report` that prints and has `to_dict()`. Calls of local_response_norm in the code
    of a forward make that module a torch.fx graph, under the same names. `out`: where to write the checkpoint, from
    which `restore` and the other commands build the network again; .pt2 for an exported program.

    Raises UsageError (arguments that do not fit; init="fit" without data), DataError (data that do not fit or hold
    NaN), ModelError (no LRN, or one that cannot be reached), OutputError.
    """
    if is_onnx(model):
        from .doors.swap_onnx import swap_file

        if inplace:
            raise UsageError("inplace is for PyTorch modules")
        return swap_file(
            model if not isinstance(model, str | PathLike) else Path(fspath(model)),
            _path(out), data=data, placement=placement, init=init,
            drop_dropout=drop_dropout, batch_size=batch_size, samples=samples, pixels=pixels, seed=seed,
            progress=progress,
        )  # fmt: skip
    from .doors.swap import swap_model

    options = TorchOptions(inputs, kwargs, arch=arch, arch_args=arch_args, trust_pickle=trust_pickle)
    return swap_model(
        model, options, _path(out), data=data, placement=placement, init=init,
        drop_dropout=drop_dropout, batch_size=batch_size, samples=samples, pixels=pixels, seed=seed, inplace=inplace,
        progress=progress,
    )  # fmt: skip


def calibrate(
    model: Any,
    data: Any,
    *,
    inputs: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    method: str = "population",
    order: str | None = None,
    decay: float = 0.99,
    batch_size: int = 64,
    samples: int | None = None,
    pixels: Pixels | None = None,
    inplace: bool = False,
    share: bool = False,
    resume: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> CalibrationResult:
    """Estimate the running mean and variance of every batch norm of a network anew. What is given is left alone.

    `model`: a torch.nn.Module, the path of a checkpoint with `arch`, or an ONNX model or the path of one.
    `data`, `pixels`, `samples`: as for `swap_lrn`. `inputs`, `kwargs`: example arguments, needed only where forward
    takes some that are not data.

    `method`: "population", the exact statistics of all values; or "moving", `running = decay * running + (1 - decay) *
    batch` from what the norms have (PyTorch's momentum is 1 - decay). `order`: "joint", every norm normalises with its
    batch meanwhile, as in training, the default for PyTorch networks; or "layerwise", one norm after another on what it
    will be given at inference, in as many passes: right where the weights were not trained with these norms, and the
    default for ONNX models, whose batch is often fixed at 1. Variances have the factor m/(m-1).

    `resume`: a file that keeps how far it got; a rerun of the same call goes on from there, and it goes at the end.
    Under torch.distributed each rank gives its own part of the data, or with `share` all, of which it takes its part of
    the batches, and all get the statistics of all; the first writes. ONNX models know one process only. `inplace`:
    change the module itself. `out`: where to write the checkpoint or ONNX file. Modes and everything else stay.

    Raises UsageError, ModelError (no batch norm), DataError (data that do not fit, hold NaN, or give one value only),
    OutputError.
    """
    if is_onnx(model):
        from .doors.swap_onnx import calibrate_file

        if inplace:
            raise UsageError("inplace is for PyTorch networks")
        return calibrate_file(
            model if not isinstance(model, str | PathLike) else Path(fspath(model)),
            _path(out), data=data, method=method,
            order=order or "layerwise", decay=decay, batch_size=batch_size, samples=samples, pixels=pixels,
            resume=_path(resume), progress=progress,
        )  # fmt: skip
    from .doors.swap import calibrate_model

    options = TorchOptions(inputs, kwargs, arch=arch, arch_args=arch_args, trust_pickle=trust_pickle)
    return calibrate_model(
        model, options, _path(out), data=data, method=method, order=order or "joint",
        decay=decay, batch_size=batch_size, samples=samples, pixels=pixels, inplace=inplace, share=share, resume=resume,
        progress=progress,
    )  # fmt: skip


def retrain(
    model: Any,
    data: Any,
    *,
    validation: Any = None,
    teacher: Any = None,
    labels: bool | None = None,
    distil: str = "outputs",
    feature_names: Iterable[str] = (),
    temperature: float | None = None,
    epochs: int = 2,
    lr: float = 0.05,
    batch_size: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    clip: float | None = 1.0,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = True,
    patience: int | None = None,
    inplace: bool = False,
    device: Any = "cpu",
    pixels: Pixels | None = None,
    out: str | PathLike[str] | None = None,
    arch: str | Callable[[], Any] | None = None,
    arch_args: str | None = None,
    trust_pickle: bool = False,
    progress: Progress = lambda stage: None,
) -> RetrainResult:
    """Train a network a little after a change to it, as from LRN to BN. What is given is left alone.

    `model`: a torch.nn.Module, the path of a checkpoint with `arch`, or an ONNX model or the path of one, which is
    trained in torch and comes back with the same graph and new numbers. `data`, `validation`: what `calibrate` takes:
    paths of .npz, .npy or folders of images, arrays, mappings of names to arrays; a network with several inputs gets
    the arrays that its forward has arguments for. `pixels`: what images become.

    What is learned: with `labels` (an array named y, or a folder for each class) the cross entropy; with a `teacher`,
    the network as it was before the change (a module, or the path of its checkpoint), the squared difference of the
    outputs over the square of the teacher's, or with a `temperature` the KL divergence between their classes; with
    `distil="features"` also that relative difference of what the modules in `feature_names` give. `labels` None:
    without a teacher only.

    How: stochastic gradient descent with Nesterov's momentum; the rate rises over the part `warmup` of all steps to
    `lr` and falls as a cosine; a gradient longer than `clip` is shortened to it (None: never); `weight_decay` is for
    weights, not for biases and norms; frozen parameters stay. A last batch that is not full is left out, and every
    epoch has another order. `patience`: stop when the validation loss has not fallen for so many epochs, and take the
    weights of the best one, which may be those before the first step; without it the last weights are the result.

    `checkpoint`: a folder that gets a checkpoint after every epoch, and after every `checkpoint_steps` steps. The same
    call goes on from there (`resume`), and ends with exactly the same weights as without the stop, as far as the
    device computes the same twice: a CPU does, with the same number of threads. `seed` decides everything random;
    random numbers of the caller are left alone. `inplace`: the module itself gets the weights, at the end.

    Where torch.distributed is initialised, each process calls this with the same data and gets its own part of them;
    `batch_size` is that of a process. Batch norms are synchronised on CUDA only.

    `out`: where to write the checkpoint, in the layout of the model's. Raises UsageError, ModelError, OutputError,
    DataError (data that do not fit the network), TrainingError (the loss is NaN; the last checkpoint stays).
    """
    if is_onnx(model):
        from .doors.retrain_onnx import retrain_onnx

        return retrain_onnx(
            model, data, teacher, _path(out), validation=validation, labels=labels,
            distil=distil, feature_names=feature_names, temperature=temperature, epochs=epochs, lr=lr,
            batch_size=batch_size, momentum=momentum, weight_decay=weight_decay, warmup=warmup, clip=clip, seed=seed,
            checkpoint=checkpoint, checkpoint_steps=checkpoint_steps, resume=resume, patience=patience, inplace=inplace,
            device=device, pixels=pixels, progress=progress,
        )  # fmt: skip
    from .doors.retrain import retrain_model

    options = TorchOptions(arch=arch, arch_args=arch_args, trust_pickle=trust_pickle)
    return retrain_model(
        model, data, teacher, _path(out), options, validation=validation, labels=labels,
        distil=distil, feature_names=feature_names, temperature=temperature, epochs=epochs, lr=lr,
        batch_size=batch_size, momentum=momentum, weight_decay=weight_decay, warmup=warmup, clip=clip, seed=seed,
        checkpoint=checkpoint, checkpoint_steps=checkpoint_steps, resume=resume, patience=patience, inplace=inplace,
        device=device, pixels=pixels, progress=progress,
    )  # fmt: skip


def _path(path: str | PathLike[str] | None) -> Path | None:
    return None if path is None else Path(fspath(path))
