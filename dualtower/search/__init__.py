"""From embeddings to hits: a catalog on disk, filters over its attributes, and search by text, image or both."""
