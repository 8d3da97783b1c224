"""Mutate shards by what they reach in the readers: `python tests/fuzz/guided.py tar|tsv|csv|jsonl [-max_total_time=60]`.

Hypothesis makes shards that mean something; atheris (libFuzzer) finds the branches which none of those takes.
"""

import gzip
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["stages.read", "stages.pair", "manifests.store"]):
    from checks import read_twice
    from conftest import EMOJI, make_tar

    from manifests.errors import DataError

LINES = {
    "tsv": b'filepath\ttitle\n1.png\ta "dog\n1.png\t"two\nlines"\n\xff.png\tcaf\xe9\n',
    "csv": b'path;caption;key\n1.png;"a; b";1\n2.png;c;1\n',
    "jsonl": b'{"file_name": "1.png", "text": ["a", "b"]}\n{"image": "data:image/png;base64,AAAA", "text": 1}\n[]\n',
}
KINDS = ("tar", *LINES)


def seeds(kind: str) -> list[bytes]:
    """Return a few whole shards to begin with."""
    if kind != "tar":
        return [LINES[kind], gzip.compress(LINES[kind]), LINES[kind].decode("latin-1").encode("utf-16")]
    first = [("a.png", b"\x89PNG"), ("a.txt", b"a dog"), ("a.json", b'{"caption": ["x"]}')]
    members = [*first, ("b.x.jpg", b""), ("b.x.txt", b"y")]
    plain = [make_tar(members, fmt) for fmt in (0, 1, 2)]  # ustar, GNU, PAX
    return [*plain, gzip.compress(plain[0]), plain[0] + plain[1]]


def main() -> None:
    """Run libFuzzer on one kind of shard, for as long as its own options say."""
    kind, options = sys.argv[1], sys.argv[2:]
    drawing = next((EMOJI / "eval").iterdir()).read_bytes()[:100]  # bytes of a file that a row may name; no image

    def one(data: bytes) -> None:
        with suppress(DataError):  # no such column: one line, for a whole shard
            read_twice(f"a.{kind}", data, {"1.png": drawing})

    with tempfile.TemporaryDirectory() as corpus:
        for number, body in enumerate(seeds(kind)):
            (Path(corpus) / str(number)).write_bytes(body)
        limits = ["-max_len=24000", "-timeout=5", "-rss_limit_mb=2500", f"-artifact_prefix={corpus}-"]
        atheris.Setup([sys.argv[0], corpus, *limits, *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
