"""Compiled loops that the language model runs on a CPU: rows are read while the cache has them.

Every loop takes float32 or float64; a bfloat16 model's values are float32 that are rounded where the engine rounds.
"""
