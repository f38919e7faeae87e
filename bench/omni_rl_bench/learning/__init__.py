"""Runs jobs that learn, jobs that must not, and jobs whose engine samples from another policy."""
