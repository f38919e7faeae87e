"""What a run's steps were, stored: records as they arrive, figures, the worst samples, syncs, events and incidents."""
