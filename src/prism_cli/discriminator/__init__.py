"""The discriminator: scores the parts of a response, and so tells the teacher's from the policy's."""
