"""Checks that the programs an export is for will load it."""
