// Polling and streams side by side: what viewers cost, and what each page shows when.

const { client, prefix, position, account, password, seconds: lasts } = document.body.dataset;
const { connect } = await import(client);

const seconds = Number(lasts) || 20;
const POLL = 5000;
const SHOWN = 8;
const SPAN = 120;
const KEPT = 5000;
// An event may be on its way for as long, after the state is live again, before it is missing.
const GRACE = Math.min(2000, Math.max(1000, seconds * 100));
const DECADES = [1, 10, 100, 1000, 10_000];
const NAMES = ["requests", "queries", "bytes", "latency"];

const get = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const time = (at) => new Date(at).toLocaleTimeString("en-GB");
const json = async (path, body) => {
  const answer = await fetch(path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
};
const painted = () => new Promise((resolve) => {
  // A window nobody sees paints nothing.
  if (document.hidden) setTimeout(resolve);
  else requestAnimationFrame(() => setTimeout(resolve));
});

// Charts.

const series = { times: [] };
for (const kind of ["polling", "streams"]) {
  for (const name of NAMES) series[`${kind}-${name}`] = [];
}
const charts = new Map();

const round = (value) => {
  if (value === null || value === undefined) return "–";
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString("en") : value.toFixed(1);
};

const drawCharts = () => {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  const font = "11px system-ui, sans-serif";
  for (const box of all("[data-chart]")) {
    const name = box.dataset.chart;
    charts.get(name)?.destroy();
    const line = (kind) => ({
      stroke: colour(kind), width: 2, spanGaps: true, points: { show: false },
      ...(kind === "streams" ? {} : { dash: [6, 3] }),
    });
    const logarithmic = name === "latency";
    charts.set(name, new uPlot({
      width: box.clientWidth, height: box.clientHeight, legend: { show: false }, cursor: { show: false },
      series: [{}, line("polling"), line("streams")],
      scales: { y: logarithmic ? { distr: 3, range: [1, 10_000] } : { range: (_, __, most) => [0, most * 1.1 || 1] } },
      axes: [
        { ...axis, font, size: 26, space: 70, values: (_, at) => at.map((t) => time(t * 1000)) },
        {
          ...axis, font, size: 46, values: (_, at) => at.map(round),
          ...(logarithmic ? { splits: () => DECADES, filter: () => DECADES } : { space: 34 }),
        },
      ],
    }, data(name), box));
  }
};

const data = (name) => [series.times, series[`polling-${name}`], series[`streams-${name}`]];

const plot = (at, values) => {
  series.times.push(at);
  for (const [key, value] of Object.entries(values)) series[key].push(value);
  while (series.times[0] < at - SPAN) for (const column of Object.values(series)) column.shift();
  for (const [name, chart] of charts) chart.setData(data(name));
  for (const [key, value] of Object.entries(values)) {
    if (value !== null) document.querySelector(`[data-now="${key}"]`).textContent = round(value);
  }
  save();
};

// What streams spare, of the last half minute.
const save = () => {
  const recent = (key) => series[key].slice(-30).filter((value) => value !== null);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  for (const name of NAMES) {
    // One that was held back by a fault says little of the others.
    const typical = name === "latency" ? median : mean;
    const [before, after] = [typical(recent(`polling-${name}`)), typical(recent(`streams-${name}`))];
    if (!(before > 0) || after === null || Number.isNaN(after)) continue;
    document.querySelector(`[data-saved="${name}"]`).textContent = name === "latency"
      ? `${round(Math.max(1, before / Math.max(after, 1)))} ×` : `${Math.round(100 * (1 - after / before))} %`;
  }
};

// Of viewers: what they cost since the last report.
let reported = null;
const delays = { polling: [], streams: [] };
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? null;

const sample = (report) => {
  const before = reported;
  reported = report;
  const between = before && report.at - before.at;
  if (!between || between < 0.2) return;
  const values = {};
  for (const kind of ["polling", "streams"]) {
    for (const name of ["requests", "queries", "bytes"]) {
      const rate = (report[kind][name] - before[kind][name]) / between;
      values[`${kind}-${name}`] = name === "bytes" ? rate / 1000 : rate;
    }
    values[`${kind}-latency`] = median(delays[kind]);
    delays[kind] = [];
  }
  plot(report.at, values);
};

// The two ways to be told of a line of the log.

// By the stream, and by the stream or a fetch after a gap.
const delivered = new Set();
const seen = new Set();
const counted = { events: 0, doubled: 0, missing: 0, behind: 0, fetched: 0 };
window.nocCounted = counted;
let first = null;

const show = async (kind, lines) => {
  const list = get(`${kind}-log`);
  const made = lines.map((line) => element("li", {},
    element("time", {}, time(line.at)),
    element("span", { class: "source" }, line.source),
    element("span", { class: "text" }, line.text),
    element("span", { class: "late" })));
  list.prepend(...made.reverse());
  while (list.children.length > SHOWN) list.lastElementChild.remove();
  await painted();
  const now = Date.now();
  lines.forEach((line, index) => {
    const late = now - Date.parse(line.at);
    delays[kind].push(late);
    made[made.length - 1 - index].lastElementChild.textContent = `${late.toLocaleString("en")} ms`;
  });
};

const note = (line) => {
  first ??= line.id;
  if (delivered.has(line.id)) counted.doubled += 1;
  for (const ids of [delivered, seen]) {
    ids.add(line.id);
    if (ids.size > KEPT) ids.delete(ids.values().next().value);
  }
  counted.events += 1;
};

// What polling finds in the database tells whether the stream has brought it all.
let polled = 0;
const audit = (lines) => {
  const due = lines.filter((line) => first !== null && line.id >= first && !seen.has(line.id));
  const { name, since } = stream.snapshot();
  const settled = name === "live" && !refetching && Date.now() - since > GRACE;
  const old = due.filter((line) => Date.now() - Date.parse(line.at) > GRACE);
  counted.behind = due.length;
  counted.missing = settled ? old.length : counted.missing;
  counted.audited = settled ? Date.now() : counted.audited;
  count();
};

const count = () => {
  const { events, doubled, missing, behind, fetched } = counted;
  get("counter").textContent = `${events} events · ${behind} behind · ${missing} missing · ` +
    `${doubled} doubled · ${fetched} fetched again`;
  get("counter").toggleAttribute("data-wrong", missing + doubled > 0);
};

const poll = async () => {
  try {
    const lines = (await json("/before/api/logs")).reverse();
    const news = polled ? lines.filter((line) => line.id > polled) : lines.slice(-SHOWN);
    const known = polled;
    polled = lines.at(-1)?.id ?? polled;
    get("polling-state").textContent = `every ${POLL / 1000} s, last at ${time(Date.now())}`;
    audit(lines);
    if (known) show("polling", news);
  } catch {
    get("polling-state").textContent = "no answer";
  }
};

// The stream, over a line of its own.

const line = crypto.randomUUID?.().replaceAll("-", "") ??
  Array.from({ length: 16 }, () => Math.floor(Math.random() * 16).toString(16)).join("");
let refetching = false;

const refetch = async () => {
  refetching = true;
  try {
    for (const row of (await json("/api/logs")).reverse()) {
      if (first === null || row.id < first || seen.has(row.id)) continue;
      seen.add(row.id);
      counted.fetched += 1;
    }
    refetching = false;
    enter(stream.snapshot().name);
  } catch {
    setTimeout(refetch, 1000);
  }
  count();
};

const stream = connect({
  url: `${lasts > 0 ? `/line/${line}` : ""}${prefix}`,
  since: position,
  share: false,
  types: ["log.added", "compare.*"],
  openTimeout: Math.max(1500, seconds * 200),
  maxDelay: seconds * 250,
  onState: ({ name }) => enter(name),
  onGap: () => {
    enter("gap");
    refetch();
  },
});
window.nocStream = stream;
stream.on("log.added", (row) => {
  note(row);
  show("streams", [row]);
  count();
});
stream.on("compare.sample", sample);

// How many viewers there are to be.

const slider = get("viewers");
const want = () => json("/compare/viewers", { viewers: Number(slider.value) }).catch(() => {});
const say = () => { get("viewers-said").textContent = slider.value; };
slider.addEventListener("input", say);
slider.addEventListener("change", want);
stream.on("compare.viewers", ({ viewers }) => {
  if (viewers === undefined || document.activeElement === slider) return;
  slider.value = viewers;
  say();
});

// Breaking it, and watching it recover.

let breaking = null;

function enter(name) {
  if (name !== "gap") {
    get("state").dataset.state = name;
    get("state").textContent = name;
  }
  if (!breaking) return;
  breaking.left ||= name !== "live";
  phase(breaking, name);
}

const phase = (entry, name) => {
  const now = performance.now();
  stretch(entry);
  if (entry.phases.at(-1)?.name === name) return;
  const made = element("span", { "data-state": name, title: name }, name);
  entry.phases.push({ name, from: now, made });
  entry.bar.append(made);
};

// Each phase is as wide as it is long.
const stretch = (entry) => {
  const now = performance.now();
  entry.phases.forEach(({ from, made }, index) => {
    const until = entry.phases[index + 1]?.from ?? now;
    made.style.flexGrow = String(Math.max(1, until - from));
  });
};

const begin = (fault, text) => {
  const bar = element("span", { class: "bar" });
  const outcome = element("span", { class: "outcome" }, "…");
  const entry = {
    fault, bar, outcome, phases: [], left: false, begun: performance.now(), clock: Date.now(),
    before: { ...counted }, item: element("li", { "data-fault": fault }, element("b", {}, text), bar, outcome),
  };
  get("timeline").prepend(entry.item);
  while (get("timeline").children.length > 8) get("timeline").lastElementChild.remove();
  return entry;
};

const settle = (entry) => {
  const { name, since } = stream.snapshot();
  stretch(entry);
  const took = (performance.now() - entry.begun) / 1000;
  entry.outcome.textContent = `${took.toFixed(1)} s, ${counted.behind} events behind`;
  if (!entry.left || name !== "live" || refetching) return;
  // Live again; now the database says whether all of it came.
  if (!(counted.audited > Math.max(since, entry.clock) + GRACE)) {
    poll();
    return;
  }
  const back = entry.phases.findLast((one) => one.name === "live");
  const after = (((back?.from ?? entry.begun) - entry.begun) / 1000).toFixed(1);
  const missing = counted.missing;
  const doubled = counted.doubled - entry.before.doubled;
  const fetched = counted.fetched - entry.before.fetched;
  const again = fetched ? ` · ${fetched} fetched again` : "";
  entry.outcome.replaceChildren(element("b", {}, `live again after ${after} s`),
    ` · ${missing} missing · ${doubled} doubled${again}`);
  entry.outcome.toggleAttribute("data-wrong", missing + doubled > 0);
  entry.item.dataset.done = "";
  breaking = null;
  for (const button of all("[data-fault]:is(button)")) button.disabled = false;
};

// The account's own logout; somebody logs in again a little later, as in another window.
const logOutAndIn = async () => {
  await fetch("/logout", { method: "POST", redirect: "manual" });
  setTimeout(() => fetch("/login", {
    method: "POST",
    body: new URLSearchParams({ name: account, password }),
    redirect: "manual",
  }), seconds * 300);
};

const act = async (button) => {
  const { fault } = button.dataset;
  for (const other of all("[data-fault]:is(button)")) other.disabled = true;
  breaking = begin(fault, button.textContent);
  phase(breaking, stream.snapshot().name);
  try {
    if (fault === "logout") await logOutAndIn();
    else await json("/compare/break", { line, fault });
  } catch (error) {
    // A worker that is killed may not have answered.
    if (fault !== "kill") breaking.outcome.textContent = String(error.message);
  }
};

for (const button of all("button[data-fault]")) button.addEventListener("click", () => act(button));

drawCharts();
new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["data-theme"] });
addEventListener("resize", drawCharts);
say();
poll();
setInterval(poll, POLL);
setInterval(want, POLL);
setInterval(() => breaking && settle(breaking), 500);
