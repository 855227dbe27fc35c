"""Trainers side by side: each a process of its own, that computes one epoch when it is told to and waits otherwise."""
