"""What the exit codes of `tributary` mean."""

OK = 0
FAILED = 1
UNUSABLE = 2
"""The command line, the run file or something that it names cannot be used, or may not be."""
UNFINISHED = 3
"""What was asked for is accepted and will happen, but has not within the time that was waited for it."""
INTERRUPTED = 130
