"""The program of the README's picture."""

import json
import sys
import time

import daemonkit


def main(daemon):
    with open("settings.json") as file:
        settings = json.load(file)
    daemon.ready()
    while True:
        print(settings["greeting"])
        time.sleep(1)


service = daemonkit.Service(
    main,
    pidfile="app.pid",
    stdout="app.log",
    working_directory=".",
    wait_ready=True,
)
if __name__ == "__main__":
    sys.exit(service.main())
