"""The command line: starts and watches a run, and steers it through the control plane's HTTP API."""
