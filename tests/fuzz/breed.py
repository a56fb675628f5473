"""Many inputs from few: parts of two are exchanged, and bytes damaged, in microseconds each."""

import copy
import random
from collections.abc import Sequence
from typing import Any

from damage import damage, places


def breed(rng: random.Random, ancestors: Sequence[Any]) -> Any:
    """A new input out of two of `ancestors`, which are of one kind."""
    return _mix(rng, rng.choice(ancestors), rng.choice(ancestors))


def _mix(rng: random.Random, one: Any, other: Any) -> Any:
    if type(one) is not type(other):
        return rng.choice((one, other))
    if isinstance(one, bytes):
        return damage(one, other, rng.randbytes(5 * rng.randrange(1, 5)))
    if isinstance(one, str):
        return one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]
    if isinstance(one, tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return tuple(_mix(rng, a, b) if rng.random() < 0.5 else a for a, b in pairs)
    if isinstance(one, dict):
        return _graft(rng, one, other)
    if isinstance(one, list | tuple):
        first, second = rng.randrange(len(one) + 1), rng.randrange(len(other) + 1)
        return one[:first] + other[second:]
    if isinstance(one, int) and not isinstance(one, bool):
        return rng.choice((one, other, one + 1, other - 1))
    return rng.choice((one, other))


def _graft(rng: random.Random, one: dict, other: dict) -> dict:
    """`one` with a part of `other`, in its own place or in another."""
    one = copy.deepcopy(one)
    there = list(places(other))
    if there:
        owner, key = rng.choice(there)
        here = list(places(one))
        same = [(o, k) for o, k in here if k == key and type(o) is type(owner)]
        target, at = rng.choice(same if same and rng.random() < 0.7 else here or [(one, "a")])
        target[at] = copy.deepcopy(owner[key])
    return one
