// The dashboard of a legacy app: it draws what the JSON endpoints say, and asks every 5 s.
"use strict";

const SEVERITIES = { critical: "▲", major: "◆", minor: "■", warning: "●" };
const STATUSES = { open: "○", escalated: "⇧", resolved: "✓" };
const LEVELS = { error: "critical", warning: "minor", info: "info" };
const RUNS = { running: ["warning", "▶"], succeeded: ["good", "✓"], failed: ["critical", "✕"] };
const MARKS = { up: "", degraded: "!", down: "✕" };
const KINDS = ["core", "edge", "sw", "srv"];
const KEPT = 60;
// Rows are sorted by number, newest first; the resolved ones come after all others.
const RESOLVED = 1e12;

const noc = { drawn: false, loading: false };

noc.get = (id) => document.getElementById(id);

noc.element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

noc.time = (text) => new Date(text).toLocaleTimeString("en-GB");

// Put the row where it belongs, unless it is there already: a poll that brings nothing new
// must neither flash nor take the focus from a button.
noc.put = (list, id, rank, row, make) => {
  const text = JSON.stringify(row);
  const old = noc.get(id);
  if (old?.row === text) return;
  const made = Object.assign(make(), { id, rank, row: text });
  if (noc.drawn) made.classList.add("new");
  old?.remove();
  const next = [...list.children].find((other) => other.rank > rank);
  list.insertBefore(made, next ?? null);
  while (list.children.length > KEPT) list.lastElementChild.remove();
};

noc.incident = (incident) => {
  const rank = (incident.status === "resolved" ? RESOLVED : 0) - incident.id;
  noc.put(noc.get("incidents"), `incident-${incident.id}`, rank, incident, () => {
    const owner = noc.element("td", incident.comment ? { title: incident.comment } : {});
    if (incident.acknowledged_by) {
      owner.append(`✓ ${incident.acknowledged_by}`);
    } else if (incident.status !== "resolved") {
      const label = `Acknowledge ${incident.server}: ${incident.title}`;
      const button = noc.element("button", { type: "button", "aria-label": label }, "Acknowledge");
      button.addEventListener("click", () => noc.acknowledge(incident.id, button));
      owner.append(button);
    }
    const row = noc.element("tr", {},
      noc.element("td", { class: "severity", "data-tone": incident.severity },
        noc.element("b", {}, SEVERITIES[incident.severity]), incident.severity),
      noc.element("td", { class: "device" }, incident.server),
      noc.element("td", { class: "title" }, incident.title),
      noc.element("td", { class: "status" }, `${STATUSES[incident.status]} ${incident.status}`),
      noc.element("td", { class: "time" }, noc.time(incident.opened_at)),
      owner);
    Object.assign(row.dataset, { status: incident.status, severity: incident.severity });
    return row;
  });
  noc.count();
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

noc.line = (line) => noc.put(noc.get("log"), `line-${line.id}`, -line.id, line, () =>
  noc.element("li", { "data-tone": LEVELS[line.level] },
    noc.element("time", {}, noc.time(line.at)),
    noc.element("span", { class: "level" }, line.level),
    noc.element("span", { class: "source" }, line.source),
    noc.element("span", { class: "text" }, line.text)));

noc.run = (run) => {
  const [tone, mark] = RUNS[run.status];
  noc.put(noc.get("automations"), `run-${run.id}`, -run.id, run, () => noc.element("li", {},
    noc.element("span", { class: "state", "data-tone": tone }, `${mark} ${run.status}`),
    noc.element("span", {}, run.name),
    noc.element("span", { class: "device" }, run.server),
    noc.element("time", {}, noc.time(run.finished_at ?? run.started_at))));
  noc.count();
};

noc.count = () => {
  if (noc.loading) return;
  const rows = (selector) => document.querySelectorAll(selector).length;
  const unsolved = '#incidents tr:not([data-status="resolved"])';
  noc.get("counts").replaceChildren(...Object.entries(SEVERITIES).map(([name, mark]) => {
    const count = rows(`${unsolved}[data-severity="${name}"]`);
    return noc.element("li", { "data-tone": name, ...(count ? { "data-any": "" } : {}) },
      noc.element("b", {}, `${mark} ${count}`), name);
  }));
  const [up, degraded, down] = Object.keys(MARKS).map((status) =>
    rows(`#servers [data-status="${status}"]`));
  noc.get("incidents-summary").textContent =
    `${rows(unsolved)} open, ${rows(`${unsolved} button`)} waiting for somebody`;
  noc.get("network-summary").textContent = `${up} up · ${degraded} degraded · ${down} down`;
  noc.get("automations-summary").textContent =
    `${rows('#automations [data-tone="warning"]')} running`;
};

noc.state = (state, text = state) => {
  if (noc.get("state").textContent === text) return;
  noc.get("state").dataset.state = state;
  noc.get("state").textContent = text;
};

noc.SOURCES = {
  servers: [noc.server, (row) => `server-${row.name}`, "#servers span"],
  incidents: [noc.incident, (row) => `incident-${row.id}`, "#incidents tr"],
  logs: [noc.line, (row) => `line-${row.id}`, "#log li"],
  automations: [noc.run, (row) => `run-${row.id}`, "#automations li"],
};

noc.fetch = async (path, options) => {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
};

noc.load = async () => {
  const names = Object.keys(noc.SOURCES);
  const answers = await Promise.all(names.map((name) => noc.fetch(`/api/${name}`)));
  noc.loading = true;
  names.forEach((name, index) => {
    const [draw, id, all] = noc.SOURCES[name];
    const ids = new Set(answers[index].map(id));
    for (const shown of document.querySelectorAll(all)) if (!ids.has(shown.id)) shown.remove();
    answers[index].forEach(draw);
  });
  noc.loading = false;
  noc.count();
  noc.drawn = true;
};

noc.acknowledge = async (id, button) => {
  button.disabled = true;
  try {
    noc.incident(await noc.fetch(`/api/incidents/${id}/acknowledge`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ who: noc.get("operator").value.trim() || "operator" }),
    }));
  } catch {
    button.textContent = "Try again";
    button.disabled = false;
  }
};

noc.poll = (loaded = noc.load()) => loaded.then(
  () => noc.state("polling", "polling every 5 s"),
  () => noc.state("reconnecting", "no answer"));

const tick = () => { noc.get("clock").textContent = noc.time(Date.now()); };
setInterval(tick, 1000);
tick();
noc.polling = setInterval(() => noc.poll(), 5000);
noc.loaded = noc.load();
noc.poll(noc.loaded);
