"""Questions with known answers: data sets read, answered in batches, scored."""
