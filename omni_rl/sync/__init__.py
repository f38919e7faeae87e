"""Moves weights from the training copy into the engine."""
