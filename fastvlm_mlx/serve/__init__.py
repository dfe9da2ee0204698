"""`fastvlm-mlx serve`: an OpenAI-compatible server, and a web page for the camera."""
