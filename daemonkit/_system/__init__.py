"""The system as daemonkit needs it: processes, descriptors, users. Nothing here knows of pidfiles or daemons."""
