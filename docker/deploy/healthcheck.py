"""Ask the service of this container whether it is ready; the image's health check.

It goes by MFDAN_HOST and MFDAN_PORT, as the service does. Exit status 0: ready; 1: not, and why, in
one sentence. Needs nothing but Python.
"""

import http.client
import json
import os
import sys

PATIENCE_S = 4
"""Less than the health check's own five seconds, so that a service that hangs is told as such."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - none is bound


def main() -> None:
    """Print the answer and end with 0 or 1."""
    ready, said = ask(
        os.environ.get("MFDAN_HOST", "127.0.0.1"), os.environ.get("MFDAN_PORT", "8000")
    )
    print(said)
    sys.exit(0 if ready else 1)


def ask(host: str, port: str) -> tuple[bool, str]:
    """Return whether the service is ready, and a sentence about it."""
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        return False, f"MFDAN_PORT is {port!r}: it must be a number from 1 to 65535 to be asked at"
    address = ANY_ADDRESS.get(host, host)
    connection = http.client.HTTPConnection(address, int(port), timeout=PATIENCE_S)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        return judged(response.status, response.read(2**16))
    except TimeoutError:
        return False, f"nothing was answered on {address}:{port} within {PATIENCE_S} s"
    except (OSError, http.client.HTTPException) as error:
        return False, f"nobody serves HTTP on {address}:{port}: {type(error).__name__}"
    finally:
        connection.close()


def judged(status: int, body: bytes) -> tuple[bool, str]:
    """Return whether an answer says ready, and its own words: a status, or a problem's detail."""
    try:
        answer = json.loads(body)
        said = answer.get("detail") or answer["status"]
    except (ValueError, AttributeError, KeyError):
        return False, f"{status}, and the answer is not mfdan's: does something else serve there?"
    return status == http.HTTPStatus.OK and said == "ready", f"{status}: {said}"


if __name__ == "__main__":
    main()
