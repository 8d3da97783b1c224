"""How like each image of a round is to words, to another image, or to that of a pair: by the vectors that were kept of them."""

import base64
import binascii
import hashlib
import itertools
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.errors import CheckpointError, ConfigError
from manifests.reading import Manifest
from pipeline.steps.plan import read_run
from stages.vectors import read_columns, unit, vectors_of

if TYPE_CHECKING:
    from stages.score.models.cross_fit import CrossFitEncoder
    from stages.score.models.encoders import OpenClipEncoder

SIMILARITY: Final = "similarity"
_MOST_IMAGES: Final = 100  # uploaded ones that are remembered
_KEPT: Final = 8  # things that were compared with
_MOST_BYTES: Final = 20 << 20
_THREADS: Final = 8
Vector = npt.NDArray[np.float32]


class Likeness:
    """Compares all images of a round with something; safe to use from several threads."""

    def __init__(self, manifest: Manifest, connection: duckdb.DuckDBPyConnection, checkpoint: str | None = None) -> None:
        """Take a round; weights are loaded when words or an image are first asked for.

        Args:
            manifest: The round.
            connection: Gets a table for each thing that is compared with.
            checkpoint: The weights that scored the round, where the settings of the run name others.
        """
        self._manifest, self._connection, self._checkpoint = manifest, connection, checkpoint
        self._lock, self._comparing, self._tables = threading.Lock(), threading.Lock(), OrderedDict[str, str]()
        self._numbers = itertools.count()
        self._parts = {part["shard"]: part["embeddings"]["name"] for part in manifest.seal["parts"] if "embeddings" in part}
        self._uploaded: OrderedDict[str, Vector] = OrderedDict()
        self._encoder: OpenClipEncoder | CrossFitEncoder | None = None

    @property
    def is_possible(self) -> bool:
        """Whether vectors were kept."""
        return bool(self._parts)

    def take(self, image: str) -> str:
        """Return how an image, sent as base64, is asked for.

        Raises:
            ConfigError: It is none, or too large.
        """
        if len(image) > _MOST_BYTES * 4 // 3:
            raise ConfigError(f"the image is larger than {_MOST_BYTES >> 20} MiB")
        try:
            data = base64.b64decode(image, validate=True)
        except binascii.Error:
            raise ConfigError("an image is sent as base64") from None
        name, vector = f"image:{hashlib.sha256(data).hexdigest()[:16]}", self._of_image(data)
        with self._lock:
            self._uploaded[name] = vector
            while len(self._uploaded) > _MOST_IMAGES:
                self._uploaded.popitem(last=False)
        return name

    def compared(self, like: str) -> str:
        """Return the name of a table of shard, index and similarity, with a row for every pair whose image has a vector.

        Args:
            like: Words; or `pair:SHARD:INDEX`; or what `take` returned.

        Raises:
            ConfigError: No vectors were kept, or there is no such pair or image.
            CheckpointError: The weights that scored the round are not there.
        """
        with self._comparing:  # a page asks for rows, count and histogram at once
            if like not in self._tables:
                name, cursor = f"likeness_{next(self._numbers)}", self._connection.cursor()
                cursor.register("found", self._table(like))
                cursor.execute(f"CREATE TABLE {name} AS SELECT * FROM found")  # noqa: S608
                self._tables[like] = name
                while len(self._tables) > _KEPT:
                    cursor.execute(f"DROP TABLE {self._tables.popitem(last=False)[1]}")
            self._tables.move_to_end(like)
            return self._tables[like]

    def of(self, like: str, places: list[tuple[str, int]]) -> list[float | None]:
        """Return the similarity of some pairs; None where there is no vector."""
        asked = pa.table({"shard": [shard for shard, _ in places], "index": [index for _, index in places]})
        cursor, name = self._connection.cursor(), self.compared(like)
        cursor.register("asked", asked)
        text = f"SELECT shard, index, similarity FROM {name} JOIN asked USING (shard, index)"  # noqa: S608
        found = {(shard, index): value for shard, index, value in cursor.execute(text).fetchall()}
        return [found.get(place) for place in places]

    def _table(self, like: str) -> pa.Table:
        if not self._parts:
            raise ConfigError("no vectors of this round were kept; score with --keep-embeddings, or all signals")
        vector = self._vector(like)
        with ThreadPoolExecutor(_THREADS) as pool:
            return pa.concat_tables(pool.map(lambda shard: self._shard(shard, vector), self._parts))

    def _shard(self, shard: str, vector: Vector) -> pa.Table:
        vectors = self._vectors(shard)
        rows = np.flatnonzero(vectors.any(axis=1))
        similar = (vectors.astype(np.float32) @ vector)[rows]
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), [shard])
        columns = [names, pa.array(rows.astype(np.int32)), pa.array(similar)]
        return pa.table(columns, names=["shard", "index", SIMILARITY])

    def _vectors(self, shard: str) -> npt.NDArray[np.float16]:
        if shard not in self._parts:
            raise ConfigError(f"there is no shard {shard!r} with vectors")
        return vectors_of(read_columns(self._manifest.run, self._parts[shard], ["image"])["image"])

    def _vector(self, like: str) -> Vector:
        if like.startswith("pair:"):
            shard, _, index = like.removeprefix("pair:").rpartition(":")
            vectors = self._vectors(shard)
            if not index.isdigit() or int(index) >= len(vectors) or not vectors[int(index)].any():
                raise ConfigError(f"{shard} has no row {index} with an image")
            return unit(vectors[int(index) :][:1]).reshape(-1)
        if like.startswith("image:"):
            with self._lock:
                if like not in self._uploaded:
                    raise ConfigError("that image was sent before this page was served; send it again")
                return self._uploaded[like]
        return self._loaded().encode_captions([like]).reshape(-1)

    def _of_image(self, data: bytes) -> Vector:
        from stages.read.images import UndecodableImage, decode_image
        from stages.score.models.encoders import image_size, pixel_preprocess

        encoder, preprocess = self._loaded(), self._model["preprocess"]
        most = read_run(self._manifest.run).config.data.max_image_pixels
        try:
            pixels = decode_image(data, pixel_preprocess(preprocess), size_px=image_size(preprocess), max_pixels=most)[0]
        except UndecodableImage as error:
            raise ConfigError(f"no image: {error.detail}") from None
        return encoder.encode_images(pixels[None]).reshape(-1)

    @property
    def _model(self) -> dict[str, Any]:
        model: dict[str, Any] = self._manifest.seal["plan"]["scores"]["model"]
        return model

    def _loaded(self) -> "OpenClipEncoder | CrossFitEncoder":
        """Return the model that scored the round.

        Raises:
            CheckpointError: What is there is another.
        """
        with self._lock:
            if self._encoder is None:
                from stages.score.models.cross_fit import make_encoder
                from stages.score.models.weights import resolve_weights  # torch: seconds that a mere look need not wait for

                options = read_run(self._manifest.run).config.model
                if self._checkpoint is not None:  # of the run's architecture, which its own checkpoint may be the folder of
                    named = {"checkpoint": self._checkpoint, "model": options.model or options.checkpoint}
                    options = options.model_copy(update=named)
                weights = resolve_weights(options)
                if (weights.file_sha256, weights.tag) != (self._model["file_sha256"], self._model["tag"]):
                    name = self._manifest.seal["plan"].get("weights") or "other weights"
                    raise CheckpointError(f"{name} scored this round, not the weights of the run's settings; --checkpoint FILE")
                self._encoder = make_encoder(weights, device="cpu", precision="fp32", batch_size=8)
            return self._encoder
