"""The series: what must run (state), running it (runner, kernel), its report, and the check before it.

Nothing else of the package imports this room, and no file of it can change a notebook's result.
"""
