"""Models that score: their weights found and opened with care, their towers, their tokenizers."""
