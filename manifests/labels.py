"""What a manifest says of a row: its label, why, and who says so."""

from enum import StrEnum
from typing import Final


class Label(StrEnum):
    """What a row may be used for."""

    SAFE = "safe"  # train with the image-caption loss
    RISKY = "risky"  # train each modality by itself
    QUARANTINED = "quarantined"  # never train


class Reason(StrEnum):
    """Why a row is not safe. Of several limits that a row breaks, the first in this order names it.

    Attributes:
        meaning: The rest of a sentence that begins with "this pair", for people.
    """

    meaning: str

    def __new__(cls, word: str, meaning: str) -> "Reason":
        """Make a word with its meaning."""
        made = str.__new__(cls, word)
        made._value_, made.meaning = word, meaning
        return made

    # risky: scored, and not believed
    BELOW_CUT = "below_cut", "has a cosine below the cut: its caption fits its image less than those of safe pairs"
    EXACT_DUPLICATE = "exact_duplicate", "shows the very same pixels as more rows than --max-image-repeats allows"
    NEAR_DUPLICATE = "near_duplicate", "looks like more rows than the limits on look-alikes and near copies allow"
    REPEATED_CAPTION = "repeated_caption", "has nearly the caption of more rows than --max-caption-copies allows"
    CROWDED = "crowded", "has an image vector among the densest, as images with one learned trigger have"
    LOCAL_OUTLIER = "local_outlier", "has an image vector farther from all others than most"
    DISCORDANT = "discordant", "is doubted by several witnesses together: its accord is among the lowest"
    SUSPECT_LOOK = "suspect_look", "has an image that looks as those of doubted pairs do: they may have a trigger in common"
    DUPLICATE_UID = "duplicate_uid", "has the uid of another row, so that what is said of one would be said of both"
    REPLACED = (
        "replaced",
        "is farther from what the index promised than honest pictures that were encoded anew",
    )
    PUT_OUT = "put_out", "sat out of the CLIP loss, and the model that had not trained on it for a round contradicts it"
    # set by a human verdict, on safe rows too; a `drop` makes the row quarantined
    REVIEW = "review", "has a human verdict"
    # quarantined: could not be scored
    SHARD_UNREADABLE = "shard_unreadable", "lies in a damaged stretch of its shard"
    TAR_TRUNCATED = "tar_truncated", "is where its archive breaks off, or right after that"
    AMBIGUOUS = "ambiguous", "may be another row to other readers of tars, whose label must not become its own"
    DUPLICATE_KEY = "duplicate_key", "has a key that was met before in the shard"
    ROW_MALFORMED = "row_malformed", "is a line of a table with another number of fields than its header"
    DENIED = "denied", "is of a domain, or has a uid or hash, that --deny names"
    READER_ERROR = "reader_error", "met an exception that nobody foresaw; the detail names it"
    OUTSIDE_ROOT = "outside_root", "names a file outside the folder of the images (--image-root, --allow-outside)"
    IMAGE_MISSING = "image_missing", "has no image"
    IMAGE_UNDECODABLE = "image_undecodable", "has bytes that are no image, or only a part of one"
    IMAGE_TOO_LARGE = "image_too_large", "has an image of too many bytes, or too many pixels by its header"
    CAPTION_MISSING = "caption_missing", "has no caption"
    CAPTION_EMPTY = "caption_empty", "has a caption with nothing in it"
    CAPTION_UNDECODABLE = "caption_undecodable", "has a caption of which more than a tenth is not UTF-8"
    NOT_FINITE = "not_finite", "gave NaN or infinity in the model"


class Voice(StrEnum):
    """Who made a row what it is. A human verdict is last, and stays as long as it stands."""

    SPLIT = "split"  # the cut of a round that did not look at the one before
    VETO = "veto"  # repeats, copies, crowds, wording, accord: a limit of a signal
    TAKEN_BACK = "taken_back"  # a risky row that a model which never matched it finds fitting
    PUT_OUT = "put_out"  # a safe row that sat out and is contradicted
    REVIEW = "review"  # a human


# what a later look does not take back, whatever its cosines say
VETOES: Final = (
    *(Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, Reason.REPEATED_CAPTION),
    *(Reason.CROWDED, Reason.SUSPECT_LOOK, Reason.DUPLICATE_UID),
)
