"""How long a FastVLM takes, and how long it must: measured, and worked out from its configuration."""
