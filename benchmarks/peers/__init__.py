"""What others take for the same work: SPU (ABY3, SEMI2K) and CrypTen's own protocols. See README.md here."""
