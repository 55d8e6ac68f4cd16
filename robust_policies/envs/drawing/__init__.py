"""Pictures of the plants: one file each, all on the same canvas."""
