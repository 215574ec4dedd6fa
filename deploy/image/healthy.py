#!/opt/farm/bin/python3 -I
"""farm-healthy [PORT [PATH]]: exit 0 when this machine answers 200 there; without any, if the service is ready."""

import http.client
import os
import sys


def main(port: str = os.environ.get("FARM_PORT", "8080"), path: str = "/readyz") -> str | None:
    """What is wrong, None when nothing is."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=2)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"127.0.0.1:{port}{path}: {error}"
    return None if status == http.HTTPStatus.OK else f"127.0.0.1:{port}{path}: status {status}"


sys.exit(main(*sys.argv[1:]))
