"""The work: reading pairs, encoders, scores, the split. Torch lives here, ray never."""
