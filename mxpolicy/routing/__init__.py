"""What to do: no I/O, no clock, no chance of its own."""
