"""`fastvlm-mlx serve`: an OpenAI-compatible server, and a page that looks through a camera."""
