// The dashboard of a legacy app: it draws what the JSON endpoints say, and asks every 5 s.
"use strict";

const SEVERITIES = { critical: "▲", major: "◆", minor: "■", warning: "●" };
const STATUSES = { open: "○", escalated: "⇧", resolved: "✓" };
const LEVELS = { error: "critical", warning: "minor", info: "info", debug: "info" };
const RUNS = { running: ["warning", "▶"], succeeded: ["good", "✓"], failed: ["critical", "✕"] };
const MARKS = { up: "", degraded: "!", down: "✕" };
const KINDS = ["core", "edge", "sw", "srv"];
const KEPT = 60;
const EVERY = 5000;
// Rows are sorted by number, newest first; the resolved ones come after all others.
const RESOLVED = 1e12;

const noc = {
  drawn: false,
  loading: false,
  me: document.body.dataset.user,
  permissions: new Set(document.body.dataset.permissions.split(" ")),
  wallboard: "wallboard" in document.documentElement.dataset,
  // After how long a widget that nobody has confirmed is shown as stale: two polls, and an answer.
  patience: 2 * EVERY + 2000,
};

noc.get = (id) => document.getElementById(id);

noc.element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

noc.button = (attributes, text, react) => {
  const made = noc.element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", react);
  return made;
};

noc.time = (text) => new Date(text).toLocaleTimeString("en-GB");

noc.ago = (milliseconds) => {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
};

// Put the row where it belongs, unless it is there already: a poll that brings nothing new
// must neither flash nor take the focus from a button.
noc.put = (list, id, rank, row, make) => {
  const text = JSON.stringify(row);
  const old = noc.get(id);
  // Two answers may overtake each other.
  if (old && (old.row === text || old.version > row.version)) return;
  const made = Object.assign(make(), { id, rank, row: text, version: row.version });
  if (noc.drawn) made.classList.add("new");
  const focused = old?.contains(document.activeElement) && document.activeElement;
  const next = [...list.children].find((other) => other !== old && other.rank > rank);
  old?.remove();
  list.insertBefore(made, next ?? null);
  if (focused) {
    ((focused !== old && made.querySelector("button")) || made).focus({ preventScroll: true });
  }
  while (list.children.length > KEPT) list.lastElementChild.remove();
};

noc.incident = (incident) => {
  const rank = (incident.status === "resolved" ? RESOLVED : 0) - incident.id;
  const id = `incident-${incident.id}`;
  const known = noc.get(id) !== null;
  noc.put(noc.get("incidents"), id, rank, incident, () => {
    const waiting = incident.status !== "resolved" && !incident.acknowledged_by;
    const row = noc.element("tr", { tabindex: "-1" },
      noc.element("td", { class: "severity", "data-tone": incident.severity },
        noc.element("b", {}, SEVERITIES[incident.severity]), incident.severity),
      noc.element("td", { class: "device" }, incident.server),
      noc.element("td", { class: "title" }, incident.title),
      noc.element("td", { class: "status" }, `${STATUSES[incident.status]} ${incident.status}`),
      noc.element("td", { class: "time" }, noc.time(incident.opened_at)),
      noc.element("td", { class: "owner" }, noc.element("div", {}, ...noc.owner(incident, waiting))));
    Object.assign(row.dataset, { status: incident.status, severity: incident.severity });
    if (waiting) row.dataset.waiting = "";
    return row;
  });
  noc.count();
  document.dispatchEvent(new CustomEvent("incident", { detail: { incident, known } }));
};

noc.owner = (incident, waiting) => {
  const ask = (what) => {
    const label = `${what} ${incident.server}: ${incident.title}`;
    return noc.button({ "aria-label": label }, what, () => noc.ask(incident.id));
  };
  const may = (permission) => !noc.wallboard && noc.permissions.has(permission);
  if (waiting) {
    return [may("incidents.acknowledge") ? ask("Acknowledge")
      : noc.element("span", { class: "nobody" }, "nobody yet")];
  }
  if (!incident.acknowledged_by) return [];
  const { acknowledged_by: who, acknowledged_at: at, comment } = incident;
  const parts = [noc.element("b", {}, `✓ ${who}`), noc.element("time", {}, noc.time(at))];
  if (comment) parts.push(noc.element("span", { class: "comment", title: comment }, comment));
  if (incident.status !== "resolved" && who !== noc.me && may("incidents.take_over")) {
    parts.push(ask("Take over"));
  }
  return parts;
};

noc.site = (name) => noc.get(`site-${name}`) ?? noc.get("servers").appendChild(
  noc.element("div", { class: "site", id: `site-${name}` }, noc.element("b", {}, name),
    ...KINDS.map((kind) => noc.element("div", { "data-kind": kind }))));

noc.server = (server) => {
  const kind = noc.site(server.site).querySelector(`[data-kind="${server.kind}"]`);
  noc.put(kind, `server-${server.name}`, server.id, server, () => {
    const label = `${server.name} is ${server.status} since ${noc.time(server.since)}`;
    const named = { role: "img", "aria-label": label, title: label };
    return noc.element("span", { ...named, "data-status": server.status }, MARKS[server.status]);
  });
  noc.count();
};

noc.logged = (line) => noc.element("li", { "data-tone": LEVELS[line.level] },
  noc.element("time", {}, noc.time(line.at)),
  noc.element("span", { class: "level" }, line.level),
  noc.element("span", { class: "source" }, line.source),
  noc.element("span", { class: "text" }, line.text));

noc.line = (line) => {
  noc.put(noc.get("log"), `line-${line.id}`, -line.id, line, () => noc.logged(line));
  document.dispatchEvent(new CustomEvent("line", { detail: line }));
};

noc.run = (run) => {
  const [tone, mark] = RUNS[run.status];
  const parts = () => [
    noc.element("span", { class: "state", "data-tone": tone }, `${mark} ${run.status}`),
    noc.element("span", {}, run.name),
    noc.element("span", { class: "device" }, run.server),
    noc.element("time", {}, noc.time(run.finished_at ?? run.started_at)),
  ];
  noc.put(noc.get("automations"), `run-${run.id}`, -run.id, run, () => {
    if (noc.wallboard) return noc.element("li", {}, ...parts());
    const button = noc.button({ "aria-haspopup": "dialog" }, "", () => noc.open(run.id));
    button.append(...parts());
    return noc.element("li", {}, button);
  });
  noc.count();
  document.dispatchEvent(new CustomEvent("run", { detail: run }));
};

noc.count = () => {
  if (noc.loading) return;
  const rows = (selector) => document.querySelectorAll(selector).length;
  const say = (id, text) => { if (noc.get(id)) noc.get(id).textContent = text; };
  const unsolved = '#incidents tr:not([data-status="resolved"])';
  noc.get("counts").replaceChildren(...Object.entries(SEVERITIES).map(([name, mark]) => {
    const count = rows(`${unsolved}[data-severity="${name}"]`);
    return noc.element("li", { "data-tone": name, ...(count ? { "data-any": "" } : {}) },
      noc.element("b", {}, `${mark} ${count}`), " ", name);
  }));
  const [up, degraded, down] = Object.keys(MARKS).map((status) =>
    rows(`#servers [data-status="${status}"]`));
  say("incidents-summary",
    `${rows(unsolved)} open, ${rows("#incidents tr[data-waiting]")} waiting for somebody`);
  say("network-summary", `${up} up · ! ${degraded} degraded · ✕ ${down} down`);
  say("automations-summary", `${rows('#automations [data-tone="warning"]')} running`);
};

// What the page says about itself.

noc.state = (state, text = state) => {
  if (noc.get("state").textContent === text) return;
  noc.get("state").dataset.state = state;
  noc.get("state").textContent = text;
};

noc.banner = (name, tone, text, ...actions) => {
  const old = noc.get(`banner-${name}`);
  if (old?.dataset.text === text) return;
  const made = text === null ? [] : [
    noc.element("p", { id: `banner-${name}`, "data-tone": tone, "data-text": text },
      noc.element("span", {}, text), ...actions)];
  if (old) old.replaceWith(...made);
  else noc.get("banners").append(...made);
};

noc.logIn = () => noc.element("a", { href: `/login?next=${location.pathname}` }, "Log in");

// Say that the widgets show what the server has; those nobody says it of become stale.
noc.confirm = (names) => {
  for (const name of names) noc.SOURCES[name].seen = Date.now();
};

noc.judge = () => {
  for (const [name, { seen }] of Object.entries(noc.SOURCES)) {
    const section = document.querySelector(`[data-source="${name}"]`);
    const stale = seen !== null && Date.now() - seen > noc.patience;
    if (stale === "stale" in section.dataset) continue;
    section.toggleAttribute("data-stale", stale);
    section.querySelector(".stale").textContent = stale ? `⚠ stale: as of ${noc.time(seen)}` : "";
  }
};

// What is asked of the server.

noc.SOURCES = {
  servers: { draw: noc.server, id: (row) => `server-${row.name}`, all: "#servers span" },
  incidents: { draw: noc.incident, id: (row) => `incident-${row.id}`, all: "#incidents tr" },
  logs: { draw: noc.line, id: (row) => `line-${row.id}`, all: "#log li" },
  automations: { draw: noc.run, id: (row) => `run-${row.id}`, all: "#automations li" },
};
for (const [name, source] of Object.entries(noc.SOURCES)) {
  source.seen = null;
  // A role has the widgets it may see.
  if (!document.querySelector(`[data-source="${name}"]`)) delete noc.SOURCES[name];
}

noc.fetch = async (path, options) => {
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const said = answer.headers.get("Content-Type") === "application/json" ? await answer.json() : {};
  throw Object.assign(new Error(said.error ?? `${path} answered ${answer.status}`),
    { status: answer.status, said });
};

noc.draw = (name, rows) => {
  const { draw, id, all } = noc.SOURCES[name];
  const ids = new Set(rows.map(id));
  noc.loading = true;
  for (const shown of document.querySelectorAll(all)) if (!ids.has(shown.id)) shown.remove();
  rows.forEach(draw);
  noc.loading = false;
};

// Draw what can be had; fail with the first of what went wrong, once all is tried.
noc.load = async () => {
  const names = Object.keys(noc.SOURCES);
  const answers = await Promise.allSettled(names.map((name) => noc.fetch(`/api/${name}`)));
  const had = names.filter((_, index) => answers[index].status === "fulfilled");
  names.forEach((name, index) => {
    if (answers[index].status === "fulfilled") noc.draw(name, answers[index].value);
  });
  noc.confirm(had);
  noc.count();
  if (had.length === names.length) noc.drawn = true;
  else throw answers.find(({ status }) => status === "rejected").reason;
};

noc.poll = async (loaded = noc.load()) => {
  try {
    await loaded;
    noc.answered = Date.now();
    noc.state("polling", `polling every ${EVERY / 1000} s`);
    noc.banner("connection", "critical", null);
  } catch (error) {
    noc.state("reconnecting", "no answer");
    if (error.status === 401) {
      noc.banner("connection", "critical", "You are logged out.", noc.logIn());
    } else {
      noc.banner("connection", "critical", "The server does not answer; it is asked again.");
    }
  }
};

noc.tick = () => {
  noc.get("clock").textContent = noc.time(Date.now());
  noc.judge();
  noc.footer();
};

noc.footer = () => {
  if (!noc.answered) return;
  noc.get("connection").textContent = `last answer ${noc.ago(Date.now() - noc.answered)} ago`;
};

setInterval(() => noc.tick(), 1000);
noc.tick();
noc.polling = setInterval(() => noc.poll(), EVERY);
noc.loaded = noc.load();
noc.poll(noc.loaded);

// Whoever watches a wallboard does not touch it, and it is never to fall asleep.
if (noc.wallboard) {
  const stayAwake = () => navigator.wakeLock?.request("screen").catch(() => {});
  document.addEventListener("visibilitychange", stayAwake);
  stayAwake();
}
