"""What goes into a prompt: pictures, tiles, videos, text, tokens, rows of a data set."""
