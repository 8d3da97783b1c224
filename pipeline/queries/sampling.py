"""Draw a random sample of a round for people to judge.

It is drawn once and kept in the run, so that several reviewers see the same pairs in the same order. It is stratified by label
and by quarters of the cosine, in turn, so that whoever stops after some pairs has judged a sample all the same.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from manifests.errors import ConfigError
from manifests.labels import Label
from manifests.parts import write_json
from manifests.reading import Manifest
from pipeline.queries.inspection import sealed_off
from pipeline.steps import audit

_DRAW: Final = """
WITH quartered AS (
    SELECT shard, index, label, md5(concat(?, shard, '/', index)) AS draw,
        ntile(4) OVER (PARTITION BY label ORDER BY cosine, shard, index) AS quarter
    FROM pairs WHERE label IN ('safe', 'risky')),
turns AS (SELECT *, row_number() OVER (PARTITION BY label, quarter ORDER BY draw) AS turn FROM quartered)
SELECT shard, index, label FROM turns ORDER BY turn, draw LIMIT ?
"""


def draw(manifest: Manifest, num: int) -> dict[str, Any]:
    """Return the sample of a round, drawn now or before; a longer one begins with the pairs of the shorter.

    Args:
        manifest: The sealed round.
        num: Pairs that are wanted; a sample that has more stays as it is.

    Raises:
        ConfigError: The round has no scored pairs.
    """
    before = audit.read(manifest.run, manifest.number)
    if before is not None and len(before["pairs"]) >= min(num, before["scored"]):
        return before
    labels = manifest.seal["counts"]["labels"]
    scored = labels[Label.SAFE] + labels[Label.RISKY]
    if not scored:
        raise ConfigError("no pair of this round was scored; there is nothing to sample")
    seed = hashlib.sha256(manifest.seal["fingerprint"].encode()).hexdigest()
    with sealed_off(manifest) as connection:
        pairs = [list(pair) for pair in connection.execute(_DRAW, [seed, num]).fetchall()]
    drawn = [*(before["drawn"] if before else []), [datetime.now(UTC).isoformat(), len(pairs)]]
    found = {"round": manifest.number, "drawn": drawn, "scored": scored, "pairs": pairs}
    write_json(manifest.run, audit.sample_name(manifest.number), found)
    return found
