"""Whether a model's values fit fixed point: by its weights, and by a watched run in plaintext."""
