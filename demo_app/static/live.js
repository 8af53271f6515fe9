// What real time adds to the dashboard: a stream instead of the polling.

const { position, client } = document.querySelector("script[data-position]").dataset;
const { connect } = await import(client);

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
// A reconnect takes a moment, which nobody needs to be told of twice.
const UNWORTHY = 2000;

// Events that arrive while the page is being fetched: newer than what it will say.
let held = [];
const latencies = (window.nocLatencies = []);

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

const show = ({ type, data, timestamp }) => {
  HANDLERS[type](data);
  latencies.push(Date.now() - Date.parse(timestamp));
  if (latencies.length > 1000) latencies.shift();
  const recent = latencies.slice(-50);
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

const miss = (reason) => {
  // Of another history, perhaps, in which no version is newer than another.
  for (const row of document.querySelectorAll("#incidents tr")) row.version = 0;
  refetch();
  const { gaps } = stream.snapshot();
  const times = gaps > 1 ? `, for the ${gaps}. time` : "";
  const forget = () => noc.banner("gap", "warning", null);
  noc.banner("gap", "warning",
    `Events were missed at ${noc.time(Date.now())} (${reason})${times}; all is fetched again.`,
    ...(noc.wallboard ? [] : [noc.button({}, "Understood", forget)]));
  // Nobody presses anything at a wallboard.
  if (noc.wallboard) setTimeout(forget, 60_000);
};

const BANNERS = {
  reconnecting: ["critical", (since) =>
    `No connection since ${since}. What is shown may be old; it is tried again by itself.`],
  polling: ["warning", () =>
    "Streams do not come through, so the server is asked every few seconds. " +
    "It goes back to live by itself."],
  offline: ["critical", (since) => `This computer is offline since ${since}.`],
  unauthorized: ["critical", () =>
    "You are logged out. What is shown is old until somebody logs in, in any window.", noc.logIn],
};

const tell = ({ name, since }) => {
  noc.state(name);
  const [tone, text, action] = BANNERS[name] ?? [];
  const quiet = name === "reconnecting" && Date.now() - since < UNWORTHY;
  if (!text) noc.banner("connection", "critical", null);
  else if (!quiet) noc.banner("connection", tone, text(noc.time(since)), ...(action ? [action()] : []));
};

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

clearInterval(noc.polling);
noc.patience = 5000;
noc.state("connecting");
await noc.loaded.then(drain, () => setTimeout(refetch, RETRY));
// From the position of the page: what happened since is replayed, so that nothing falls between.
const stream = connect({
  since: position,
  types: Object.keys(HANDLERS),
  share: noc.me,
  // Who has just logged in again is not to wait for what another tab tries once in half a minute.
  maxDelay: 5000,
  onState: tell,
  onGap: ({ reason }) => miss(reason),
});
stream.on("*", (_, event) => { if (held) held.push(event); else show(event); });
window.nocStream = stream;

noc.footer = () => {
  const { name, lastEventAt, gaps, streams, tabs } = stream.snapshot();
  tell(stream.snapshot());
  // Silence is news as well: heartbeats say that nothing happened.
  if ((name === "live" || name === "polling") && !held) noc.confirm(Object.keys(noc.SOURCES));
  const parts = [lastEventAt ? `last event ${noc.ago(Date.now() - lastEventAt)} ago` : "no event yet"];
  parts.push(`${gaps} missed`);
  if (tabs) parts.push(`${plural(streams, "stream")} / ${plural(tabs, "tab")}`);
  noc.get("connection").textContent = `· ${parts.join(" · ")}`;
};
