"""A legacy NOC app, and the same app with real time added in a few lines."""
