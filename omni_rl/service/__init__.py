"""The service on one machine: Ray's head, both policies and the coordinator, started and stopped together."""
