"""Evaluation: reads data sets of questions, answers them in batches and scores the answers."""
