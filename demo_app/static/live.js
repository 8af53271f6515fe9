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
const RETRY = 3000;

window.nocLatencies = [];
let last = Date.now();
// Events that arrive while the page is being fetched: newer than what it will say.
let held = [];

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

const show = (event) => {
  const { type, data, timestamp } = JSON.parse(event.data);
  HANDLERS[type](data);
  last = Date.now();
  window.nocLatencies.push(last - Date.parse(timestamp));
  if (window.nocLatencies.length > 1000) window.nocLatencies.shift();
  const recent = window.nocLatencies.slice(-50);
  noc.get("latency").textContent =
    `event to screen ${recent.at(-1)} ms, median ${median(recent)} ms`;
};

const drain = () => {
  const waiting = held;
  held = null;
  waiting.forEach(show);
};

let fetches = 0;
const refetch = async () => {
  held ??= [];
  const mine = ++fetches;
  try {
    await noc.load();
  } catch {
    if (mine === fetches) setTimeout(refetch, RETRY);
    return;
  }
  if (mine === fetches) drain();
};

// From the position of the page: what happened since is replayed, so that nothing falls between.
const open = (from) => {
  const source = new EventSource(`${stream}?last_event_id=${encodeURIComponent(from)}`);
  const on = (type, handle) => source.addEventListener(type, (event) => {
    from = event.lastEventId || from;
    last = Date.now();
    handle(event);
  });
  on("stream.open", () => noc.state("live"));
  on("stream.reset", refetch);
  on("heartbeat", () => {});
  for (const type of Object.keys(HANDLERS)) {
    on(type, (event) => { if (held) held.push(event); else show(event); });
  }
  source.addEventListener("error", () => {
    noc.state("reconnecting");
    // EventSource gives up on an error page; a proxy shows one while the app restarts.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => open(from), RETRY);
  });
};

setInterval(() => {
  const seconds = Math.round((Date.now() - last) / 1000);
  noc.get("freshness").textContent = `last event ${seconds} s ago`;
}, 1000);

clearInterval(noc.polling);
noc.loaded.then(drain, () => setTimeout(refetch, RETRY)).then(() => {
  noc.state("connecting");
  open(position);
});
