"""Offline datasets: read and check them, collect our own, render them."""
