"""omni-rl: keeps the policy that samples and the policy that learns the same function."""

__version__ = "0.1.0"
