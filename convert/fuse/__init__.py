"""Training branches, norms and scales folded into the weights that run; and the form Apple releases."""
