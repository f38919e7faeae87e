"""What a posted step says by itself, with nobody to ask: checks of its arrays and of the proof that came with them."""
