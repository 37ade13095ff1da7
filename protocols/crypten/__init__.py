"""CrypTen's own protocols on our sessions: the baseline."""
