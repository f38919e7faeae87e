"""Eyes inside any vLLM worker: what a weight update really did, told to a coordinator."""
