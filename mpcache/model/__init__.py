"""What a model folder holds, and the decoder that computes it on any backend."""
