"""What a run's steps were, kept: records as they arrive, figures, the worst samples, syncs, events and incidents."""
