"""Serve the tests' app from a server that is not gunicorn: `python -m tests.server.serve`."""

from __future__ import annotations

import sys


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


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
