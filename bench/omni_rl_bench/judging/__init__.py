"""Measures how seldom a posted step where nothing is wrong is called anything else than ok."""
