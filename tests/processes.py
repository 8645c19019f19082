"""`mfdan serve` in a process of its own, as an operator starts it."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2
from serving import wait_for


class Process:
    """A running service, and where it is to be found. Its standard error is read as it comes."""

    def __init__(self, popen: subprocess.Popen[str], home: Path) -> None:
        self.popen = popen
        self.home = home
        """Its working, home and temporary folder."""
        self.said = ""
        """What it wrote to standard error so far; all of it, once it has ended."""
        self.written = ""
        """What it wrote to standard output, where that is a pipe; all of it, once it has ended."""
        self._readers = [
            threading.Thread(target=self._read, args=(name, stream))
            for name, stream in (("said", popen.stderr), ("written", popen.stdout))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def url(self) -> str:
        """Where it serves."""
        return self._told(r"serves .+ on (http\S+)")

    @property
    def metrics_url(self) -> str:
        """Where its metrics are, if not with the rest."""
        return self._told(r"metrics on (\S+)")

    @property
    def port(self) -> int:
        """Of the main address."""
        return int(self.url.rsplit(":", 1)[1])

    def wait_until_ready(self) -> None:
        """Wait for /health/ready; fail where it ends before."""
        wait_for(lambda: self.popen.poll() is not None or self._is_ready())
        assert self.popen.poll() is None, self.said

    def end(self) -> int:
        """Wait until it has ended by itself; return its exit status."""
        status = self.popen.wait(60)
        for reader in self._readers:
            reader.join(20)
        return status

    def _read(self, name: str, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                setattr(self, name, getattr(self, name) + line)

    def _told(self, pattern: str) -> str:
        wait_for(lambda: self.popen.poll() is not None or re.search(pattern, self.said) is not None)
        found = re.search(pattern, self.said)
        assert found, self.said
        return found[1]

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health/ready", timeout=5).is_success
        except httpx2.TransportError:
            return False


@contextmanager
def serving_process(
    models: Path, output: int = subprocess.PIPE, **variables: str
) -> Iterator[Process]:
    """Start the service on a free port, unless MFDAN_PORT says which; kill it at the end."""
    with tempfile.TemporaryDirectory() as home:
        popen = subprocess.Popen(
            [sys.executable, "-c", "from service.cli import app; app()", "serve"],
            env={
                "PATH": "",
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "HOME": home,
                "TMPDIR": home,
                "PYTHONDONTWRITEBYTECODE": "1",
                "MFDAN_MODELS_DIR": str(models),
                "MFDAN_PORT": "0",
                **{name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"},
                **variables,
            },
            cwd=home,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
        process = Process(popen, Path(home))
        try:
            yield process
        finally:
            popen.kill()
            process.end()
