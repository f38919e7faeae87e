"""Compares the two policies; numpy only."""
