"""Ready one-liners that open a round in other tools."""

import shlex

from manifests.errors import RunError
from manifests.reading import Manifest


def of_round(manifest: Manifest) -> dict[str, str]:
    """Return a line for each tool.

    Raises:
        RunError: The run lies on no local disk; these tools would need its credentials.
    """
    if not manifest.run.is_local:
        raise RunError(f"{manifest.run.uri} is no local path; in Python: open_round({manifest.run.uri!r}).dataset()")
    parts = f"{manifest.path}/**/*.parquet"
    run, number = manifest.run.path(), manifest.number
    python = f"from manifests import open_round; m = open_round({run!r}, {number})"
    polars = f"pl.scan_parquet({parts!r}).filter(pl.col('label') == 'risky').collect()"
    source = parts.replace("'", "''")
    query = f"SELECT label, reason, count(*), avg(cosine) FROM read_parquet('{source}') GROUP BY ALL"  # noqa: S608  # shown, not run
    return {
        "DuckDB": f"duckdb -c {shlex.quote(query)}",
        "pandas": f"{python}; df = m.to_pandas(['shard', 'key', 'caption', 'cosine', 'label', 'reason'])",
        "polars": f"import polars as pl; df = {polars}",
        "Spotlight": f"{python}; from renumics import spotlight; spotlight.show(m.to_pandas(['key', 'caption', 'cosine']))",
        "Hugging Face": f"from datasets import load_dataset; ds = load_dataset('parquet', data_files={parts!r}, split='train')",
        "the page of pairsan": f"pairsan review {shlex.quote(run)} --round {number}",
    }
