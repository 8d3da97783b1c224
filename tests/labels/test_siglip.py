"""The calibrated rule on scores of a model that learned by the sigmoid loss, which pushes cosines where a softmax would not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import Result
from conftest import EMOJI, TINY, encode, make_tar
from open_clip.loss import SigLipLoss
from PIL import Image
from safetensors.torch import load_file, save_file

from manifests import open_round
from stages.read.shards import open_dataset
from stages.score.decode import Decode
from stages.score.models.encoders import preprocess_config
from stages.settings import ReadSettings

STEPS, ROWS, SWAPPED, ALPHA = 160, 128, 0.1, 0.05


def pairs_of(part: str, model: torch.nn.Module) -> tuple[np.ndarray, list[str]]:
    """All images, uint8 (n, size, size, 3), and captions of a part of the bundled data."""
    dataset = open_dataset([str(EMOJI / part)])
    decode = Decode(dataset.store, ReadSettings(), preprocess_config(model), num_threads=2)
    decode.open()
    chunks = [chunk for shard in dataset.shards for chunk in decode.run(shard)]
    return np.concatenate([chunk.pixels for chunk in chunks]), [word for chunk in chunks for word in chunk.captions]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The tiny checkpoint, with a bias, taught for three passes by the sigmoid loss; and how far its cosines moved."""
    folder = tmp_path_factory.mktemp("siglip")
    config = json.loads((TINY / "open_clip_config.json").read_text())
    config["model_cfg"] |= {"init_logit_bias": -10, "init_logit_scale": float(np.log(10))}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model, name = open_clip.create_model(f"local-dir:{folder}", load_weights=False), f"local-dir:{folder}"
    state = {key: value.float() for key, value in load_file(TINY / "open_clip_model.safetensors").items()}
    del state["logit_scale"]
    assert model.load_state_dict(state, strict=False).missing_keys == ["logit_scale", "logit_bias"]
    pixels, captions = pairs_of("train", model)
    mean, std = (torch.tensor(preprocess_config(model)[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    images, tokens = torch.from_numpy(pixels).permute(0, 3, 1, 2), open_clip.get_tokenizer(name)(captions)
    optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=5e-4), SigLipLoss()
    losses = []
    for rows in torch.randint(len(images), (STEPS, ROWS)):
        loss = loss_of(*model((images[rows] / 255.0 - mean) / std, tokens[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return folder, losses[0] - float(np.mean(losses[-5:]))


@pytest.mark.slow
def test_what_is_stated_of_a_sigmoid_models_safe_rows_is_what_comes(
    siglip: tuple[Path, float], tmp_path: Path, pairsan: Callable[..., Result]
) -> None:
    folder, learned = siglip
    assert learned > 0.2
    model = open_clip.create_model(f"local-dir:{TINY}", load_weights=False)
    pixels, captions = pairs_of("eval", model)
    rng = np.random.default_rng(0)
    swapped = rng.choice(len(captions), int(SWAPPED * len(captions)), replace=False)
    words = np.array(captions, object)
    words[swapped] = words[np.roll(swapped, 1)]
    really = words != np.array(captions, object)
    members = [
        (f"{row:06d}.{end}", data)
        for row, (image, text) in enumerate(zip(pixels, words, strict=True))
        for end, data in (("png", encode(Image.fromarray(image), "PNG")), ("txt", text.encode()))
    ]
    (tmp_path / "a.tar").write_bytes(make_tar(members))
    run = tmp_path / "run"
    pairsan("clean", tmp_path / "a.tar", "--checkpoint", folder, "--out", run, "--executor", "local", "--alpha", ALPHA)
    table, seal = open_round(run).to_pandas(["key", "label"]), open_round(run).seal
    safe = (table.label == "safe").to_numpy()
    bad = really[table.key.astype(int)] & safe
    assert seal["rule"] == "calibrated"
    assert really.mean() - 0.02 <= seal["null"]["mismatched_share"] <= really.mean() + 0.06
    assert bad.sum() / safe.sum() <= ALPHA
    assert (safe & ~really).sum() / (~really).sum() > 0.7
