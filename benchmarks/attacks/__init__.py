"""The red team: attacks on image-caption data, each a small frozen dataclass whose fields are its options."""
