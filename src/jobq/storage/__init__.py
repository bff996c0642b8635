"""Where jobs are kept: the contract, and the storages that keep it."""
