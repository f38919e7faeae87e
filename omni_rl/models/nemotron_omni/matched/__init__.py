"""Modules that round where vLLM on CPU rounds, bit for bit, for the mode `numerics = "matched"`.

Every mixer gets one sequence at a time, as in a prefill alone: the last bits of a float32 product, and of an
exponential at the end of a tensor, depend on how many rows there are.
"""
