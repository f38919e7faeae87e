"""The commands of `omni-rl` that have files of their own, and what they share."""
