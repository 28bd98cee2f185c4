"""What the exit codes of `tributary` mean."""

OK = 0
FAILED = 1
UNUSABLE = 2
"""The command line, the run file or something that it names cannot be used."""
INTERRUPTED = 130
