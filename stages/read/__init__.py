"""From a shard's bytes to pairs and pixels, whatever is wrong with them. Begin with `shards.read_shard`.

`formats` has a reader for each kind of shard: tars, tables, delimited text, folders; `paths` opens what a row names,
`captions` cleans a caption, `images` decodes a picture.
Imports the nouns of `stages` alone.
"""
