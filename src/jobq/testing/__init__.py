"""What tests of jobq are made of: for your own application, and for a storage of your own.

- `run_virtual`, `VirtualLoop`, `VirtualClock`, `OnLoop`: hours of a queue's life in milliseconds, without sleeping.
- `ManualClock`, `FailpointClock`: time set by hand; acting, or dying, at a chosen point inside a storage.
- `FaultyStorage` with a plan: lost requests, lost replies, delays, lost hints.
- `StorageContract`: the conformance kit that every storage must pass, one test per behaviour.
- `storage_machine`, `check_storage_machine`: random sequences of calls against a model; needs ``hypothesis``.
"""

from __future__ import annotations

from jobq.testing.bench import Bench, StorageCase, scenario
from jobq.testing.clocks import FailpointClock, ManualClock, at_pass, kill_process
from jobq.testing.conformance import StorageContract
from jobq.testing.faults import LOSE_REPLY, LOSE_REQUEST, FaultyStorage, Plan, RandomPlan, Trouble, planned
from jobq.testing.machine import check_storage_machine, storage_machine
from jobq.testing.virtual import OnLoop, VirtualClock, VirtualLoop, VirtualTimeError, run_virtual

__all__ = [
    "Bench",
    "FailpointClock",
    "FaultyStorage",
    "LOSE_REPLY",
    "LOSE_REQUEST",
    "ManualClock",
    "OnLoop",
    "Plan",
    "RandomPlan",
    "StorageCase",
    "StorageContract",
    "Trouble",
    "VirtualClock",
    "VirtualLoop",
    "VirtualTimeError",
    "at_pass",
    "check_storage_machine",
    "kill_process",
    "planned",
    "run_virtual",
    "scenario",
    "storage_machine",
]
