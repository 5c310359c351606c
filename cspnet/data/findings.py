"""What can be wrong with a data set, how bad it is, and what training makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from cspnet.errors import DataError

__all__ = ["KINDS", "Complain", "Finding", "Kind", "Problem", "refuse"]


class Kind(NamedTuple):
    """A kind of finding.

    broken: a picture that cannot be read, or what training refuses to start with. odd: it is used, but not as it may
    have been meant. note: worth knowing.
    """

    severity: Literal["broken", "odd", "note"]
    meaning: str
    in_training: str


class Finding(NamedTuple):
    """One finding; `place` is a path or a line of a list, `more` are the other files it is about."""

    kind: str
    split: str
    place: str
    text: str
    more: tuple[str, ...] = ()


class Problem(NamedTuple):
    """Something in a data set that an index cannot take in, and where it stands."""

    kind: str
    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


Complain = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """Ends the reading of a data set at its first problem.

    Raises:
        DataError: always.
    """
    raise DataError(str(problem))


_REPLACED = "replaced by the next readable picture (data.bad_images: replace); counted as wrong in validation"
_REFUSED = "refused: it does not start"

KINDS: dict[str, Kind] = {
    "unreadable": Kind("broken", "a file that cannot be read from the disk", _REPLACED),
    "dangling_link": Kind("broken", "a link to nothing", f"a picture is {_REPLACED}; a class is not seen"),
    "zero_byte": Kind("broken", "an empty file", _REPLACED),
    "truncated": Kind("broken", "a file that ends before its picture does", _REPLACED),
    "bomb": Kind("broken", "a header that claims more pixels than can be true", _REPLACED),
    "not_picture": Kind("broken", "something else than a picture inside", _REPLACED),
    "damaged": Kind("broken", "a picture that cannot be decoded", _REPLACED),
    "empty_class": Kind("broken", "a class folder without pictures", _REFUSED),
    "unknown_class": Kind("broken", "a class to validate that is not in training", _REFUSED),
    "class_count": Kind("broken", "splits that do not have the same number of classes", _REFUSED),
    "unreadable_folder": Kind("broken", "a folder that cannot be read", _REFUSED),
    "link_loop": Kind("broken", "a link to a folder that it lies in", _REFUSED),
    "malformed_line": Kind("broken", "a line of a list that is not `path label`", _REFUSED),
    "outside_root": Kind(
        "broken", "a line of a list that leads out of the data set", f"{_REFUSED}, but with --outside-root"
    ),
    "missing_file": Kind("broken", "a line of a list without its file", _REFUSED),
    "damaged_shard": Kind("broken", "a shard that is cut short, damaged or no tar archive", _REFUSED),
    "mixed_shards": Kind("broken", "shards that were not packed together, or some that are missing", _REFUSED),
    "bad_member": Kind("broken", "in a shard, no label or no picture of that key, or a second one", _REFUSED),
    "label_out_of_range": Kind("broken", "a label beyond the number of classes", _REFUSED),
    "leaked": Kind("odd", "the same bytes in more than one split", "used in each: validation sees what was learnt"),
    "conflicting": Kind("odd", "the same bytes in more than one class", "used under each of the labels"),
    "duplicate": Kind("odd", "the same bytes more than once in a class", "used as often as it is there"),
    "misnamed": Kind("odd", "a name that says another format than the contents", "decoded as what it contains"),
    "cmyk": Kind("odd", "inks instead of red, green and blue", "converted to RGB without its colour profile"),
    "sixteen_bit": Kind("odd", "more than 8 bits a channel", "scaled down to 8 bits"),
    "transparent": Kind("odd", "a transparent picture", "the transparency is dropped: hidden colours are seen"),
    "exif_rotated": Kind("odd", "an EXIF orientation", "turned upright (data.exif: apply) or read as stored (ignore)"),
    "multi_frame": Kind("odd", "an animation, or several pictures in one file", "the first of them is used"),
    "tiny": Kind("odd", "a picture with a side of less than 32 px", "enlarged"),
    "elongated": Kind("odd", "a picture more than 5 times as long as wide", "cropped; validation sees its middle only"),
    "huge": Kind("odd", "a picture of more than 89 million pixels", "used; decoding it takes time and memory"),
    "trailing": Kind("odd", "bytes behind the end of the picture", "they are not read"),
    "no_end": Kind("odd", "a whole picture without its format's end mark", "used"),
    "left_out": Kind("odd", "a file that is not taken for a picture", "not used"),
    "stale_index": Kind("odd", "an index that is older than its shards", "the shards are scanned anew at each start"),
    "few_pictures": Kind("note", "a class with fewer than 10 pictures", "used"),
    "imbalanced": Kind("note", "a largest class 10 times the smallest, or more", "used as it is, without weights"),
    "unseen_class": Kind("note", "classes without a picture in a split", "their outputs are there all the same"),
}
