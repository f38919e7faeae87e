"""Measures how near the trainer's forward comes to vLLM's, module by module and as a whole."""
