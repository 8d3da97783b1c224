"""How often a changed copy of a picture keeps the 16 bits that its fold follows from, on the bundled drawings at 32 px.

python -m benchmarks.robustness.fold_stability
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.common import ROOT, header
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.cross_fit import folds_of
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings
from stages.train.learner import new_model

EMOJI = ROOT / "examples" / "emoji"
MANY = 1 << 30  # so many folds that another one means other bits


def jpeg(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an image after JPEG at quality 80."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return np.asarray(Image.open(file))


def main() -> None:
    """Print the share that keeps its bits, per change."""
    header("studies.fold_stability")
    dataset = open_dataset([str(EMOJI / "train")])
    preprocess = preprocess_config(new_model(f"local-dir:{EMOJI / 'demo-model'}", 0))
    decode = Decode(dataset.store, ReadSettings(), preprocess, num_threads=2)
    decode.open()
    pixels = np.concatenate([chunk.pixels for shard in dataset.shards[:3] for chunk in decode.run(shard)])
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    changes = {
        "noise of 4 grey levels": np.clip(pixels + noise, 0, 255).astype(np.uint8),
        "JPEG at quality 80": np.stack([jpeg(image) for image in pixels]),
        "shift by one pixel": np.roll(pixels, 1, axis=2),
    }
    before = folds_of(pixels, MANY)
    for name, changed in changes.items():
        print(f"{name}: {(folds_of(changed, MANY) == before).mean():.1%} of {len(pixels):,} keep their bits")
    print(f"pairs per fold of 4: {np.bincount(folds_of(pixels, 4), minlength=4).tolist()}")


if __name__ == "__main__":
    main()
