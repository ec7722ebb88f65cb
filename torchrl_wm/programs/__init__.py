"""Functions of rows as instructions for a compiled loop, without torch in between.

A :class:`Program` records what a function does while torch executes it; a :class:`FollowedProgram` follows
the training of the modules that the function reads.
"""

from torchrl_wm.programs.followed_program import FollowedProgram
from torchrl_wm.programs.program import Program, Untranslatable, recorded_program
from torchrl_wm.programs.threads import in_threads
from torchrl_wm.programs.watched import Watched

__all__ = [
    "FollowedProgram",
    "Program",
    "Untranslatable",
    "Watched",
    "in_threads",
    "recorded_program",
]
