"""What a model directory holds, what is wrong with it, and the repair."""
