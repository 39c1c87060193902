"""Command-line options of recipe keys: the one table of them, for messages."""

# Dotted key → the command-line option that sets it, for messages.
FLAGS = {
    "model": "--model",
    "data": "--data",
    "from": "--from",
    "discriminator.warmup.data": "--data",
    "output": "--output",
    "teacher.endpoint": "--teacher-endpoint",
    "teacher.model": "--teacher-model",
    "teacher.store": "--teacher-store",
    "teacher.max_calls": "--max-teacher-calls",
    "teacher.max_usd": "--max-teacher-usd",
    "max_steps": "--max-steps",
    "samples": "--samples",
    "keep": "--keep",
    "band": "--band",
    "seed": "--seed",
    "runs": "RUN",
    "benchmarks.tasks": "--benchmarks",
}
