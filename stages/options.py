"""Settings of the stages. Every field that can change a label lives here and goes into the plan."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Options(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ReadOptions(Options):
    """How pairs are read (`[data]`)."""

    image_column: str | None = Field(
        None, description="table column of the image (bytes, struct or path), or tar member extension; found by name if unset"
    )
    caption_column: str | None = Field(
        None, description="table column of the caption, or tar member extension, or `json:FIELD`; found by name if unset"
    )
    key_column: str | None = Field(None, description="table column that names a row; found by name, else the row number")
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="field separator of text tables; tab for .tsv, comma for .csv if unset"
    )
    image_root: str | None = Field(None, description="folder or URI that image paths are relative to; the table's own if unset")
    max_image_bytes: int = Field(64 << 20, ge=1, description="larger encoded images are quarantined unread")
    max_image_pixels: int = Field(
        100_000_000, ge=1, description="images of more pixels, by their header, are quarantined undecoded"
    )
    max_caption_bytes: int = Field(8192, ge=1, description="longer captions are cut, and the row's detail says so")


class ModelOptions(Options):
    """Which weights score the pairs (`[model]`)."""

    checkpoint: str | None = Field(
        None, description="weights: .safetensors, .pt, or a folder with open_clip_config.json and weights"
    )
    model: str | None = Field(
        None, description="open_clip model name, model config .json, or folder with open_clip_config.json"
    )
    pretrained: str | None = Field(None, description="open_clip pretrained tag, fetched by open_clip")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto is fp32 on CPU and bf16 (else fp16) autocast on CUDA"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where torch sees one")


class EmbedOptions(Options):
    """How scores are made and what is kept of them (`[embed]`)."""

    batch_size: int = Field(64, ge=1, le=65536, description="rows per forward pass")
    keep_embeddings: bool = Field(False, description="write fp16 embeddings beside the scores")
    keep_captions: bool = Field(True, description="write captions into the parts")


class SplitOptions(Options):
    """How cosines become labels (`[split]`)."""

    rule: Literal["monotone", "published", "keep-share", "min-cosine"] = Field(
        "monotone", description="monotone mixture cut; the paper's code; a fixed share; a fixed cosine"
    )
    threshold: float = Field(0.9, gt=0.0, lt=1.0, description="least posterior of the matching component for a safe pair")
    keep_share: Share | None = Field(None, description="keep this share of scored rows, best cosines first (sets the rule)")
    min_cosine: float | None = Field(None, ge=-1.0, le=1.0, description="keep rows of at least this cosine (sets the rule)")
    growth: Share | None = Field(None, description="rescore: keep this much more than the newest sealed round does")
    cap: Share = Field(0.85, description="rescore: the safe share never grows beyond this")
    if_unseparable: Literal["fail", "quantile"] = Field(
        "fail", description="what to do where the mixture cannot be believed: leave unsealed, or keep --fallback-share"
    )
    fallback_share: Share | None = Field(None, description="share of scored rows kept by `--if-unseparable quantile`")
    min_separation: float = Field(
        2.0, ge=0.0, description="least Ashman's D between the components; below 2 there is no valley between them"
    )
    min_safe_share: Share = Field(0.01, description="a smaller safe share of scored rows is not believed")
    max_safe_share: Share = Field(0.999, description="a larger safe share of scored rows is not believed")
    max_quarantined_share: Share = Field(0.2, description="more unscorable rows than this fail the round before the seal")
    seed: int = Field(0, ge=0, description="seed of the `published` rule's k-means start")


class TrainOptions(Options):
    """How the trainer stage learns (`[train]`)."""

    rounds: int = Field(8, ge=0, description="rounds of scoring and training after the warm-up")
    warmup_passes: int = Field(5, ge=0, description="unimodal passes over all rows before the first round")
    first_matching: Literal["slow", "locked"] = Field(
        "slow", description="slow: CLIP loss at slow_learning_rate; locked: image tower frozen, text tower matched to it"
    )
    matching_passes: int = Field(1, ge=0, description="passes of the first matching")
    learning_rate: float = Field(5e-4, gt=0.0, description="peak learning rate")
    slow_learning_rate: float = Field(5e-6, gt=0.0, description="constant learning rate of the slow first matching")
    locked_learning_rate: float = Field(1e-3, gt=0.0, description="constant learning rate of the locked first matching")
    weight_decay: float = Field(0.1, ge=0.0, description="AdamW weight decay; none on norms, biases and logit scale")
    train_batch_size: int = Field(128, ge=2, description="rows per step")
    lr_warmup_share: Share = Field(0.05, description="share of all steps in which the learning rate rises")
    pool_size: int = Field(2048, ge=1, description="rows of each nearest-neighbour pool")
    clip_weight: float = Field(1.0, ge=0.0, description="weight of the CLIP loss")
    unimodal_weight: float = Field(1.0, ge=0.0, description="weight of the unimodal loss")
    least_crop: float = Field(0.08, gt=0.0, le=1.0, description="least share of an image that a random crop covers")
    p_caption_change: Share = Field(0.5, description="share of captions that the CLIP loss sees changed; the others are true")
    save_every_steps: int = Field(200, ge=1, description="steps between two saved positions")
    train_seed: int = Field(0, ge=0, description="seed of initial weights, orders and augmentation")

    @property
    def seed(self) -> int:
        """The seed of everything random in training."""
        return self.train_seed
