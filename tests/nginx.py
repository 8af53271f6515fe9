"""A real nginx before a server."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

from tests.gunicorn_server import GunicornServer
from tests.processes import free_port, wait_until
from tests.requirements import find

# Everything nginx writes stays in the test's directory.
SURROUNDINGS = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 256; }}
http {{
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  gzip on;
  gzip_proxied any;
  gzip_min_length 0;
  gzip_types text/event-stream application/json;
  {sites}
}}
"""

SITE = """
  access_log off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_read_timeout {silence};
      {extra}
    }}
  }}
"""


class Nginx:
    """A running nginx in front of *server*.

    :param extra: directives for the way to the server.
    :param silence: how long the server may say nothing.
    """

    def __init__(
        self, server: GunicornServer, directory: Path, extra: str = "", silence: str = "2s"
    ) -> None:
        executable = find("nginx")
        if executable is None:
            raise FileNotFoundError("missing nginx")
        directory.mkdir()
        self.address = ("127.0.0.1", free_port())
        self.directory = directory
        config = directory / "nginx.conf"
        site = SITE.format(port=self.address[1], upstream=server.port, extra=extra, silence=silence)
        config.write_text(SURROUNDINGS.format(directory=directory, sites=site))
        self._process = subprocess.Popen(
            [executable, "-p", str(directory), "-e", str(directory / "error.log"), "-c", config],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(self._answers, 10, "nginx answers")
        except BaseException:
            self.stop()
            raise

    def log(self) -> str:
        """Return its error log."""
        return (self.directory / "error.log").read_text()

    def stop(self) -> None:
        """End it at once."""
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"nginx ended at once:\n{self.log()}")
        try:
            urllib.request.urlopen("http://{}:{}/pid".format(*self.address), timeout=1).close()
        except OSError:
            return False
        return True
