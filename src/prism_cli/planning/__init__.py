"""What a stage will need before it runs: memory a device, and time; numbers in, numbers out."""
