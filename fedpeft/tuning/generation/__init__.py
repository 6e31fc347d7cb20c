"""Text of a language model, token by token, and how good it is against what should have been written."""
