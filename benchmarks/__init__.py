"""Measures how fast an update is, compared with the processor's limit and other libraries."""
