"""Chosen pairs as trainers read them, images and captions byte for byte. Begin with `write_pairs.Export`.

May import `read` and the nouns; neither `label` nor `train`.
"""
