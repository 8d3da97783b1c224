"""Settings of the split: a rule with a table of its own, limits of signals, what is not believed; see `stages.settings`."""

from functools import partial
from typing import Final, Literal

from stages.settings import CLOSER, SAFE, Settings, Share, When, setting

_CALIBRATED: Final[tuple[When, ...]] = ({"rule": ("calibrated", "judged", "look-again")}, {"look_again": ()})
_MEASURED: Final[When] = {"rule": ("calibrated", "judged", "monotone", "min-cosine")}
_calibrated = partial(setting, table="split.calibrated", when=_CALIBRATED)
_mixture = partial(setting, table="split.mixture")
_limit = partial(setting, table="split.limits")
_belief = partial(setting, table="split.belief")


class SplitSettings(Settings):
    """How cosines, and signals, become labels (`[split]`)."""

    rule: Literal["calibrated", "judged", "monotone", "published", "keep-share", "min-cosine", "look-again"] = setting(
        "calibrated",
        "measured null and stated mismatch rate (alpha); the same by pairs that people judged (review --sample); monotone "
        "mixture cut; the paper's code; a fixed share; a fixed cosine; the round before, with what weights that trained on it "
        "take back, put out and veto",
    )
    alpha: float = _calibrated(
        0.01,
        "calibrated, judged: estimated share of mismatched (judged: wrong) pairs among the safe ones, at most",
        gt=0.0,
        lt=1.0,
        group=SAFE,
        short="share of safe pairs that may be mismatched (0.01)",
    )
    threshold: float = _mixture(
        0.9,
        "least posterior of the matching component for a safe pair",
        gt=0.0,
        lt=1.0,
        when=({"rule": ("monotone",)}, {"rule": ("published",), "keep_share": (None,)}),
    )
    max_p_mismatch: float = _calibrated(
        0.5, "calibrated, judged: a safe pair is mismatched with at most this estimated probability", gt=0.0, le=1.0
    )
    null_strata: Literal["caption-length", "script", "image-size"] | None = _calibrated(
        None,
        "calibrated: a null and a cut of its own for groups of rows, by words of the caption, by its script, or by "
        "the image's shorter side; caption and script need keep_captions",
        when={"rule": ("calibrated",)},
    )
    keep_share: Share | None = setting(
        None,
        "keep this share of scored rows, best cosines first (sets the rule)",
        group=SAFE,
        short="or keep this share, best cosines first",
        when={"rule": ("keep-share", "published")},
    )
    min_cosine: float | None = setting(
        None,
        "keep rows of at least this cosine (sets the rule)",
        ge=-1.0,
        le=1.0,
        group=SAFE,
        short="or keep pairs of at least this cosine",
        when={"rule": ("min-cosine",)},
    )
    growth: Share | None = setting(
        None,
        "keep this much more than the newest sealed round does; by rule look-again: take back at most this share of all rows",
        table="growth",
        when=({"scorer": ("locked", "model")}, {"look_again": ()}),
    )
    cap: Share = setting(
        0.85,
        "the safe share never grows beyond this, but by rule look-again",
        table="growth",
        when=({"growth": ()}, {"scorer": ("locked", "model")}),
    )
    sit_out_folds: int = setting(
        0,
        "one of so many folds of the safe rows sits out of the CLIP loss each round (column sits_out), so that the next look "
        "scores it out of sample; 0: none, for a trainer that does not read that column",
        ge=0,
    )
    max_image_repeats: int | None = _limit(
        None,
        "rows are risky (exact_duplicate) where more than so many show the very same image",
        ge=1,
        group=CLOSER,
        short="rows that may show one image",
    )
    max_look_alikes: int | None = _limit(
        None,
        "rows are risky (near_duplicate) where more than so many look alike (perceptual hash) and accord doubts the pair",
        ge=1,
    )
    max_near_copies: int | None = _limit(
        None, "rows are risky (near_duplicate) with more near copies than so many, by near_copy_cosine", ge=1
    )
    max_pair_copies: int | None = _limit(
        None, "rows are risky (near_duplicate) with more near copies of one caption than so many, by near_copy_cosine", ge=1
    )
    max_caption_copies: int | None = _limit(
        None,
        "rows are risky (repeated_caption) where more than so many carry nearly the same caption",
        ge=4,
        group=CLOSER,
        short="rows that may have one wording",
    )
    keep_one: Literal["oldest", "newest", "best"] | None = _limit(
        None,
        "of copies that are risky for their number alone, one stays safe: of the shard that the run has known longest, of the "
        "last one, or the one of the best cosine",
        when=tuple({name: ()} for name in ("max_image_repeats", "max_near_copies", "max_pair_copies")),
    )
    crowded_share: Share = _limit(
        0.0,
        "this share of scored rows, whose image vectors lie densest, is risky (crowded); for a checkpoint that "
        "was trained on these very rows and is then given up",
    )
    crowded_tail: float = _limit(
        0.0,
        "in place of crowded_share: rows are risky (crowded) that lie denser than all but this share of ordinary "
        "ones, and rows most of whose neighbours do; without crowds about that share of all rows is flagged. With look_tail, "
        "of these only rows that looks doubt a little too (look_accord up to 0.7), or whose neighbours are nearer than three "
        "quarters of the cut",
        ge=0.0,
        lt=0.5,
    )
    outlier_share: Share = _limit(
        0.0, "this share of scored rows, whose image vectors lie farthest from others, is risky (local_outlier)"
    )
    discord_share: Share = _limit(
        0.0,
        "this share of scored rows, those of lowest accord, is risky (discordant): cosine, images of like captions "
        "and reference encoder speak against them together",
    )
    look_tail: float = _limit(
        0.0,
        "rows are risky (suspect_look) whose images look, by colours, roughness and tones, more as those of doubted pairs do "
        "than all but about this share of ordinary ones: where crowds do not form, a trigger is seen so",
        ge=0.0,
        lt=0.5,
    )
    replaced_tail: float | None = _limit(
        None,
        "rows are risky (replaced) that lie farther from what the index promised than all but this share of pictures that were "
        "honestly encoded anew; 0.001 if unset",
        gt=0.0,
        lt=0.5,
        when={"index": ()},
    )
    max_canary_leak: Share | None = _belief(
        None,
        "refuse the seal where a larger share of a kind of canary with a foreign caption would be safe",
        when={"canaries": ()},
    )
    if_unseparable: Literal["fail", "quantile", "accept"] = _belief(
        "fail",
        "what to do where the split cannot be believed: leave unsealed; keep --fallback-share; or seal the split all the same, "
        "with the doubt in the seal and the report",
        when={"rule": ("calibrated", "judged", "monotone", "min-cosine", "keep-share")},
    )
    fallback_share: Share | None = _belief(
        None,
        "share of scored rows kept by `--if-unseparable quantile`",
        when={**_MEASURED, "if_unseparable": ("quantile",)},
    )
    min_separation: float = _mixture(
        2.0,
        "least Ashman's D between the components; below 2 there is no valley between them",
        ge=0.0,
        when={"rule": ("monotone",)},
    )
    min_safe_share: Share = _belief(0.01, "a smaller safe share of scored rows is not believed", toml=True, when=_MEASURED)
    max_safe_share: Share = _belief(
        0.999, "a larger safe share of scored rows is not believed", toml=True, when={"rule": ("monotone", "min-cosine")}
    )
    max_quarantined_share: Share = _belief(0.2, "more unscorable rows than this fail the round before the seal")
    max_unread_share: Share = _belief(
        0.0, "refuse the seal where a larger share of the shards' bytes could not be read: damage, archives that break off"
    )
    seed: int = _mixture(0, "seed of the `published` rule's k-means start", ge=0, toml=True, when={"rule": ("published",)})
