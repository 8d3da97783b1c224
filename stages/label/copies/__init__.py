"""Copies and namesakes: which rows share an image or a uid, and which one of several is kept."""
