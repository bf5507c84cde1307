"""Training steps to compare, each in a file that needs only its own library and torch: none imports packtrain but ours."""
