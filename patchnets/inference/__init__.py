"""Trained networks in use: loading them, and applying them to new images."""
