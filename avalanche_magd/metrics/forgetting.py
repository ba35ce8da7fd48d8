"""How a generator forgets: distances by experience, when learnt and later.

A distance over all classes hides it: it stays small while the newest classes are drawn well.

References:
    Masip et al. 2023, *Continual learning of diffusion models with generative distillation*,
    arXiv 2311.14028 (distances averaged over experiences).
"""

from collections.abc import Mapping
from typing import Any


def average_distance(now: Mapping[Any, float]) -> float:
    """Mean distance over the experiences; AFID, if the distance is FID.

    Args:
        now: distance of each experience's images.

    Raises:
        ValueError: there are none.
    """
    if not now:
        raise ValueError("average_distance needs an experience.")
    return sum(now.values()) / len(now)


def generative_forgetting(when_learnt: Mapping[Any, float], now: Mapping[Any, float]) -> float:
    """By how much distances have grown since their experiences were learnt, on average.

    Args:
        when_learnt: distance of each earlier experience's images when it had just been learnt;
            leave out the newest, which had no time to be forgotten.
        now: distances at present.

    Raises:
        ValueError: no experience is in both.
    """
    both = when_learnt.keys() & now.keys()
    if not both:
        raise ValueError("generative_forgetting needs an earlier experience.")
    return sum(now[each] - when_learnt[each] for each in both) / len(both)
