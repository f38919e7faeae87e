"""Names the cause when the two policies part: checks from cheap to expensive, each with its numbers; numpy only."""
