"""How the vectors of a scout are split: it has learned whatever backdoors there are, and is given up afterwards."""

from typing import Any

from pipeline.config.catalogue import RunConfig


def scouted(config: RunConfig) -> RunConfig:
    """Return the settings of a scout's round: what `[split.limits]` leaves open, `[scout]` says.

    No cosine is believed of a model that has seen the poison: its crowds, copies, discords and their looks decide, unless a
    share, a least cosine or the published rule was asked for.
    """
    split, signals, train = config.split, config.signals, config.train
    near = signals.near_copy_cosine or train.scout_near_copy_cosine or None
    chosen: dict[str, Any] = {
        "crowded_tail": split.crowded_tail or (0.0 if split.crowded_share else train.scout_crowded_tail),
        "max_image_repeats": split.max_image_repeats or train.scout_image_repeats,
        "max_look_alikes": split.max_look_alikes or (train.scout_image_repeats if signals.agreement_rows else None),
        "max_near_copies": split.max_near_copies or (train.scout_near_copies if near else None),
        "discord_share": split.discord_share or (train.scout_discord_share if signals.agreement_rows else 0.0),
        "look_tail": split.look_tail or (train.scout_look_tail if signals.agreement_rows else 0.0),
    }
    if split.rule in ("calibrated", "monotone"):
        chosen |= {"rule": "keep-share", "keep_share": 1.0}
    update = {
        "split": split.model_copy(update=chosen),
        "signals": signals.model_copy(update={"signals": "all", "near_copy_cosine": near}),
        "embed": config.embed.model_copy(update={"keep_embeddings": True}),
    }
    return config.model_copy(update=update)
