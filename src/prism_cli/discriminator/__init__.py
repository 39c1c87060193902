"""The judge of the game: tells a teacher's parts from the policy's, and so gives the policy its reward."""
