"""The pidfile: a kernel lock says who holds it, and the text names that process to people and other tools.

`ranges` defines the kernel locks, `holder` finds out who holds a file and only reads, `hold` takes a file, hands it
over and releases it, and `pidfile` has `PidFile`, the public class.
"""
