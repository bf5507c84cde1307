"""Training steps to compare. Each file needs only its own library and torch; only ours imports packtrain."""
