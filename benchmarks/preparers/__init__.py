"""Ways to turn text into token ids on disk. Each file needs only its own library; only ours imports packtrain."""
