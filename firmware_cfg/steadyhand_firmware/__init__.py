"""What the six servos of an SO-101 are and how they must be set."""
