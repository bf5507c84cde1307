"""Where slices are worked on: processes of this machine, or Ray."""
