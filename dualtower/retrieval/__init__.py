"""From embeddings to hits: a catalogue on disk, filters over its attributes, and search by text, picture or both."""
