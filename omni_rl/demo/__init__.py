"""The jobs' loop on a local pair, with a terminal: sample, rescore, compare, learn, update, and compare again."""
