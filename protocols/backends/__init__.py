"""Backends: one interface, several ways to compute."""
