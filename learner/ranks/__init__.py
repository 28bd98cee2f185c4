"""Several processes that train one model together: who they are, what each holds, and what rank 0 tells the others."""
