"""What prime-rl 0.8.0 shows to a custom loss. It is not on PyPI: these are its names, fields and calls, and a loss of
our own. Where the real one can be imported, the tests take that."""
