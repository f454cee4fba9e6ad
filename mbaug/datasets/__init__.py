"""Offline datasets: read, check and import them, collect our own, render them."""
