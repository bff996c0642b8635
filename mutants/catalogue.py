"""All mutants. Each is a bug that some queue has shipped; the name says what is missing or wrong."""

from __future__ import annotations

from mutants.around import AROUND
from mutants.belief import BELIEF
from mutants.callers import CALLERS
from mutants.engine import ENGINE
from mutants.file import FILE
from mutants.memory import MEMORY
from mutants.redis import REDIS
from mutants.wires import WIRES

MUTANTS = (*ENGINE, *CALLERS, *MEMORY, *FILE, *REDIS, *WIRES, *BELIEF, *AROUND)
