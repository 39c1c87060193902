"""OpenAI's batch endpoint: half the price, answered within a day."""
