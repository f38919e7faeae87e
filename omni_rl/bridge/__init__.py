"""The coordinator's hold on a Ray cluster: the child process that imports Ray, and the wire to it."""
