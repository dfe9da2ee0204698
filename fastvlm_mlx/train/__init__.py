"""Making the built-in demo model: pictures with known contents, questions about them, and the training."""
