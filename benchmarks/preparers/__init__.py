"""Ways to turn text into token ids on disk, each in a file that needs only its own library: none imports packtrain but ours."""
