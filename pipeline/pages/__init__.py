"""The report, and the review page (served in `review`), on `gallery` (DuckDB over a sealed round) and `thumbnails`."""
