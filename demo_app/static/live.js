// What real time adds to the dashboard: a stream instead of the polling.
"use strict";

const { stream, position } = document.currentScript.dataset;

const HANDLERS = {
  "incident.created": noc.incident,
  "incident.updated": noc.incident,
  "incident.status.changed": noc.incident,
  "server.status.changed": noc.server,
  "log.added": noc.line,
  "automation.started": noc.run,
  "automation.completed": noc.run,
};

window.nocLatencies = [];
let last = Date.now();
let source;

clearInterval(noc.polling);
noc.state("connecting");

// From the position of the page: what happened since is replayed, so that nothing falls between.
const open = (from) => {
  source = new EventSource(`${stream}?last_event_id=${encodeURIComponent(from)}`);
  source.addEventListener("stream.open", () => noc.state("live"));
  source.addEventListener("stream.reset", () => noc.load());
  source.addEventListener("heartbeat", () => { last = Date.now(); });
  source.addEventListener("error", () => {
    noc.state("reconnecting");
    if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000, from);
  });
  for (const [type, draw] of Object.entries(HANDLERS)) {
    source.addEventListener(type, (event) => {
      const { data, timestamp } = JSON.parse(event.data);
      draw(data);
      last = Date.now();
      window.nocLatencies.push(last - Date.parse(timestamp));
      document.getElementById("latency").textContent =
        `event to screen ${window.nocLatencies.at(-1)} ms`;
      from = event.lastEventId;
    });
  }
};

setInterval(() => {
  document.getElementById("freshness").textContent =
    `last event ${Math.round((Date.now() - last) / 1000)} s ago`;
}, 1000);

noc.loaded.then(() => open(position), () => open(position));
