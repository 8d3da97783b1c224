"""How one pass is shared out: which label each step has, and which worker reads which shards."""

import random
from collections.abc import Mapping, Sequence
from typing import Literal

from manifests.errors import ConfigError
from manifests.labels import Label
from stages.pair import Shard

Counts = Mapping[Label, int]


def plan_steps(
    counts: Sequence[Counts], batch_size: int, order: Literal["interleaved", "sequential"], seed: int
) -> tuple[Label, ...]:
    """Return the label of every step of a pass.

    Args:
        counts: Rows of each label that each worker has; the worker with the fewest decides how many steps there are.
        batch_size: Rows per step of one worker.
        order: Labels mixed at random, or all risky steps first.
        seed: Of this pass, the same on all workers.

    Raises:
        ConfigError: The safe rows do not fill a single batch, or no label does.
    """
    labels: list[Label] = []
    for label in (Label.RISKY, Label.SAFE):
        rows = [count.get(label, 0) for count in counts]
        steps = min(rows) // batch_size
        if any(rows) and steps == 0 and (label == Label.SAFE or not any(count.get(Label.SAFE) for count in counts)):
            raise ConfigError(
                f"{sum(rows)} {label} rows do not fill one batch of {batch_size} rows on each of {len(counts)} workers "
                f"(fewest: {min(rows)}); lower train_batch_size, or let more rows be {label}"
            )
        labels += [label] * steps
    if order == "interleaved":
        random.Random(seed).shuffle(labels)  # noqa: S311  # an order, no secret
    return tuple(labels)


def share_shards(shards: Sequence[Shard], num_rows: Mapping[str, int], num_workers: int) -> list[tuple[Shard, ...]]:
    """Deal shards out to workers so that all get about as many rows: the largest first, each to whoever has least.

    Raises:
        ConfigError: There are fewer shards than workers.
    """
    if len(shards) < num_workers:
        raise ConfigError(f"{num_workers} workers need as many shards, the dataset has {len(shards)}; lower --train-workers")
    hands: list[list[Shard]] = [[] for _ in range(num_workers)]
    held = [0] * num_workers
    for shard in sorted(shards, key=lambda s: (-num_rows[s.name], s.name)):
        least = held.index(min(held))
        hands[least].append(shard)
        held[least] += num_rows[shard.name]
    return [tuple(hand) for hand in hands]
