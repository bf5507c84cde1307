"""What one GPU does with packtrain: rates of kernels, checks that steps are right, and training steps, within a deadline."""
