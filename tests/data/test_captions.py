import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.labels import Reason
from stages.read.captions import clean_caption

LIMIT = 8192


def test_clean_text_passes_unchanged() -> None:
    caption = clean_caption("a dog — naïve, 犬 🐕".encode(), LIMIT)
    assert (caption.text, caption.reason, caption.detail) == ("a dog — naïve, 犬 🐕", None, None)


def test_white_space_is_folded_without_a_note() -> None:
    assert clean_caption("\ufeff  a\tdog \r\n runs\n", LIMIT).text == "a dog runs"
    assert clean_caption("a\tdog\r\n", LIMIT).detail is None


@pytest.mark.parametrize("raw", [b"", b"  \n\t", b"\x00\x01\x1b", b"\xef\xbb\xbf"])
def test_nothing_left_is_empty(raw: bytes) -> None:
    assert clean_caption(raw, LIMIT).reason is Reason.CAPTION_EMPTY


def test_missing_is_not_empty() -> None:
    assert clean_caption(None, LIMIT).reason is Reason.CAPTION_MISSING


def test_control_characters_and_nul_become_spaces_and_are_noted() -> None:
    caption = clean_caption("a\x00dog\x1b[31m red\x85".encode(), LIMIT)
    assert caption.text == "a dog [31m red"
    assert caption.detail == "3 control characters removed"


def test_a_few_bad_bytes_are_repaired_and_noted() -> None:
    caption = clean_caption(b"a photo of a caf\xe9 in Paris", LIMIT)
    assert caption.text == "a photo of a caf\ufffd in Paris"
    assert caption.reason is None
    assert caption.detail == "1 of 26 characters are not UTF-8"


def test_many_bad_bytes_are_quarantined() -> None:
    assert clean_caption("犬が走る".encode("utf-16"), LIMIT).reason is Reason.CAPTION_UNDECODABLE
    assert clean_caption(b"\xff\xd8\xff\xe0 jpeg in a txt", LIMIT).reason is Reason.CAPTION_UNDECODABLE


def test_replacement_characters_of_the_source_are_not_counted_as_bad() -> None:
    assert clean_caption(("\ufffd" * 20).encode(), LIMIT).reason is None


def test_100_kb_captions_are_cut_at_a_character_and_noted() -> None:
    caption = clean_caption(("é" * 50_000).encode(), LIMIT + 1)
    assert caption.text == "é" * (LIMIT // 2)
    assert caption.detail == f"caption cut at {LIMIT + 1} of 100000 bytes"


@given(st.binary(max_size=200))
def test_any_bytes_give_printable_text_or_a_reason(raw: bytes) -> None:
    caption = clean_caption(raw, 64)
    assert caption.reason is not None or caption.text
    text = caption.text or ""
    assert text == text.strip()
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in text)
    text.encode("utf-8")
    assert clean_caption(text, 4096).text == text  # cleaning twice changes nothing
