"""SAC whose actor and critics have a memory, from sequences with stored states."""
