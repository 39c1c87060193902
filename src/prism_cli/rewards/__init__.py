"""Rewards of rollouts, and advantages of their tokens."""
