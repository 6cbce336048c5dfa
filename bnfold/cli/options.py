"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import UsageError
from ..limits import LEFTOVERS, PRECISION_LIMIT

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, readable=False)  # one that cannot be read is met where it is read


def smaller(command: F) -> F:
    """What a fold does beside the norms."""
    for option in (
        click.option("--shrink/--no-shrink", default=True, show_default=True,
                     help="Channels that hold a constant, or that nobody reads, leave the network."),
        click.option("--merge/--no-merge", default=True, show_default=True,
                     help="Linear layers that are added, or that stand in a row, become one where that is no slower."),
    ):  # fmt: skip
        command = option(command)
    return command


def reading(command: F) -> F:
    """Options of every command that reads a model for folding."""
    command = smaller(command)
    for option in (
        click.option("--skip", multiple=True, metavar="NAME", help="Leave this norm alone; * and ? match. Repeatable."),
        click.option("--precision-limit", type=click.FloatRange(min=1), default=PRECISION_LIMIT, show_default=True,
                     help="How much precision other readers of a tensor may lose to a fold."),
        click.option("--keep-inputs", is_flag=True,
                     help="Leave graph inputs that have a default as they are, even where those are all weights."),
        click.option("--freeze-inputs", is_flag=True,
                     help="Treat graph inputs that have a default as constants, even where only some weights are."),
        click.option("--only-exact-removal", "leftovers", flag_value="none",
                     help="The same as --leftovers none: norms go without a trace or stay as they are."),
        click.option("--leftovers", type=click.Choice(LEFTOVERS), default=LEFTOVERS[0], show_default=True,
                     help="Forms in which norms that cannot go are left: those that measure no slower than the norm; "
                          "all (any single op in place of a norm); none."),
    ):  # fmt: skip
        command = option(command)
    return command


def pytorch(command: F) -> F:
    """Options for folding models of PyTorch."""
    for option in (
        click.option("--ignore-hooks", is_flag=True, help="No forward hook needs to see the values as they are."),
        click.option("--bake", is_flag=True, help="Make parametrizations and weight norm plain weights first."),
    ):
        command = option(command)
    return network(command)


def network(command: F) -> F:
    """Options for reading models of PyTorch."""
    for option in (
        click.option("--trust-pickle", is_flag=True,
                     help="Read files that run code when they are read. Only for files whose source you trust."),
        click.option("--input", "inputs", multiple=True, metavar="[NAME=]1x3x224x224[:int64]",
                     help="Shape and type of an input, in the order of forward's arguments, or with the name of one; "
                          "the network's own type by default. Repeatable."),
        click.option("--arch-args", metavar="JSON", help="Arguments for --arch: a list or an object."),
        click.option("--arch", metavar="MODULE:NAME",
                     help="What makes the network of a checkpoint: package.module:factory or path/to/net.py:Net."),
    ):  # fmt: skip
        command = option(command)
    return command


def torch_options(given: dict[str, Any]) -> dict[str, Any]:
    """What `pytorch` or `network` parsed, as the API takes it; taken out of `given`."""
    names = ("arch", "arch_args", "bake", "ignore_hooks", "trust_pickle")
    return {"inputs": given.pop("inputs") or None, **{name: given.pop(name) for name in names if name in given}}


def judging(command: F) -> F:
    """Options of every command that compares models."""
    for option in (
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Seed of the random inputs."),
        click.option("--shape", "shapes", multiple=True, metavar="[NAME=]1x3x224x224", callback=_parse_shapes,
                     help="Shape of an input, for dynamic sizes. Repeatable."),
    ):  # fmt: skip
        command = option(command)
    return command


def comparing_on(command: F) -> F:
    """The inputs on which models are compared."""
    for option in (
        click.option("--kind", "kinds", multiple=True, metavar="KIND",
                     help="Kind of random inputs: normal, uniform, image, large, constant, tiny, zeros. Repeatable."),
        click.option("--samples", type=click.IntRange(min=1),
                     help="Samples of each kind of random inputs, or of the data at most (then 64 by default)."),
        click.option("--data", type=FILE, metavar="PATH",
                     help="Inputs from a file (.npz by input names, .npy) or a folder of images, not random ones."),
    ):  # fmt: skip
        command = option(command)
    return scaling(command)


def means_given(given: dict[str, Any]) -> dict[str, Any]:
    """What `scaling` parsed, as the API names it; taken out of `given`."""
    return {"mean": given.pop("means"), "std": given.pop("stds")}


def samples(command: F) -> F:
    """Options of the commands that run a network over data."""
    for option in (
        click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Use the first N samples only."),
        click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True,
                     help="Samples that are run at once."),
    ):  # fmt: skip
        command = option(command)
    return scaling(command)


def scaling(command: F) -> F:
    """How pixels become numbers."""
    for option in (
        click.option("--std", "stds", default="1", callback=_numbers, metavar="0.2,0.2,0.2",
                     help="Deviation of each channel, for images, or one for all; pixels less the mean are divided."),
        click.option("--mean", "means", default="0", callback=_numbers, metavar="0.5,0.5,0.5",
                     help="Mean of each channel, for images, or one for all; pixels go from 0 to 1."),
    ):  # fmt: skip
        command = option(command)
    return command


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: a number, or one for each channel, as 0.485,0.456,0.406") from None


def pixels(inputs: tuple[str, ...] | None, means: tuple[float, ...], stds: tuple[float, ...]) -> Any:
    """What images become: of the size that --input names. UsageError where the numbers do not fit."""
    from ..data.samples import Pixels

    size, channels = None, 3
    if inputs:
        from ..torch.trace.specs import tensor

        shape = tuple(tensor(inputs[0]).shape)
        if len(shape) == 4:
            channels, size = shape[1], (shape[2], shape[3])
    given = max(len(means), len(stds)) > 1
    if given and channels not in (1, 3):
        raise UsageError(f"--mean, --std: for images of 1 or 3 channels, --input has {channels}")
    if any(len(values) not in (1, channels) for values in (means, stds)) or 0 in stds:
        raise UsageError("--mean, --std: one number or one for each channel expected, and no std of 0")
    return Pixels(size, channels, mean=means, std=stds)


def common(command: F) -> F:
    """Options of every command."""
    for option in (
        click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong."),
        click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else."),
    ):
        command = option(command)
    return command


def _parse_shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """NAME=1x3x224x224, or 1x3x224x224 for a model with one input (its name is then "")."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        parts = sizes.split("x")
        if not all(part.isdecimal() and int(part) for part in parts):
            raise click.BadParameter(f"{value!r}: sizes such as 1x3x224x224 expected")
        shapes[name] = tuple(map(int, parts))
    return shapes
