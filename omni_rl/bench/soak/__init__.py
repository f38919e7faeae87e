"""A service under load, with processes that die."""
