"""The text tower on no more tokens than the longest caption of a batch has.

open_clip's own `encode_text` refuses short inputs for the classic CLIP, so the forward is written out here; it is compared
with `encode_text` when a model is loaded, and a model for which the two differ gets the full length.
"""

import logging
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transformer import text_global_pool

log = logging.getLogger("pairsan.encoders")

TRIM_TOLERANCE: Final = 1e-5
_MOST_CHARACTERS: Final = 20  # of a token, on average over a whole caption; common ones have 4
_PROBES: Final = (
    "a dog",
    "!",
    "a photo of a cat sitting on a red sofa!!!",
    "word " * 60,
    "日本語のキャプション",
    "short",
)


def shortened(captions: Iterable[str], tokenizer: Any) -> list[str]:
    """Return captions without what lies far behind the last token that a text tower reads.

    Byte-pair encoding takes quadratic time for a word: 7 s for 8,192 letters in a row.
    """
    most = _MOST_CHARACTERS * int(getattr(tokenizer, "context_length", None) or 77)
    return [caption[:most] for caption in captions]


def token_lengths(tokens: npt.NDArray[Any], pad: int) -> npt.NDArray[np.int64]:
    """Return how many tokens each row has before its trailing padding; padding inside a caption counts."""
    lengths: npt.NDArray[np.int64] = tokens.shape[1] - np.argmax((tokens != pad)[:, ::-1], axis=1)
    return lengths


def padding_of(tokenizer: Any) -> int:
    """Return the token that an open_clip tokenizer fills short captions with."""
    return int(getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0)


def trimming_is_exact(model: Any, tokenizer: Any) -> bool:
    """Compare the trimmed forward with `encode_text` on captions of all kinds; the model must be in eval mode."""
    tokens = tokenizer(list(_PROBES))
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            full = torch.nn.functional.normalize(model.encode_text(tokens.to(device)), dim=-1)
            worst = 0.0
            for row, length in enumerate(token_lengths(tokens.numpy(), padding_of(tokenizer))):
                short = encode_short_text(model, tokens[row : row + 1, : int(length)].to(device))
                worst = max(worst, float((torch.nn.functional.normalize(short, dim=-1) - full[row]).abs().max()))
    except (AttributeError, RuntimeError, IndexError, TypeError) as error:
        log.debug("captions are not trimmed: the text tower has another form (%s)", error)
        return False
    if worst > TRIM_TOLERANCE:
        log.debug("captions are not trimmed: this text tower reads its padding (difference %.1e)", worst)
    return worst <= TRIM_TOLERANCE


def encode_short_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Run an open_clip text tower on fewer tokens than its context length.

    Args:
        model: A CLIP (text tower flattened into the model) or CustomTextCLIP (`model.text`).
        tokens: int64, shape (n, length), each row with its end-of-text token inside.

    Returns:
        Features before normalisation, shape (n, d).

    Raises:
        TypeError: The tower has a form that this forward does not know.
    """
    tower = getattr(model, "text", model)
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        raise TypeError("a text tower with a class token or a padding mask")
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
    hidden = tower.ln_final(tower.transformer(hidden, attn_mask=mask))
    pool, end = (tower.text_pool_type, tower.text_eos_id) if tower is model else (tower.pool_type, tower.eos_id)
    pooled = text_global_pool(hidden, tokens, pool, eos_token_id=end)
    projection = tower.text_projection
    features: torch.Tensor = pooled
    if projection is not None:
        features = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return features
