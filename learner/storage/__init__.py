"""What outlasts the process: checkpoints, and how a disk that is slow or full is dealt with."""
