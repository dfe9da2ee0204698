"""From a prompt to an answer: caches, sampling, decoding, speculation, sessions."""
