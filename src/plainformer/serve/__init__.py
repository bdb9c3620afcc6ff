"""Serving: models that answer many callers at once, in this process and over HTTP."""
