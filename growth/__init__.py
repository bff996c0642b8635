"""Growth: what must not grow while jobs flow, and what a crowd of queues or of failed jobs may cost."""
