"""What a rollout earns, and what its tokens are worth to the policy."""
