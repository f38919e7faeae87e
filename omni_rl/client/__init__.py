"""What other processes use of omni-rl; importing it needs neither torch nor Ray."""
