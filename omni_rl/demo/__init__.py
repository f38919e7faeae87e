"""The main job: sample, rescore, compare, learn, update, and compare again."""
