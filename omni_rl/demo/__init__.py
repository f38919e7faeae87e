"""The demo: it runs the jobs' loop on a local pair of policies and shows each step in a terminal."""
