"""Breaks a live run on purpose, and measures whether it is noticed, named and mended."""
