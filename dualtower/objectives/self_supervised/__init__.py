"""What an image tower learns from images alone: contrast between views, prediction of a slow copy, reconstruction."""
