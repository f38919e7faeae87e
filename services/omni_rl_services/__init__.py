"""Services around the library."""
