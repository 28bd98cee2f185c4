"""The commands beside `up`: each asks the control plane, or checks, and shows the answer."""
