"use strict";
const EVERY = 1000, STALE = 2;
const byId = (id) => document.getElementById(id);
const stream = byId("stream");
let streaming = false, number = 0, known = "", failed = "[]";

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(words, how) {
  byId("state").textContent = words;
  byId("state").className = how;
}

function duration(seconds) {
  const whole = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function milliseconds(value) {
  if (value === undefined) return "";
  return value.toFixed(value < 10 ? 2 : 1);
}

function watch() {
  number += 1;
  streaming = true;
  stream.src = `/stream?${number}`;
}
stream.addEventListener("error", () => { streaming = false; });

function share(part, whole) {
  return part && whole ? `${(100 * part / whole).toFixed(part * 10 < whole ? 2 : 0)} %` : "";
}

function showFrames(status) {
  const counts = [
    ["frames/s", status.per_second === null ? "–" : status.per_second.toFixed(1)],
    ["received", status.frames.received], ["segmented", status.frames.segmented],
    ["dropped", status.frames.dropped, share(status.frames.dropped, status.frames.received)],
    ["missed", status.frames.missed],
    ["reconnects", status.frames.reconnects], ["running for", duration(status.seconds)],
  ];
  byId("frames").replaceChildren(...counts.map(([name, value, of]) => {
    const box = document.createElement("div");
    const shown = typeof value === "number" ? value.toLocaleString("en") : value;
    box.append(element("dt", name), element("dd", shown));
    if (of) box.lastChild.append(" ", element("small", of));
    return box;
  }));
}

function showLatency(latency) {
  const stages = Object.keys(latency);
  const names = [...new Set(stages.flatMap((s) => Object.keys(latency[s].percentiles)))];
  names.sort((a, b) => a - b);
  const head = document.createElement("tr");
  head.append(...["stage", ...names.map((n) => `p${n}`), "max"].map((text) => {
    const cell = element("th", text);
    cell.scope = "col";
    return cell;
  }));
  byId("latency").tHead.replaceChildren(head);
  byId("latency").tBodies[0].replaceChildren(...stages.map((stage) => {
    const row = element("tr", "", stage === "total" ? "total" : "");
    const name = element("th", stage.replaceAll("_", " "));
    name.scope = "row";
    const one = latency[stage];
    row.append(name, ...names.map((n) => element("td", milliseconds(one.percentiles[n]))));
    row.append(element("td", milliseconds(one.max)));
    return row;
  }));
}

function showOnce(status) {
  const text = JSON.stringify([status.about, status.classes]);
  if (text === known) return;
  known = text;
  byId("about").textContent = Object.values(status.about).join(" · ");
  byId("classes").replaceChildren(...status.classes.map(({ name, color }) => {
    const item = element("li", name);
    item.style.setProperty("--class", `rgb(${color.join(",")})`);
    return item;
  }));
}

function showWatch(state) {
  const shown = byId("watch");
  shown.hidden = state === null;
  if (state === null) return;
  const farthest = `${state.column} is at ${Math.round(100 * state.ratio)} % of its limit`;
  const text = state.alarm === null ? `Looks as it did: ${farthest}` : state.alarm;
  if (shown.textContent !== text) shown.textContent = text;
  shown.className = state.alarm === null ? "" : "bad";
  shown.role = state.alarm === null ? "note" : "alert";
}

async function refresh() {
  try {
    const answer = await fetch("/status.json", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(String(answer.status));
    const status = await answer.json();
    showOnce(status);
    showFrames(status);
    showLatency(status.latency_ms);
    showWatch(status.watch);
    const failures = JSON.stringify(status.failures);
    if (failures !== failed) {
      failed = failures;
      byId("failures").replaceChildren(...status.failures.map((text) => element("li", text)));
    }
    if (status.since_last === null) say("waiting for the first frame", "");
    else if (status.since_last > STALE) say(`no frame for ${Math.round(status.since_last)} s`, "bad");
    else say("running", "good");
    if (!streaming) watch();
  } catch {
    say("no answer: the run has ended, or the connection is lost", "bad");
    streaming = false;
  }
  setTimeout(refresh, EVERY);
}
refresh();
