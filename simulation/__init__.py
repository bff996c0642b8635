"""Seeded simulation: the real queues, workers and reapers in virtual time, behind connections that fail."""
