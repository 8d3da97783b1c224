"""Settings of what is computed of every row beside its cosine."""

from functools import partial
from typing import Final, Literal

from stages.settings import CLOSER, Settings, When, setting

_ALL: Final[When] = {"signals": ("all",)}
_near = partial(setting, table="signals.near", when=_ALL)
_reference = partial(setting, table="signals.reference")
_CAPTIONS_COMPARED: Final[When] = {**_ALL, "agreement_rows": ()}
_COPIES: Final[When] = {**_ALL, "near_copy_cosine": ()}


class SignalSettings(Settings):
    """What is computed of every row beside its cosine (`[signals]`)."""

    signals: Literal["none", "repeats", "all"] = setting(
        "repeats",
        "repeats: how many rows share an image or a caption; all: also where its vectors lie among others, which "
        "needs keep_embeddings and turns it on",
    )
    neighbours: int = _near(64, "k of the k-th nearest neighbour", ge=1, le=1024)
    reference_rows: int = _near(
        8192,
        "rows of the seeded sample that neighbours are sought in; groups of more than neighbours / reference_rows "
        "of all rows look crowded, smaller ones do not",
        ge=32,
        le=1 << 20,
    )
    agreement_rows: int = _near(
        16384,
        "rows of the larger sample in which the captions nearest to a row's own are sought, whose images should "
        "look like its own; 0: do without",
        ge=0,
        le=1 << 24,
    )
    agreement_neighbours: int = setting(
        8, "how many such captions are asked", ge=1, le=256, table="signals.near", toml=True, when=_CAPTIONS_COMPARED
    )
    common_captions: bool = setting(
        True,
        "accord: count it against a pair, too, that its caption occurs often; off where captions are class names",
        table="signals.near",
        when=_CAPTIONS_COMPARED,
    )
    near_copy_cosine: float | None = setting(
        None,
        "images whose vectors are at least this similar are copies of each other, as those of one hash are; by "
        "hash alone if unset",
        gt=0.0,
        le=1.0,
        table="signals.near",
    )
    copy_cell_rows: int = setting(
        1000,
        "near copies are sought in cells of about so many rows; the cost is linear in it",
        ge=16,
        table="signals.near",
        toml=True,
        when=_COPIES,
    )
    caption_shingles: bool = setting(
        False, "count also captions that share most of their wording, by MinHash; needs keep_captions"
    )
    reference_encoder: str | None = _reference(
        None,
        "frozen image tower that never saw these data, for near copies and agreement: timm:NAME with "
        "--reference-checkpoint, or an open_clip name, config or folder",
        group=CLOSER,
        short="an independent image tower as a witness",
    )
    reference_checkpoint: str | None = _reference(
        None,
        "its weights (.safetensors), where its folder holds none",
        group=CLOSER,
        short="its weights",
        how=True,
        when={"reference_encoder": ()},
    )
    reference_image_size: int | None = _reference(
        None, "edge in px of its inputs; its own if unset", ge=16, le=1024, toml=True, when={"reference_encoder": ()}
    )
    index: str | None = setting(
        None,
        "Parquet file, folder or glob of the index that the data were fetched from, to compare what came with what it promised",
    )
    index_key: Literal["auto", "uid", "url", "key"] = setting(
        "auto", "column by which rows are found in the index; the first of uid, url and key that it has", when={"index": ()}
    )
    index_score: str | None = setting(
        None,
        "column of the index with cosines of this very checkpoint, as clip_b32_similarity_score of DataComp is of openai's "
        "ViT-B-32",
        when={"index": ()},
    )
    index_embeddings: str | None = setting(
        None,
        "column of the index with image vectors of this very checkpoint, or array of the .npz beside each of its files, as "
        "b32_img of DataComp; needs keep_embeddings and turns it on",
        when={"index": ()},
    )
    signals_seed: int = setting(0, "seed of the samples", ge=0, toml=True, when=_ALL)
    signals_memory_mb: int = setting(2048, "memory of the counting of repeats; more is spilled to disk", ge=64, how=True)

    @property
    def plan(self) -> dict[str, object] | None:
        """What of it can change a signal; None where there are none."""
        if self.signals == "none":
            return None
        names = ["neighbours", "reference_rows", "signals_seed"]
        names += ["agreement_rows", "agreement_neighbours", "common_captions"] if self.agreement_rows else []
        names += ["near_copy_cosine", "copy_cell_rows"] if self.near_copy_cosine else []
        near = {name: getattr(self, name) for name in names} if self.signals == "all" else {}
        near |= {"neighbour_outlier": True, "half_outlier": True} if near else {}  # parts of before these are made anew
        near |= {"looks": True} if near and self.agreement_rows else {}
        shingles = {"caption_shingles": True} if self.caption_shingles else {}
        return {"signals": self.signals, "exact_copies": True, **near, **shingles}
