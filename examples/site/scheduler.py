"""Does something every few moments: here it counts in the store."""

import os
import signal
import threading

from ask import ask

if __name__ == "__main__":
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    while not stopping.wait(float(os.environ["EVERY"])):
        print("tick", ask("incr ticks"))
