"""Turns records into what a reader sees: statistics, figures, claims, tables, and the chapters that show them."""
