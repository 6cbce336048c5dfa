"""The plan: what becomes of every norm, and the edits that make it so. A value: it prints, compares, goes to JSON.

Edits name ops by their position in the neutral graph (`op`) and, for people, by `name`. Vectors are float64 and survive
JSON bit by bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import PlanError
from .graph import Reason

SCHEMA = 1
Vector = npt.NDArray[np.float64]


class _Value:
    """Equality field by field, with arrays compared by content."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_alike(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


def _alike(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)
    return a == b


@dataclass(frozen=True, eq=False)
class Rescale(_Value):
    """New weights for a linear op: `W' = diag(p_out) W diag(u_in)`, `b' = p_out * (b + sum_taps(W) t_in) + q_out`.

    `p_out`, `q_out` have one entry for each output channel, `u_in`, `t_in` for each input channel; None: all 1, or 0.
    Where `mix`, `own` and `add` are given, one entry for each output channel, the layer L becomes `mix * L(x) + own *
    x + add` before that: it takes up a copy of its own input.
    """

    op: int
    name: str
    p_out: Vector | None = None
    q_out: Vector | None = None
    u_in: Vector | None = None
    t_in: Vector | None = None
    mix: Vector | None = None
    own: Vector | None = None
    add: Vector | None = None


@dataclass(frozen=True, eq=False)
class Merge(_Value):
    """The ops `drop` go; the sum of the outputs of the linear ops `layers` takes the place of the output of `op`."""

    op: int
    name: str
    layers: tuple[int, ...]
    drop: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Remove(_Value):
    """The op goes, and its two tensors become one; `keep` says whose values and name it has: "input" or "output"."""

    op: int
    name: str
    keep: str = "output"


@dataclass(frozen=True, eq=False)
class Replace(_Value):
    """The op becomes `form` along `axis`.

    "add": `scale * x + offset` with scale 1 or -1. "mul": `x * scale`. "bn": `x * scale + offset`, to be computed as
    `(x - centre) * scale + ...`, which loses no digits where x lies far from zero. "conv": `x * scale + offset`, a
    depthwise convolution. "max": `max(x, offset)`. "clip": `min(max(x, scale * low + offset), scale * high + offset)`.
    "constant": the same op, with the constant `scale * c + offset` in place of its constant c.
    """

    op: int
    name: str
    form: str
    axis: int
    scale: Vector
    offset: Vector
    centre: Vector | None = None


Edit = Rescale | Remove | Replace | Merge


@dataclass(frozen=True)
class Conditioning:
    """How delicate a fold is.

    `min_var`: smallest variance (with eps). `dead_channels`: channels with gamma 0. `precision_cost`: the largest
    `|mean| / sqrt(var)` of the norm's input as the folded model holds it, and `original_cost` as the original does: the
    factor by which the mean outweighs the signal, and so eats its relative precision. None where not known.
    """

    min_var: float | None = None
    dead_channels: int = 0
    precision_cost: float | None = None
    original_cost: float | None = None


@dataclass(frozen=True)
class BatchNorm:
    """One batch norm, or constant Mul/Add that stands for one, and its fate.

    `verdict`: "folded" (no op is left), "reduced" (one cheaper op is left, `form` names it) or "kept". `into` names the
    layers that took it up. `reason` is None for "folded".
    """

    name: str
    op_type: str
    input: str
    output: str
    channels: int
    verdict: str
    form: str = ""
    into: tuple[str, ...] = ()
    reason: Reason | None = None
    conditioning: Conditioning = field(default_factory=Conditioning)

    @property
    def said(self) -> str:
        """The verdict in a few words."""
        form = "depthwise conv" if self.form == "conv" else self.form
        return f"reduced to {form}" if self.verdict == "reduced" else self.verdict


@dataclass(frozen=True)
class OtherNorm:
    """A norm that is no batch norm (LRN): listed, not folded."""

    name: str
    op_type: str
    input: str
    output: str


Change = tuple[int, int]
"""A number before and after."""


@dataclass(frozen=True)
class LayerMerge:
    """Linear layers that become one, or that look as if they could.

    `kind`: "sum", layers of one tensor whose outputs are added, or "chain", layers in a row. `nodes`: the layers with
    what stands between them. `verdict`: "merged", and `into` names the layer that is left, or "left", and `reason` says
    why. `multiplications` of one run; `bytes` of weights.
    """

    kind: str
    nodes: tuple[str, ...]
    verdict: str
    into: str = ""
    reason: Reason | None = None
    multiplications: Change = (0, 0)
    bytes: Change = (0, 0)


@dataclass(frozen=True)
class ChannelDrop:
    """Channels that hold a constant, or that nobody reads, in one group of tensors.

    `tensor`: where they are made; `layers`: those whose weights hold them. Of `channels`, `empty` carry nothing, and
    `dropped` of these go. `verdict`: "dropped", or "left" where none goes. `reason`: why empty ones stay.
    `multiplications`, `bytes`: of these layers' weights.
    """

    tensor: str
    layers: tuple[str, ...]
    channels: int
    empty: int
    dropped: int
    verdict: str
    reason: Reason | None = None
    multiplications: Change = (0, 0)
    bytes: Change = (0, 0)


@dataclass(frozen=True)
class Plan:
    """What becomes of every norm of a model (in the order of the graph), and the edits that make it so.

    `merges`, `drops`: what becomes of linear layers and of channels once the norms are gone. `notes`: what a reader of
    the plan should know of the model as a whole, in sentences. `moved`: annotated tensors that will hold other values,
    so that their annotations no longer hold.
    """

    model: str
    batch_norms: tuple[BatchNorm, ...] = ()
    others: tuple[OtherNorm, ...] = ()
    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    merges: tuple[LayerMerge, ...] = ()
    drops: tuple[ChannelDrop, ...] = ()
    shrunk: tuple[Change, Change] = ((0, 0), (0, 0))
    """Multiplications and bytes of all layers with weights, before and after channels are dropped."""

    KINDS: ClassVar[Mapping[str, type[Edit]]] = {
        "rescale": Rescale,
        "remove": Remove,
        "replace": Replace,
        "merge": Merge,
    }

    def counts(self) -> dict[str, int]:
        """How many batch norms are there, folded, reduced, kept."""
        verdicts = Counter(bn.verdict for bn in self.batch_norms)
        return {"batch_norms": len(self.batch_norms), **{v: verdicts[v] for v in ("folded", "reduced", "kept")}}

    @property
    def changed(self) -> bool:
        """Whether the model becomes another."""
        return bool(self.edits or self.merged or self.dropped)

    @property
    def merged(self) -> tuple[LayerMerge, ...]:
        """The merges that are carried out."""
        return tuple(merge for merge in self.merges if merge.verdict == "merged")

    @property
    def dropped(self) -> tuple[ChannelDrop, ...]:
        """The drops that are carried out."""
        return tuple(drop for drop in self.drops if drop.dropped)

    def with_merges(self, merges: Iterable[LayerMerge]) -> Plan:
        """With what became of layers; norms that a merged layer took up are gone."""
        found = tuple(merges)
        into = {node: merge.into for merge in found if merge.verdict == "merged" for node in merge.nodes}
        norms = [
            replace(bn, verdict="folded", form="", into=(*bn.into, into[bn.name]), reason=None)
            if bn.name in into and bn.verdict != "folded" and bn.form not in ("max", "clip") else bn
            for bn in self.batch_norms
        ]  # fmt: skip
        return replace(self, batch_norms=tuple(norms), merges=found)

    @property
    def held(self) -> set[str]:
        """The norms that no merge may take up, and the tensors that they give: it would cost the digits that they keep.

        Also those that were to be left alone.
        """
        codes = ("skipped", "precision", "range")
        left = [bn for bn in self.batch_norms if bn.reason is not None and bn.reason.code in codes]
        return {name for bn in left for name in (bn.name, bn.output)}

    @property
    def all_kept(self) -> bool:
        """Whether there are norms, and every one stays as it is."""
        return bool(self.batch_norms) and all(norm.verdict == "kept" for norm in self.batch_norms)

    def __repr__(self) -> str:
        return f"Plan({self.model!r}: {self.headline()})"

    @property
    def lines(self) -> tuple[BatchNorm, ...]:
        """The norms as reports show them: constants in a row, which stand for one norm, are one."""
        readers = Counter(bn.input for bn in self.batch_norms)
        runs: list[list[BatchNorm]] = []
        ends: dict[str, list[BatchNorm]] = {}
        for bn in self.batch_norms:
            run = ends.get(bn.input, []) if bn.op_type != "BatchNormalization" and readers[bn.input] == 1 else []
            if not run or run[-1].channels != bn.channels:
                run = []
                runs.append(run)
            run.append(bn)
            if bn.op_type != "BatchNormalization":
                ends[bn.output] = run
        return tuple(_as_one(run) for run in runs)

    def headline(self) -> str:
        """One line that counts; norms written as constants of Mul, Add and their kin are told apart."""
        lines = self.lines
        counts = Counter(bn.verdict for bn in lines)
        norms = sum(bn.op_type == "BatchNormalization" for bn in lines)
        rest = len(lines) - norms
        what = f"{norms} batch norm{'' if norms == 1 else 's'}"
        what += f" and {rest} constant{'' if rest == 1 else 's'} like them" if rest else ""
        return f"{what}: {counts['folded']} folded, {counts['reduced']} reduced, {counts['kept']} kept"

    def gains(self) -> list[str]:
        """What merging and dropping change, a line each; none where they change nothing."""
        merged, dropped = self.merged, self.dropped
        lines = []
        if merged:
            groups = "1 group" if len(merged) == 1 else f"{len(merged)} groups"
            parts = [(sum(m.multiplications[i] for m in merged), sum(m.bytes[i] for m in merged)) for i in (0, 1)]
            counts, sizes = zip(*parts, strict=True)
            lines.append(f"layers merged in {groups}: multiplications {change(counts)}, bytes {change(sizes)}")
        if dropped:
            count, total = sum(drop.dropped for drop in dropped), sum(drop.channels for drop in dropped)
            said = f"multiplications {change(self.shrunk[0])}, bytes of weights {change(self.shrunk[1])}"
            lines.append(f"{count} of {total} channels dropped: {said}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; `schema` numbers its layout."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "summary": self.counts(),
            "batch_norms": [_plain(bn) for bn in self.batch_norms],
            "others": [_plain(other) for other in self.others],
            "edits": [_edit_to_dict(edit) for edit in self.edits],
            "notes": list(self.notes),
            "moved": list(self.moved),
            "merges": [_plain(merge) for merge in self.merges],
            "drops": [_plain(drop) for drop in self.drops],
            "shrunk": [list(numbers) for numbers in self.shrunk],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` gave; PlanError where the data are none."""
        if data.get("schema") != SCHEMA:
            raise PlanError(f"plan: schema {data.get('schema')!r} found, {SCHEMA} expected; make the plan anew")
        try:
            return cls(
                data["model"],
                tuple(_entry(BatchNorm, entry) for entry in data["batch_norms"]),
                tuple(OtherNorm(**entry) for entry in data["others"]),
                tuple(_edit(entry) for entry in data["edits"]),
                tuple(data.get("notes", ())),
                tuple(data.get("moved", ())),
                tuple(_entry(LayerMerge, entry) for entry in data.get("merges", ())),
                tuple(_entry(ChannelDrop, entry) for entry in data.get("drops", ())),
                _pairs(data.get("shrunk", [[0, 0], [0, 0]])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"plan: not the layout of schema {SCHEMA} ({error!r})") from error

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal plan back."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; PlanError where the text is none."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"plan: not JSON ({error})") from error
        if not isinstance(data, dict):
            raise PlanError("plan: a JSON object expected")
        return cls.from_dict(data)

    def __str__(self) -> str:
        """A line for each norm; `bnfold.report` has the full table."""
        lines = [f"{self.model}: {self.headline()}", *(f"  {_line(bn)}" for bn in self.lines)]
        lines += [f"  {said}" for said in self.gains()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _as_one(run: list[BatchNorm]) -> BatchNorm:
    """Constants in a row as the norm that they stand for: reduced where some of them go, to those that stay."""
    if len(run) == 1:
        return run[0]
    left = [bn for bn in run if bn.verdict != "folded"]
    gone = not left or len(left) < len(run)
    return replace(
        run[0],
        name=" + ".join(bn.name for bn in run),
        op_type=", ".join(bn.op_type for bn in run),
        output=run[-1].output,
        verdict=("reduced" if left else "folded") if gone else "kept",
        form=" and ".join(bn.form or bn.op_type.lower() for bn in left) if gone else "",
        into=tuple(dict.fromkeys(name for bn in run for name in bn.into)),
        reason=next((bn.reason for bn in left if bn.reason), None),
    )


def change(numbers: Change) -> str:
    """A number before and after, in words."""
    return f"{numbers[0]:,} -> {numbers[1]:,}" if numbers[0] != numbers[1] else f"{numbers[0]:,}"


def _line(bn: BatchNorm) -> str:
    into = f" into {', '.join(bn.into)}" if bn.into else ""
    why = f" [{bn.reason.code}] {bn.reason}" if bn.reason else ""
    return f"{bn.name}: {bn.said}{into}{why}"


def _plain(value: Any) -> dict[str, Any]:
    """A frozen dataclass as a dictionary; nested ones too."""
    plain = {}
    for f in fields(value):
        item = getattr(value, f.name)
        plain[f.name] = _plain(item) if hasattr(item, "__dataclass_fields__") else _listed(item)
    return plain


def _listed(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return item.tolist()
    return list(item) if isinstance(item, tuple) else item


def _pairs(numbers: Sequence[Sequence[int]]) -> tuple[Change, Change]:
    (a, b), (c, d) = numbers
    return (a, b), (c, d)


T = TypeVar("T")


def _entry(cls: Callable[..., T], entry: Mapping[str, Any]) -> T:
    """The value that `_plain` gave: lists are tuples, and reasons and conditionings what they were."""
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    reason = values["reason"]
    values["reason"] = Reason(**reason) if reason else None
    if "conditioning" in values:
        values["conditioning"] = Conditioning(**values["conditioning"])
    return cls(**values)


def _edit_to_dict(edit: Edit) -> dict[str, Any]:
    kind = next(kind for kind, cls in Plan.KINDS.items() if type(edit) is cls)
    return {"kind": kind, **_plain(edit)}


def _edit(entry: Mapping[str, Any]) -> Edit:
    cls: Callable[..., Edit] = Plan.KINDS[entry["kind"]]
    listed = (lambda v: tuple(v)) if cls is Merge else (lambda v: np.array(v, np.float64))
    values = {k: listed(v) if isinstance(v, list) else v for k, v in entry.items() if k != "kind"}
    return cls(**values)
