"""Serve the tests' app from a server that is not gunicorn: `python -m tests.server.serve`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask


def main(kind: str, port: int) -> None:
    """Serve until killed; *kind* is pywsgi, pywsgi-unpatched or werkzeug."""
    if kind == "pywsgi":
        from gevent import monkey

        monkey.patch_all()
    from tests.server.transport_apps import create_app

    app = create_app()
    if kind == "werkzeug":
        from werkzeug.serving import make_server

        make_server("127.0.0.1", port, app, threaded=True).serve_forever()
        return
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), app, log=None).serve_forever()


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an app from threads of this process."""
    from werkzeug.serving import make_server

    from flask_noc_realtime.testing import process_of

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        process_of(app).close()
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
