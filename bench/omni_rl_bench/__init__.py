"""Benchmarks: each one writes one file into `bench/`, from which the README's numbers come."""
