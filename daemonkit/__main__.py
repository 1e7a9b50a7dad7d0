"""`python -m daemonkit`."""

from daemonkit.cli import script

if __name__ == "__main__":
    script()
