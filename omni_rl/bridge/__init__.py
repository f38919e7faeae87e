"""The coordinator's connection to a Ray cluster: what is asked of it, the child process that imports Ray, and the
wire."""
