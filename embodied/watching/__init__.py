"""A camera's moments scored as they come: the pipeline, who scores, what a moment comes to, keys and the terminal."""
