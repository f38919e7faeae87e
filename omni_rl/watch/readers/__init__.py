"""What other trainers, and people, write of their steps to disk, as records."""
