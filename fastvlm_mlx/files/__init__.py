"""Files that appear whole or not at all, journals of JSON lines, strict parsing."""
