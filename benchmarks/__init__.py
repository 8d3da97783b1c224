"""Measurements. Each prints ratios of two things run side by side on one machine, and the machine and commit."""
