"""Sweeps: search spaces, running them, resuming them, and what came out."""
