"""The chaos soak: real processes, a nemesis that hurts them, and an offline check of what they wrote down.

    python -m soak --storage file --minutes 1

`conductor` starts the parts (`producer`, `worker`, `reaper`, `waiter`, at the end one `surveyor`), each a process of
its own that uses only the public door of jobq, and lets the `nemesis` loose on them and on the storage (`stage`).
Every part appends to an audit file (`audit`) before and after whatever it does. When all is quiet, `checker` reads the
files, and only them, and `report` says what it found.
"""
