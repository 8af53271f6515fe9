"""gunicorn -c gunicorn.conf.py app:app."""

import gc
import re

from gunicorn.glogging import Logger

from flask_noc_realtime.gunicorn import child_exit  # noqa: F401

bind = "127.0.0.1:8000"
worker_class = "gevent"
workers = 4
# A worker that leaves gives the requests it has so many seconds. Streams need none.
graceful_timeout = 30
# Streams that all come back at once wait here, not for a second try of their browser.
backlog = 4096

# New connections cost a fifth less: Python looks for garbage less often.
gc.set_threshold(50_000, 20, 50)


class AccessLogger(Logger):
    """Logs neither a token, which is in the query, nor a ticket."""

    def atoms(self, resp, req, environ, request_time):
        """Return what a line may show."""
        atoms = super().atoms(resp, req, environ, request_time)
        return {**atoms, "U": re.sub("/stream/.*", "/stream/-", atoms["U"])}


logger_class = AccessLogger
accesslog = "-"
access_log_format = '%(h)s %(t)s "%(m)s %(U)s %(H)s" %(s)s %(b)s "%(a)s"'
