"""What a trained model does: attack success on held-out pictures, zero-shot accuracy, retrieval."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from benchmarks.attacks.core import Attack
from benchmarks.attacks.registry import parse_attack
from benchmarks.attacks.world import Row, load_rows
from benchmarks.evidence import probe
from benchmarks.evidence.training import MODEL
from pipeline.steps.canary_leaks import interval
from stages.score.models.encoders import OpenClipEncoder, pixel_preprocess, preprocess_config
from stages.score.models.weights import Weights, file_sha256
from stages.train.learner import new_model

PROMPT = "a picture of {}"


@dataclass
class Judge:
    """Everything that answers are compared with, prepared once for many models.

    Attributes:
        rows: Held-out pairs.
        labels: Classes of the zero-shot answers: all that the held-out pairs have.
    """

    rows: list[Row]
    labels: list[str]

    def __init__(self, held_out: Path, truth: pa.Table, attacks: list[str], seed: int) -> None:
        """Read the held-out pairs, and trigger them by every backdoor among the attacks."""
        self._preprocess = pixel_preprocess(preprocess_config(new_model(MODEL, 0)))
        self.rows = load_rows([str(held_out)])
        wanted = {word for word in truth["target"].to_pylist() if word}
        self.labels = sorted({row.label for row in self.rows} | wanted)
        self._place = {label: i for i, label in enumerate(self.labels)}
        self._own = np.asarray([self._place[row.label] for row in self.rows])
        self._clean = self._pixels([row.pixels() for row in self.rows])
        self._truth = truth.to_pylist()
        self._triggered: dict[str, tuple[str, npt.NDArray[np.uint8]]] = {}
        for attack in map(parse_attack, attacks):
            self._add(attack, random.Random(seed))

    def _add(self, attack: Attack, rng: random.Random) -> None:
        mine = [line for line in self._truth if line["attack"] == attack.name]
        if not mine or type(attack).trigger is Attack.trigger:
            return
        shown = [attack.trigger(row.pixels(), rng) for row in self.rows]
        self._triggered[attack.name] = (mine[0]["target"], self._pixels(shown))

    def _pixels(self, pictures: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        return np.stack([np.asarray(self._preprocess(Image.fromarray(picture))) for picture in pictures])

    def __call__(self, checkpoint: Path) -> list[dict[str, Any]]:
        """Return one line per figure: metric, attack, hits, num, share, low, high."""
        encoder = OpenClipEncoder(Weights(MODEL, str(checkpoint), None, file_sha256(checkpoint)), batch_size=256)
        texts = encoder.encode_captions([PROMPT.format(label) for label in self.labels])
        images = encoder.encode_images(self._clean)
        answers = np.argsort(-(images @ texts.T), axis=1)[:, :5]
        found = [
            _line("top-1", "", int((answers[:, 0] == self._own).sum()), len(self.rows)),
            _line("top-5", "", int((answers == self._own[:, None]).any(1).sum()), len(self.rows)),
            *self._retrieval(images, encoder.encode_captions([row.caption for row in self.rows])),
        ]
        if probe.is_there():
            pictures, classes = probe.pictures(self._clean.shape[1])
            found.append(_line("linear probe", "", *probe.hits(encoder.encode_images(pictures), classes)))
        for name in ("tdpa", "flooding"):
            found += self._targeted(name, answers[:, 0])
        for name, (target, pixels) in self._triggered.items():
            shown = (encoder.encode_images(pixels) @ texts.T).argmax(1)
            others = self._own != self._place[target]
            found.append(_line("asr", name, int((shown[others] == self._place[target]).sum()), int(others.sum())))
            anyway = answers[others, 0] == self._place[target]  # a weak model may like a class by itself
            found.append(_line("asr without trigger", name, int(anyway.sum()), int(others.sum())))
            found.append(_line("triggered top-1", name, int((shown == self._own).sum()), len(self.rows)))
        return found

    def _targeted(self, name: str, answers: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        wanted = {line["trigger"]: self._place[line["target"]] for line in self._truth if line["attack"] == name}
        hits = sum(wanted.get(row.key) == answer for row, answer in zip(self.rows, answers.tolist(), strict=True))
        return [_line("asr", name, hits, len(wanted))] if wanted else []

    def _retrieval(self, images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return image-to-text recall at 1 and 5 over the held-out pairs; a caption of several pairs is right for all."""
        captions = np.unique([row.caption for row in self.rows], return_inverse=True)[1]
        best = captions[np.argsort(-(images @ texts.T), axis=1)[:, :5]]
        right = best == captions[:, None]
        return [_line("R@1", "", int(right[:, 0].sum()), len(right)), _line("R@5", "", int(right.any(1).sum()), len(right))]


def _line(metric: str, attack: str, hits: int, num: int) -> dict[str, Any]:
    low, high = interval(hits, num)
    return {"metric": metric, "attack": attack, "hits": hits, "num": num, "share": hits / num, "low": low, "high": high}
