"""The pidfile: a kernel lock for truth, a number for readers."""
