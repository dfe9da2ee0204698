"""Captions for many pictures from many kinds of sources, in batches, each exactly once."""
