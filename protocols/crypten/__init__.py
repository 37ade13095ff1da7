"""CrypTen on our sessions, with our dealer and our randomness; and its sharing, which our secrets are made of."""
