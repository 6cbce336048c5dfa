"""What the judge's limits come from, and what it misses.

    python -m benchmarks.judging distribution
    python -m benchmarks.judging channels
    python -m benchmarks.judging power
    python -m benchmarks.judging small --count 6000

`distribution`: errors of folded networks against float64, over the original's own, for the networks of the zoo and
those in models/. `channels`: the same for the worst channel, with inner tensors as outputs. `power`: small faults,
planted in the networks before they are folded; which share is caught, beside fixed limits that are in use elsewhere. A
fault counts as visible where its effect in float64 is more than the error that the original makes anyway. `small`:
sound networks with 1 to 4 output numbers, of which the judge may refuse none, and the same faults in some of them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

import bnfold
from bnfold.judge.criteria.criterion import EPS, FLOOR, PARTS, PEAK, SKIPPED, Criterion, Errors, apart, facts, least_rms
from bnfold.judge.criteria.inputs import KINDS, Array, Feed, feeds
from bnfold.judge.judge import Hearing, Nudges
from bnfold.judge.subjects.runners import OrtRunner, ReferenceRunner
from bnfold.judge.subjects.subject import OnnxSubject
from bnfold.limits import MULTIPLE
from tests.zoo import ZOO

from .small_networks import Small

MODELS = Path(__file__).parents[1] / "models"
PLACES = 6
"""Faults of each type in each network."""
FIXED = {"1e-3": 1e-3, "1e-4": 1e-4, "1e-5": 1e-5}
"""Largest difference over largest magnitude."""


def networks() -> Iterator[tuple[str, ModelProto]]:
    """Every network, with gammas of one sign, and of both with zeros among them."""
    for name in sorted(ZOO):
        yield name, ZOO[name]()
        yield f"{name} (both signs)", ZOO[name](signs="both", zero_gamma=0.1)
    for path in sorted(MODELS.glob("*.onnx")):
        yield path.stem, onnx.load(path)


# --- the distribution


def distribution(seeds: int = 2) -> None:
    """Percentiles of the ratios: of the root mean squares, the largest errors, and the worst channel."""
    found: dict[str, list[float]] = defaultdict(list)
    worst: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for name, model in networks():
            onnx.save(model, paths[0])
            for leftovers in ("fast", "all"):
                bnfold.fold(paths[0], out=paths[1], verify=False, leftovers=leftovers)
                for seed in range(seeds):
                    for entry in bnfold.verify(*paths, seed=seed, kinds=tuple(KINDS)).outputs:
                        for measure in entry.measures:
                            if measure.name.endswith("ratio") and "noise" not in measure.name:
                                found[measure.name].append(measure.value)
                                worst.append((measure.value, f"{measure.name}: {name}, {entry.kind}, {leftovers}"))
            print(f"{name}: {max(v for v, _ in worst):.2f}", flush=True)
    _percentiles(found, worst)


def channels(tensors: int = 5) -> None:
    """Percentiles of the ratio of the worst channel, for inner tensors that were made outputs."""
    found: dict[str, list[float]] = defaultdict(list)
    worst: list[tuple[float, str]] = []
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.onnx", "b.onnx")]
        for name, model in networks():
            inner = _inner(model)
            for leftovers in ("fast", "all") if inner else ():
                chosen = rng.choice(len(inner), min(tensors, len(inner)), replace=False)
                onnx.save(_exposed(model, [inner[i] for i in sorted(chosen)]), paths[0])
                bnfold.fold(paths[0], out=paths[1], verify=False, leftovers=leftovers)
                for value, where in _channels(*paths):
                    found["part ratio"].append(value)
                    worst.append((value, f"{name}, {where}, {leftovers}"))
            print(f"{name}: {max((v for v, _ in worst), default=0):.2f}", flush=True)
    _percentiles(found, worst)


def _inner(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """Tensors with channels and space."""
    outputs = {name for node in model.graph.node for name in node.output}
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    return [
        value
        for value in known
        if value.name in outputs
        and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) >= 3
    ]


def _exposed(model: ModelProto, more: list[onnx.ValueInfoProto]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(more)
    return copy


def _channels(reference: Path, candidate: Path) -> Iterator[tuple[float, str]]:
    """The ratio of each output with channels on each kind of inputs."""
    subject, runners = OnnxSubject(reference), (OrtRunner(reference), OrtRunner(candidate))
    specs = subject.specs()
    shapes = {s.name: tuple(d if isinstance(d, int) else 2 for d in s.shape) for s in specs}
    for kind, feed in feeds(specs, shapes, 0):
        a, b, exact = runners[0].run(feed), runners[1].run(feed), subject.exact(feed)
        for name, value in a.items():
            ratio = apart(value, b[name], exact[name], value.dtype.name)
            if ratio > 0:
                yield ratio, f"{name}, {kind}"


def _percentiles(found: dict[str, list[float]], worst: list[tuple[float, str]]) -> None:
    print(f"\n| | comparisons | median | 90 % | 99 % | 99.9 % | largest |\n|---|{'---:|' * 6}")
    for name, values in found.items():
        cells = " | ".join(f"{value:.2f}" for value in np.percentile(values, [50, 90, 99, 99.9, 100]))
        print(f"| {name} | {len(values)} | {cells} |")
    print("\n".join(f"{value:.2f} {where}" for value, where in sorted(worst, reverse=True)[:8]))


# --- the power


Fault = Callable[[ModelProto, np.random.Generator], bool]


def _tensors(model: ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _layers(model: ModelProto) -> list[NodeProto]:
    known = _tensors(model)
    return [n for n in model.graph.node if n.op_type in ("Conv", "Gemm") and n.input[1] in known]


def _norms(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def _change(model: ModelProto, name: str, edit: Callable[[Array], None]) -> bool:
    tensor = _tensors(model)[name]
    before = numpy_helper.to_array(tensor)
    value = before.copy()
    edit(value)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return not np.array_equal(before, value)


def weight(model: ModelProto, rng: np.random.Generator) -> bool:
    """One weight of a layer off by a hundredth."""
    layer = _pick(_layers(model), rng)

    def edit(value: Array) -> None:
        value.flat[rng.integers(value.size)] *= 1.01

    return layer is not None and _change(model, layer.input[1], edit)


def swapped(model: ModelProto, rng: np.random.Generator) -> bool:
    """Two output channels of a layer swapped."""
    layer = _pick(_layers(model), rng)

    def edit(value: Array) -> None:
        if len(value) > 1:
            pair = rng.choice(len(value), 2, replace=False)
            value[pair] = value[pair[::-1]]

    return layer is not None and _change(model, layer.input[1], edit)


def epsilon(model: ModelProto, rng: np.random.Generator) -> bool:
    """The eps of a norm ten times as large."""
    norm = _pick(_norms(model), rng)
    if norm is None:
        return False
    old = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    kept = [a for a in norm.attribute if a.name != "epsilon"]
    del norm.attribute[:]
    norm.attribute.extend([*kept, helper.make_attribute("epsilon", old * 10)])
    return True


def statistics(model: ModelProto, rng: np.random.Generator) -> bool:
    """Mean and variance of another norm of the same width."""
    norms = _norms(model)
    sizes = {n.output[0]: _tensors(model)[n.input[3]].dims[0] for n in norms}
    pairs = [(a, b) for a in norms for b in norms if a is not b and sizes[a.output[0]] == sizes[b.output[0]]]
    if not pairs:
        return False
    a, b = pairs[rng.integers(len(pairs))]
    a.input[3], a.input[4] = b.input[3], b.input[4]
    return True


def gamma(model: ModelProto, rng: np.random.Generator) -> bool:
    """The sign of one gamma."""
    norm = _pick(_norms(model), rng)

    def edit(value: Array) -> None:
        value.flat[rng.integers(value.size)] *= -1

    return norm is not None and _change(model, norm.input[1], edit)


def offset(model: ModelProto, rng: np.random.Generator) -> bool:
    """One beta forgotten."""
    norm = _pick(_norms(model), rng)

    def edit(value: Array) -> None:
        value.flat[rng.integers(value.size)] = 0

    return norm is not None and _change(model, norm.input[2], edit)


def border(model: ModelProto, rng: np.random.Generator) -> bool:
    """A padded conv sees the edge repeated in place of zeros."""
    padded = [n for n in _layers(model) if any(a.name == "pads" and any(a.ints) for a in n.attribute)]
    layer = _pick(padded, rng)
    if layer is None:
        return False
    pads = next(a for a in layer.attribute if a.name == "pads")
    half = len(pads.ints) // 2
    around = [0, 0, *pads.ints[:half], 0, 0, *pads.ints[half:]]
    model.graph.initializer.append(numpy_helper.from_array(np.array(around, np.int64), "fault_pads"))
    place = list(model.graph.node).index(layer)
    pad = helper.make_node("Pad", [layer.input[0], "fault_pads"], ["fault_padded"], mode="edge")
    layer.input[0] = "fault_padded"
    pads.ints[:] = [0] * len(pads.ints)
    model.graph.node.insert(place, pad)
    return True


def _pick(nodes: list[NodeProto], rng: np.random.Generator) -> NodeProto | None:
    return nodes[rng.integers(len(nodes))] if nodes else None


FAULTS: list[Fault] = [weight, swapped, epsilon, statistics, gamma, offset, border]


@dataclass
class Tally:
    """Of one type of faults: how many, how many visible in float64, and how many of each were caught by what."""

    planted: int = 0
    visible: int = 0
    clear: int = 0
    caught: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    visibly: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    clearly: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class Remembered(Nudges):
    """Runs the reference with other weights once for each of the feeds, which must live as long as it does."""

    known: dict[int, Any] = field(default_factory=dict)

    def runs(self, feed: Feed) -> Iterator[tuple[float, dict[str, Array]]]:
        """As the runs of the first time."""
        runs, made = self.known.setdefault(id(feed), (super().runs(feed), []))
        yield from made
        for run in runs:
            made.append(run)
            yield run


@dataclass
class Court(Hearing):
    """A hearing that knows the reference in float64. `known`: by kind of inputs."""

    known: dict[str, dict[str, Array]] = field(default_factory=dict)

    def _exact(self, feed: Feed, kind: str) -> dict[str, Array]:
        return self.known[kind]


class Bench:
    """A network, what it gives in float32 and in float64, and the hearing that a candidate gets."""

    def __init__(self, path: Path) -> None:
        self.subject, self.runner = OnnxSubject(path), OrtRunner(path)
        specs = self.subject.specs()
        shapes = {s.name: tuple(d if isinstance(d, int) else 2 for d in s.shape) for s in specs}
        self.feeds: dict[str, Feed] = dict(feeds(specs, shapes, 0))
        self.plain = {kind: self.runner.run(feed) for kind, feed in self.feeds.items()}
        self.exact = {kind: self.subject.exact(feed) for kind, feed in self.feeds.items()}
        nudges = Remembered(self.subject, self.runner, 0)
        self.hearing = Court(self.subject, nudges, Criterion(), lambda stage: None, known=self.exact)

    def verdicts(self, candidate: Path) -> dict[str, bool]:
        """Whether a model is caught, by each rule."""
        runner = OrtRunner(candidate)
        hearing = replace(self.hearing, failed=False, theirs=Nudges(OnnxSubject(candidate), runner, 0))
        caught = dict.fromkeys(["judge", *FIXED], False)
        for kind, feed in self.feeds.items():
            found = runner.run(feed)
            if not caught["judge"]:
                entries = hearing.compare(self.plain[kind], found, kind, feed)
                caught["judge"] = any(not entry.passed and entry.note != SKIPPED for entry in entries)
            for name, a in self.plain[kind].items():
                for label, limit in FIXED.items():
                    caught[label] |= facts(name, kind, a, found[name]).relative > limit
        return caught

    def effect(self, faulty: Path) -> float:
        """The largest change that a fault makes in float64, over the original's own error: root mean squares."""
        subject, most = OnnxSubject(faulty), 0.0
        for kind, feed in self.feeds.items():
            changed = subject.exact(feed)
            for name, exact in self.exact[kind].items():
                own = Errors.of(self.plain[kind][name], exact).rms
                floor = least_rms(exact.size) * EPS[self.plain[kind][name].dtype.name] * float(np.abs(exact).max())
                most = max(most, Errors.of(changed[name], exact).rms / max(own, floor, 1e-300))
        return most


def power() -> None:
    """A table of what is caught."""
    tallies: dict[str, Tally] = {fault.__name__: Tally() for fault in FAULTS}
    sound = Tally()
    with tempfile.TemporaryDirectory() as folder:
        original, faulty, folded = (Path(folder) / f"{name}.onnx" for name in ("original", "faulty", "folded"))
        for name, model in networks():
            onnx.save(model, original)
            bench = Bench(original)
            bnfold.fold(original, out=folded, verify=False)
            sound.planted += 1
            for rule, refused in bench.verdicts(folded).items():
                sound.caught[rule] += refused
            for which, fault in enumerate(FAULTS):
                for place in range(PLACES):
                    copy = ModelProto()
                    copy.CopyFrom(model)
                    if not fault(copy, np.random.default_rng([which, place])):
                        continue
                    onnx.save(copy, faulty)
                    bnfold.fold(faulty, out=folded, verify=False)
                    _count(tallies[fault.__name__], bench.effect(faulty), bench.verdicts(folded))
            caught = sum(t.caught["judge"] for t in tallies.values())
            print(f"{name}: {caught} of {sum(t.planted for t in tallies.values())}", flush=True)
    _table(tallies, sound)


def _count(tally: Tally, effect: float, verdicts: dict[str, bool]) -> None:
    tally.planted += 1
    tally.visible += effect > 1
    tally.clear += effect > 2 * MULTIPLE
    for rule, caught in verdicts.items():
        tally.caught[rule] += caught
        tally.visibly[rule] += caught and effect > 1
        tally.clearly[rule] += caught and effect > 2 * MULTIPLE


def _table(tallies: dict[str, Tally], sound: Tally, rules: Sequence[str] = ("judge", *FIXED)) -> None:
    refused = ", ".join(f"{sound.caught[rule]} by {'the judge' if rule == 'judge' else rule}" for rule in rules)
    print(f"\n{sound.planted} sound networks, refused: {refused}\n" if sound.planted else "")
    heads = [f"caught by {'the judge' if rule == 'judge' else f'limit {rule}'}" for rule in rules]
    print(f"| fault | planted | {' | '.join(heads)} | above rounding | of these caught | above {2 * MULTIPLE:g} times "
          f"rounding | of these caught |\n|---|{'---:|' * (len(rules) + 5)}")  # fmt: skip
    total = Tally()
    for tally in tallies.values():
        total.planted += tally.planted
        total.visible += tally.visible
        total.clear += tally.clear
        for rule in rules:
            total.caught[rule] += tally.caught[rule]
            total.visibly[rule] += tally.visibly[rule]
            total.clearly[rule] += tally.clearly[rule]
    for name, tally in [*tallies.items(), ("all", total)]:
        said = FAULT_NAMES.get(name, name)
        shares = " | ".join(_share(tally.caught[rule], tally.planted) for rule in rules)
        above = f"{tally.visible} | {_share(tally.visibly['judge'], tally.visible)}"
        print(f"| {said} | {tally.planted} | {shares} | {above}"
              f" | {tally.clear} | {_share(tally.clearly['judge'], tally.clear)} |")  # fmt: skip


FAULT_NAMES = {fault.__name__: (fault.__doc__ or "").strip().rstrip(".") for fault in FAULTS}


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


# --- small networks


EXACT = {"offset": 1e-7}
"""How far the fold of a small network may be from it when both are in float64, beside the largest output: 1e-10, and
more where means lie 1e8 deviations from 0, which costs the original half of the digits of float64."""
DRAWS = 8
"""Inputs that the own error of a few numbers is measured on: that on one says little."""


def small(count: int, first: int = 0) -> None:
    """How many folds of small networks are refused, all of them right in float64, and faults in some of them."""
    refused: dict[tuple[str, str], int] = defaultdict(int)
    tallies: dict[str, Tally] = {fault.__name__: Tally() for fault in FAULTS}
    furthest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            network = Small.of(seed)
            furthest = max(furthest, _distance(network))
            try:
                bnfold.fold(network.model())
            except bnfold.VerificationError as error:
                refused[network.numbers, network.end] += 1
                print(f"refused: {network}: {error}", flush=True)
            if seed % 31 == 0 and network.end != "ArgMax":
                _plant(network, tallies, Path(folder))
            if seed % 500 == 499:
                print(f"{seed + 1}: refused {sum(refused.values())}, furthest {furthest:.1e}", flush=True)
    said = f"{count} sound networks (at most {furthest:.1e} from the original in float64)"
    print(f"\n{said}, {sum(refused.values())} refused {dict(refused) or ''}")
    _table(tallies, Tally(), ["judge"])


def _distance(network: Small) -> float:
    """Of a network and its fold, both in float64. ValueError where the fold is not sound, or nothing was folded."""
    model = network.model(np.float64)
    folded = bnfold.fold(model, verify=False)
    if not folded.plan.counts()["folded"]:
        raise ValueError(f"{network}: nothing was folded")
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(network.seed).standard_normal(shape)
    a, b = (ReferenceRunner(m).run({"x": x})["y"] for m in (model, folded.model))
    found = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300))
    if not found <= EXACT.get(network.body, 1e-10):
        raise ValueError(f"{network}: the fold is {found:.1e} away in float64")
    return found


def _plant(network: Small, tallies: dict[str, Tally], folder: Path) -> None:
    original, faulty, folded = (folder / f"{name}.onnx" for name in ("original", "faulty", "folded"))
    onnx.save(network.model(), original)
    bench = Bench(original)
    draws = [feed for draw in range(DRAWS) for kind, feed in feeds(bench.subject.specs(), {
        name: value.shape for name, value in bench.feeds["normal"].items()}, 1, draw) if kind == "normal"]  # fmt: skip
    # one error of a few numbers says little: that of several draws
    errors = [Errors.of(bench.runner.run(feed)["y"], bench.subject.exact(feed)["y"]).rms for feed in draws]
    feed, truth, plain = (of["normal"] for of in (bench.feeds, bench.exact, bench.plain))
    unit = least_rms(truth["y"].size) * EPS[plain["y"].dtype.name] * float(np.abs(truth["y"]).max())
    own = max(unit, float(np.sqrt(np.mean(np.square(errors)))), Errors.of(plain["y"], truth["y"]).rms)
    for which, fault in enumerate(FAULTS):
        copy = network.model()
        if not fault(copy, np.random.default_rng([which, network.seed])):
            continue
        onnx.save(copy, faulty)
        bnfold.fold(faulty, out=folded, verify=False)
        effect = Errors.of(OnnxSubject(faulty).exact(feed)["y"], truth["y"]).rms / own
        caught = bench.verdicts(folded)["judge"]
        if effect > 2 * MULTIPLE and not caught:
            print(f"missed: {fault.__name__}, {effect:.0f} times rounding, in {network}", flush=True)
        _count(tallies[fault.__name__], effect, {"judge": caught})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["distribution", "channels", "power", "small"])
    parser.add_argument("--count", type=int, default=6000, help="of small networks")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    chosen = parser.parse_args()
    print(f"multiple {MULTIPLE:g}, peak {PEAK * MULTIPLE:g}, channels {PARTS * MULTIPLE:g}, floors {FLOOR}")
    if chosen.what == "small":
        small(chosen.count, chosen.first)
    else:
        {"distribution": distribution, "channels": channels, "power": power}[chosen.what]()
