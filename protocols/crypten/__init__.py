"""CrypTen on our sessions, with our dealer and our randomness: what its backend needs, and no other."""
