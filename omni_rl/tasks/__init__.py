"""Tasks with rewards that need no judge: a prompt, an expected answer, a pure function that compares."""
