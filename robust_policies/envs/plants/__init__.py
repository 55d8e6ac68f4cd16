"""The plants: equations of motion as pure functions of batches; their numbers are in `envs/`."""
