"""Named streams of random numbers: one seed, and each purpose draws from its own stream."""

from __future__ import annotations

import hashlib

import torch


def generator(
    seed: int, purpose: str, device: torch.device | str = "cpu", *, of_split: bool = False
) -> torch.Generator:
    """Return the stream of `purpose` under `seed` on `device`; drawing from it moves no other stream.

    `of_split`: `seed` is the number of a data split instead of a run's seed. The streams of splits are seeded apart
    from those of runs, so that run 3 on split 0 and run 0 on split 3 share neither.
    """
    name, order = (f"tase {purpose} {seed}", "little") if of_split else (f"{seed}/{purpose}", "big")
    # 7 bytes: the largest whole number of bytes that manual_seed takes as a positive int64.
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], order)
    return torch.Generator(device).manual_seed(number)
