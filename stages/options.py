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
