"""Trackers: the record of the run, written beside its own event log where people are used to look."""
