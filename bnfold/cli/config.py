"""Pairs of models to be compared, with their settings: in bnfold.toml, or under [tool.bnfold] in pyproject.toml.

    [tool.bnfold.verify]                # settings for all pairs
    seed = 1

    [[tool.bnfold.pairs]]
    name = "detector"
    reference = "models/detector.onnx"  # from the folder of this file
    candidate = "build/detector.onnx"
    data = "samples/detector.npz"

In bnfold.toml the tables are called `verify` and `pairs`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError

NUMBER = (int, float)
SETTINGS: dict[str, Any] = {
    "device": str, "tf32": bool, "optimise": bool, "multiple": NUMBER, "limit": NUMBER, "atol": NUMBER, "rtol": NUMBER,
    "cosine": NUMBER, "top_k": int, "agreement": NUMBER, "data": str, "samples": int, "seed": int, "kinds": list,
    "shapes": dict, "mean": (int, float, list), "std": (int, float, list), "arch": str, "arch_args": str,
    "candidate_arch": str, "candidate_arch_args": str, "inputs": list, "trust_pickle": bool,
}  # fmt: skip
"""What a pair may set, as `bnfold.verify` takes it, and of which type it is."""
NAMES = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a table",
}  # fmt: skip
TEXTS = ("inputs", "kinds")
"""Lists of texts."""
PATHS = ("reference", "candidate", "data")


@dataclass(frozen=True)
class PairSettings:
    """One pair: a name for reports, and arguments for `bnfold.verify`."""

    name: str
    arguments: dict[str, Any]


def read_config(path: Path) -> list[PairSettings]:
    """The pairs of a file, in its order. UsageError where it cannot be read, or where something in it is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error})") from error
    if path.name == "pyproject.toml":
        data = _table(_table(data, "tool", path), "bnfold", path)
    unknown = set(data) - {"verify", "pairs"}
    if unknown:
        raise UsageError(f"{path}: {min(unknown)!r} is not known; verify (settings for all) and pairs are")
    common = _settings(_table(data, "verify", path), f"{path}: verify")
    pairs = data.get("pairs", [])
    if not isinstance(pairs, list) or not pairs:
        raise UsageError(f"{path}: no pairs in it; [[{'tool.bnfold.' if path.name == 'pyproject.toml' else ''}pairs]]"
                         " with reference and candidate expected")  # fmt: skip
    found = _named([_pair(pair, i, common, path) for i, pair in enumerate(pairs)], pairs)
    names = [pair.name for pair in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two pairs are called {twice!r}")
    return found


def _table(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {name} is {type(value).__name__}, a table expected")
    return value


def _pair(pair: Any, i: int, common: Mapping[str, Any], path: Path) -> PairSettings:
    where = f"{path}: pair {i + 1}"
    if not isinstance(pair, dict):
        raise UsageError(f"{where}: a table expected")
    given = {key: value for key, value in pair.items() if key not in ("name", "reference", "candidate")}
    for key in ("reference", "candidate"):
        if not isinstance(pair.get(key), str):
            raise UsageError(f"{where}: {key} is missing, the path of a model expected")
    arguments = {**common, **_settings(given, where), "reference": pair["reference"], "candidate": pair["candidate"]}
    for key in PATHS:
        if key in arguments:
            arguments[key] = str(path.parent / arguments[key])
    for key in ("arch", "candidate_arch"):  # path/to/net.py:Net
        if key in arguments and arguments[key].rpartition(":")[0].endswith(".py"):
            arguments[key] = str(path.parent / arguments[key])
    if not isinstance(pair.get("name", ""), str):
        raise UsageError(f"{where}: name = {pair['name']!r}: a text expected")
    name = pair.get("name") or f"{Path(pair['reference']).name} : {Path(pair['candidate']).name}"
    return PairSettings(name, arguments)


def _named(found: list[PairSettings], pairs: list[Any]) -> list[PairSettings]:
    """Pairs that were given no name, and whose files are called alike, by the paths of their files."""
    names = [pair.name for pair in found]
    return [
        pair
        if given.get("name") or names.count(pair.name) == 1
        else replace(pair, name=f"{given['reference']} : {given['candidate']}")
        for pair, given in zip(found, pairs, strict=True)
    ]


def _settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings by the names of arguments; `top-k` is `top_k` too."""
    found = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in SETTINGS:
            raise UsageError(f"{where}: {key!r} is not known; one of {', '.join(SETTINGS)} expected")
        if not isinstance(value, SETTINGS[name]) or (isinstance(value, bool) and SETTINGS[name] is not bool):
            wanted = SETTINGS[name] if isinstance(SETTINGS[name], tuple) else (SETTINGS[name],)
            said = " or ".join(NAMES[kind] for kind in wanted if kind is not int or float not in wanted)
            raise UsageError(f"{where}: {key} = {value!r}: {said} expected")
        if name in TEXTS and not all(isinstance(part, str) for part in value):
            raise UsageError(f"{where}: {key} = {value!r}: a list of texts expected")
        found[name] = _shapes(value, f"{where}: {key}") if name == "shapes" else value
    return found


def _shapes(value: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Sizes by input: lists, or text as 1x3x224x224."""
    found = {}
    for name, sizes in value.items():
        parts = sizes.split("x") if isinstance(sizes, str) else sizes
        try:
            found[name] = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            found[name] = (0,)
        if any(size < 1 for size in found[name]) or any(isinstance(part, float | bool) for part in parts):
            raise UsageError(f"{where}.{name}: sizes such as [1, 3, 224, 224] expected")
    return found
