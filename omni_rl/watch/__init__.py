"""Runs of other frameworks: hooks in a live run, and readers of what it keeps in memory and writes to disk."""
