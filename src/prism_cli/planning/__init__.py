"""Needs of a stage before it runs: memory per device, and time; numbers in, numbers out."""
