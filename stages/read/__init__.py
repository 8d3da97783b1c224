"""From a shard's bytes to pairs and pixels, whatever is wrong with them. Begin with `shards.read_shard`.

`webdataset` reads tars (on `tar_stream`), `tables` Parquet, `delimited` TSV and CSV; `paths` opens what a row names,
`captions` cleans a caption, `images` decodes a picture.
Imports the nouns of `stages` alone.
"""
