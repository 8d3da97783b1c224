"""From pixels and captions to vectors and cosines, by any open_clip checkpoint. Begin with `embed.Embed`.

May import `read` and the nouns of `stages`.
"""
