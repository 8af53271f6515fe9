"""celery -A tasks worker."""

import os

from celery import Celery
from celery.signals import worker_process_shutdown

from flask_noc_realtime import Emitter

celery = Celery("tasks", broker=os.environ["CELERY_BROKER_URL"])
emitter = Emitter.from_mapping(os.environ)


@celery.task
def restart(server):
    """Restart a server, and let everybody see it."""
    emitter.emit("automation.started", {"server": server})
    # What takes its time.
    emitter.emit("automation.completed", {"server": server})


@worker_process_shutdown.connect
def leave(**_):
    """Give events that wait for Redis a last chance: such a process runs nothing at exit."""
    emitter.close()
