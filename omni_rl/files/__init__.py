"""Checkpoint directories on disk: which of their files hold the weights, and how a directory appears whole; and TOML
files."""
