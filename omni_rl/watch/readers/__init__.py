"""Other trainers' steps as records to post: what they keep in memory, and what they write to disk."""
