"""Captions for many pictures: found wherever they are, answered in batches, each exactly once."""
