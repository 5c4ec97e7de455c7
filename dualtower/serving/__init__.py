"""A catalog as an HTTP service, with a page to search it."""
