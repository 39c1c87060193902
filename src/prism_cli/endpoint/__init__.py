"""An OpenAI-compatible endpoint: each question once, every answer kept, within a budget."""
