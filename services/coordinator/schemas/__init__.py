"""What goes over the wire, one file a subject; every model has an example."""
