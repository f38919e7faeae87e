"""Sends mutated requests to a coordinator: a grammar of its whole API, a sender, and a watch on its event loop."""
