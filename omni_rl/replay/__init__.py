"""A bundle's sample, put through both policies again on this machine."""
