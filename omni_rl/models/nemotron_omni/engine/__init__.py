"""Nemotron Omni in vLLM: its class with what an RL rollout needs, for processes that serve it."""
