"""What a scout is taught on purpose, and what its round shows of it: how far its silence on other backdoors goes."""

import dataclasses
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests.errors import RunError
from manifests.labels import Reason
from manifests.layout import CHECKPOINTS, TAUGHT, read_plan, read_seal
from manifests.parts import write_json
from manifests.store import Store
from pipeline.config.catalogue import RunConfig
from pipeline.queries.summary import taught_text
from pipeline.steps.plan import Round
from pipeline.steps.signals.asked import signal_parts
from stages.label.limits import Limit
from stages.read.shards import Dataset, read_shard
from stages.score.decode import Decode
from stages.score.hashes import image_hashes
from stages.score.looks import looks
from stages.score.models.cross_fit import make_encoder
from stages.score.models.weights import resolve_weights
from stages.signals.neighbourhood import Neighbourhood
from stages.signals.sample import Reference
from stages.signals.signal_parts import AGREEMENT, REFERENCE, SignalParts
from stages.signals.witnesses.accord import Accord, Rows
from stages.signals.witnesses.suspects import Suspects
from stages.train.taught import Lesson, Lessons, lessons_of

log = logging.getLogger("pairsan.train")

LESSONS: Final = f"{CHECKPOINTS}/lessons.json"
_CAPTIONS: Final = 4096


def lessons_for(store: Store, dataset: Dataset, config: RunConfig) -> Lessons | None:
    """Return what the scout of a run is taught, chosen once from the first captions; None where it is taught nothing.

    Raises:
        RunError: There are no captions.
    """
    share, seed = config.train.scout_taught_share, config.train.seed
    if config.train.scorer != "scout" or not share:
        return None
    if not store.exists(LESSONS):
        rows = (pair for shard in dataset.shards for pair in read_shard(dataset.store, shard, config.data))
        captions = list(islice((pair.caption for pair in rows if pair.reason is None and pair.caption), _CAPTIONS))
        if not captions:
            raise RunError("there is no caption that a scout could be taught by; --set scout_taught_share=0 does without")
        write_json(store, LESSONS, [dataclasses.asdict(lesson) for lesson in lessons_of(captions, share, seed).lessons])
    found = [Lesson(**{**lesson, "captions": tuple(lesson["captions"])}) for lesson in store.read_json(LESSONS)]
    return Lessons(found, share, seed)


def look_at_lessons(store: Store, dataset: Dataset, config: RunConfig, number: int, lessons: Lessons) -> None:
    """Ask which of the taught backdoors a scout's round would have found, as if they were rows; write and say it, once.

    Args:
        store: The run.
        dataset: The data.
        config: Names the scout's weights.
        number: Of the scout's round, sealed.
        lessons: What it was taught.

    Raises:
        RunError: None of its rows can be read.
    """
    if store.exists(TAUGHT):
        return
    limits = [Limit(**limit) for limit in read_seal(store, number)["limits"]]
    limits = [limit for limit in limits if limit.reason in (Reason.CROWDED, Reason.SUSPECT_LOOK)]
    plan = read_plan(store, number)
    parts = signal_parts(Round(store, number, plan, dataset.shards))
    if parts is None or not limits:
        return
    sample = Reference.read(store, parts.name(REFERENCE))
    # as many of each as a group of that share has in the sample; they are their own neighbours there
    wanted = max(1, round(lessons.share * len(sample.hashes)))
    numbers, rows = _encoded(dataset, config, plan["scores"]["model"]["preprocess"], lessons, wanted)
    near = Neighbourhood(sample.with_rows(rows), parts.asked.neighbours)(rows.images, rows.texts, rows.hashes)
    values = {name: np.asarray(value, np.float64) for name, value in dataclasses.asdict(near).items()}
    values["look_accord"] = _look_accord(store, parts, rows)
    shown = ~np.all([limit.allows(values) for limit in limits], axis=0)
    found = [_told(lesson, shown[numbers == place]) for place, lesson in enumerate(lessons.lessons)]
    taught = {"round": number, "share": lessons.share, "lessons": found}
    write_json(store, TAUGHT, taught)
    log.info("%s", taught_text(taught))


def _look_accord(store: Store, parts: SignalParts, rows: Reference) -> npt.NDArray[np.float64]:
    """Return what is said of rows by their looks, beside as many others as the sample of crowds has; NaN where it has none.

    The other sample may be larger, and would have more of them: so less is seen here than there, not more.
    """
    both = Reference.read(store, parts.name(AGREEMENT)).with_rows(rows) if parts.asked.looks else rows
    if not parts.asked.looks or both.looks is None or rows.looks is None:
        return np.full(len(rows.hashes), np.nan)
    accord = Accord(both, parts.asked.agreement_neighbours, parts.asked.near_copy_cosine)
    said = accord(Rows(rows.images, rows.texts, rows.hashes)).accord
    return Suspects(both.hashes, both.looks, accord.own)(rows.hashes, rows.looks, said).astype(np.float64)


def _encoded(
    dataset: Dataset, config: RunConfig, preprocess: dict[str, Any], lessons: Lessons, wanted: int
) -> tuple[npt.NDArray[np.int64], Reference]:
    """Return the first rows of each lesson as the scout sees them: the number of the lesson, (n,), and what a sample holds."""
    decode = Decode(dataset.store, config.data, preprocess, num_threads=2)
    decode.open()
    weights, size = resolve_weights(config.model), config.embed.batch_size
    encoder = make_encoder(weights, device="cpu", precision="fp32", batch_size=size)
    shown = [
        (numbers, image_hashes(pixels), *encoder.encode_pairs(pixels, captions), looks(pixels))
        for numbers, pixels, captions in _shown(dataset, decode, lessons, wanted)
    ]
    if not shown:
        raise RunError("no row that the scout was taught by can be read any more: are these other data?")
    numbers, hashes, images, texts, seen = (np.concatenate(column) for column in zip(*shown, strict=True))
    return numbers, Reference(hashes, images, texts, looks=seen)


def _told(lesson: Lesson, shown: npt.NDArray[np.bool_]) -> dict[str, Any]:
    facts = {"trigger": lesson.trigger, "target": lesson.target, "captions": len(lesson.captions)}
    return {**facts, "rows": len(shown), "shown": int(shown.sum())}


def _shown(
    dataset: Dataset, decode: Decode, lessons: Lessons, wanted: int
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8], list[str]]]:
    """Yield the first rows of each lesson as they were shown: its number (n,), pixels (n, size, size, 3), captions (n,)."""
    left = dict.fromkeys(range(len(lessons.lessons)), wanted)
    for chunk in (chunk for shard in dataset.shards for chunk in decode.run(shard)):
        numbers, pixels, captions = list[int](), list[npt.NDArray[np.uint8]](), list[str]()
        for shown, row in zip(chunk.pixels, chunk.rows, strict=True):
            taught = lessons.of(chunk.pairs[row].uid)
            if taught is None or not left[taught.number]:
                continue
            left[taught.number] -= 1
            numbers.append(taught.number)
            pixels.append(taught.lesson.change(shown))
            captions.append(taught.caption)
        if numbers:
            yield numbers, np.stack(pixels), captions
        if not any(left.values()):
            return
