"""All settings of the stages, each declared once: flags, TOML keys, help and docs follow from here.

Every field that can change a label goes into a round's plan. `setting` says what pydantic's `Field` does not: the TOML table,
where the short help shows it, whether it is a flag at all, and in which modes it has an effect.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
When = dict[str, tuple[Any, ...]]

# groups of the short help, in its order
DATA, WEIGHTS, SAFE, CLOSER, WHERE = "Data", "Weights", "What is safe", "Look closer", "Where it runs"


def setting(
    default: Any,
    text: str,
    *,
    table: str | None = None,
    group: str | None = None,
    short: str = "",
    toml: bool = False,
    how: bool = False,
    when: When | tuple[When, ...] = (),
    **bounds: Any,
) -> Any:
    """Declare a setting.

    Args:
        default: Its value where nobody says otherwise.
        text: For people.
        table: Of the TOML file, where that is not the section's own.
        group: Of the short help; None: only `--help-all` shows it.
        short: What the short help says of it, on one line of a terminal of 80 columns.
        toml: Whether only the TOML file can set it: something that hardly anybody should turn.
        how: Whether it says how work is done, not what comes of it.
        when: Values that other settings must have for it to have any effect; several: one of these must hold. An empty tuple of
            values stands for whatever is set at all.
        bounds: As pydantic's `Field` takes them.
    """
    modes = (when,) if isinstance(when, dict) else when
    extra: Any = {"table": table, "group": group, "short": short, "toml": toml, "how": how, "when": list(modes)}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ReadSettings(Settings):
    """How pairs are read (`[data]`)."""

    image_column: str | None = setting(
        None,
        "table column of the image (bytes, struct or path), or tar member extension; found by name if unset",
        group=DATA,
        short="column, or ending of a tar member",
    )
    caption_column: str | None = setting(
        None,
        "table column of the caption, or tar member extension, or `json:FIELD`; found by name if unset",
        group=DATA,
        short="the same, or `json:FIELD`",
    )
    caption: Literal["first", "random", "join", "all"] = setting(
        "first",
        "of several captions of one image: the first, one by the row's uid, all of them joined by blanks, or all as rows of "
        "their own, which other readers of the data do not count",
    )
    key_column: str | None = setting(None, "table column that names a row; found by name, else the row number")
    separator: str | None = setting(
        None, "field separator of text tables; tab for .tsv, comma for .csv if unset", min_length=1, max_length=1
    )
    encoding: str | None = setting(
        None, "encoding of text tables, by Python's name, as cp1252 or gb18030; UTF-8, or UTF-16 with its mark, if unset"
    )
    keep_column: str | None = setting(
        None,
        "further columns (of a tar: fields of its JSON), joined by `,`, that are kept as text in `source`, beside url, sha256, "
        "md5, original_width, original_height, license and status, which are found by name",
    )
    deny: str | None = setting(
        None,
        "files, joined by `,`, with a registered domain, host, uid, sha256 or md5 a line: their rows are quarantined (denied)",
    )
    image_root: str | None = setting(None, "folder or URI that image paths are relative to; the table's own if unset")
    allow_ambiguous: bool = setting(
        False, "score rows of a tar that its readers count differently, as open_clip's own reader does; else quarantined"
    )
    allow_outside: str | None = setting(
        None, "further folders, joined by `:`, in which image paths of a table may lie; else only below image_root"
    )
    skip_unreadable: bool = setting(
        False, "leave out dead links, folders that cannot be listed and shards that cannot be opened; the seal names them"
    )
    max_image_bytes: int = setting(64 << 20, "larger encoded images are quarantined unread", ge=1, toml=True)
    max_image_pixels: int = setting(
        100_000_000, "images of more pixels, by their header, are quarantined undecoded", ge=1, toml=True
    )
    max_caption_bytes: int = setting(8192, "longer captions are cut, and the row's detail says so", ge=1, toml=True)

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Names in `keep_column`."""
        return tuple(name.strip() for name in (self.keep_column or "").split(",") if name.strip())

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            "".encode(name or "utf-8")
        except LookupError as error:
            raise ValueError(str(error)) from None
        return name


class ModelSettings(Settings):
    """Which weights score the pairs (`[model]`)."""

    checkpoint: str | None = setting(
        None,
        "weights: .safetensors, .pt, or a folder with open_clip_config.json and weights",
        group=WEIGHTS,
        short="weights: a file, or a folder with its config",
    )
    model: str | None = setting(
        None,
        "open_clip model name, model config .json, or folder with open_clip_config.json",
        group=WEIGHTS,
        short="open_clip name, config .json, or folder",
    )
    pretrained: str | None = setting(
        None, "open_clip pretrained tag, fetched by open_clip", group=WEIGHTS, short="open_clip tag, to be fetched"
    )
    tokenizer: str | None = setting(
        None,
        "folder with tokenizer.json (and the text model's config.json, where there is one) of an architecture that reads "
        "captions by Hugging Face's means, as SigLIP does; the checkpoint's own folder if unset",
    )
    allow_hub: bool = setting(
        False,
        "let a model config file name towers and tokenizers to be fetched from a hub; open_clip's own names may always",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "auto is fp32 on CPU, bf16 (else fp16) on CUDA; bf16 encodes twice as fast on CPUs that have it (AMX, AVX512-BF16)",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto is cuda where torch sees one", group=WHERE, short="by default cuda where torch sees one"
    )


class EmbedSettings(Settings):
    """How scores are made and what is kept of them (`[embed]`)."""

    batch_size: int = setting(64, "rows per forward pass", ge=1, le=65536, how=True)
    keep_embeddings: bool = setting(False, "write fp16 embeddings beside the scores")
    keep_captions: bool = setting(True, "write captions into the parts")
    canaries: int = setting(
        0,
        "about so many canaries of each kind: known mismatches and triggers made of the data's own rows, scored "
        "with them, and never written into a manifest",
        ge=0,
        group=CLOSER,
        short="known poison made of these data, about so much",
    )
