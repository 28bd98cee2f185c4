"""The control plane: the HTTP API that steers a run, its event feed and its dashboard."""
