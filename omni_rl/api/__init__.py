"""Defines what goes over the wire between the coordinator and its clients, one file a subject; bodies have examples."""
