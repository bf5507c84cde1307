"""Models to use or to start from: a run's, or one from elsewhere. `open` decides which; each reader has a file of its own."""
