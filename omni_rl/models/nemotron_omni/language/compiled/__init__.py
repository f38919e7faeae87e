"""What the language model computes in loops of its own on a CPU, compiled: rows are read while the cache has them.

Every loop takes float32 or float64; a bfloat16 model's are float32 that are rounded where the engine rounds.
"""
