"""Learning to do what a teacher does."""
