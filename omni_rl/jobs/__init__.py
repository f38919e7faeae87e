"""The code that a Ray job runs: GRPO and PPO, step by step, through the service that hosts both policies."""
