"""Evidence on real photographs, which lie outside the repository (`--data`, or the variable PAIRSAN_PHOTOS)."""
