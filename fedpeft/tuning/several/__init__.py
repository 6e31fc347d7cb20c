"""Examples of several texts: rows taken apart, texts that belong together, their vectors and their loss."""
