"""From counted values to a cut: the measured null, what people judged, mixtures, crowds; whole histograms, never rows."""
