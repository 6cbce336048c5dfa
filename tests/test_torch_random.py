"""A few random PyTorch networks; `python -m tests.torch_random FIRST COUNT` runs more."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.torch_random import check


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_random_networks(part: int) -> None:
    fates: Counter[str] = Counter()
    for seed in range(20 * part, 20 * part + 20):
        fates += check(seed)
    assert fates["folded"] > 3
