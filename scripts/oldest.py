"""Prints the oldest versions that pyproject.toml allows, as constraints for pip; see `make oldest`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lower_bounds() -> dict[str, str]:
    """The least version of everything that the package, its tests or its models need, by name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return dict(_bounds(chain(project["dependencies"], *project["optional-dependencies"].values())))


def _bounds(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        bound = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        assert bound, f"{requirement} has no lower bound"
        yield bound[1], bound[2]


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lower_bounds().items()))
