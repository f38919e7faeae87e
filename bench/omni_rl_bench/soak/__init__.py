"""Runs a service under load, with processes that die."""
