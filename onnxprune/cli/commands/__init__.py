"""One module for each job of the command line; `run(argv)` does it and returns the exit code.

They know flags and what is printed, not how the work is done.
"""
