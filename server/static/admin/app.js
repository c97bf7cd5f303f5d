// Puts the admin page together: the header, what keeps parts from working, an overview, and each part.

import { apiKey, forgetKey, whenAnswered } from "../studio/api.js";
import { keepFocus, watchFocus } from "../studio/focus.js";
import { KeyForm } from "../studio/key.js";
import { many } from "../studio/words.js";
import { html, render } from "../vendor/htm-preact.js";
import { start } from "./asking.js";
import { Keys } from "./keys.js";
import { Queue } from "./queue.js";
import { change, state, subscribe } from "./store.js";
import { Usage } from "./usage.js";
import { machineTime, space } from "./words.js";
import { Workers } from "./workers.js";

const NOT_AN_ADMIN = "This key is not an admin's. Enter one with the scope admin.";

// --- drawing

const Header = () => html`<header tabindex="-1"><a class="brand" href="/admin"><img src="/static/icon.svg" alt="" width="28" height="28" /><h1>CoInteract <span>Admin</span></h1></a>
  <nav>${apiKey() && !state.keyNeeded && html`<button type="button" class="link" onClick=${() => { forgetKey(); location.reload(); }}>Forget the key</button>`}<a href="/">Studio</a><a href="/docs">API</a></nav></header>`;

const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

/** Each part in a number. What is not known yet is a dash. */
function Overview() {
  const [workers, queues, owners] = [state.workers?.data, state.queues?.data, state.owners?.data];
  const tiles = [
    ["Workers ready", workers && `${workers.filter((one) => one.ready && !one.problem && !one.draining).length} of ${workers.length}`],
    ["Videos being made", workers && workers.filter((one) => one.job).length],
    ["Videos waiting", queues && sum(queues, (one) => one.waiting)],
    ["Machine time, 24 h", owners && machineTime(sum(owners, (one) => one.gpu_seconds_24h))],
    ["Stored", owners && space(sum(owners, (one) => one.stored_bytes + one.files_bytes))],
  ];
  return html`<dl class="tiles">${tiles.map(([name, value]) => html`<div class="card"><dt>${name}</dt><dd>${value ?? "–"}</dd></div>`)}</dl>`;
}

/** Those that no worker tells beside its name. */
function Problems() {
  const told = new Set(state.workers?.data.map((worker) => worker.problem));
  const problems = state.workers?.problems.filter((problem) => !told.has(problem)) ?? [];
  if (!problems.length) return null;
  return html`<section class="card problems" aria-label="Problems"><h2>${many(problems.length, "problem")}</h2>
    <ul>${problems.map((problem) => html`<li class="error">${problem}</li>`)}</ul></section>`;
}

function Page() {
  if (state.keyNeeded) return html`<${Header} /><${KeyForm} start=${start} complaint=${state.keyNeeded === "scope" ? NOT_AN_ADMIN : undefined} />`;
  return html`<${Header} />
    ${!state.online && html`<p class="banner" role="status">No connection to the server. What you see is from before.</p>`}
    <main class="admin" tabindex="-1"><${Problems} /><${Overview} /><${Workers} /><${Queue} /><${Keys} /><${Usage} /></main>
    <p class="visually-hidden" role="status" id="said">${state.said}</p>`;
}

const root = document.querySelector("#page");
function draw() {
  render(html`<${Page} />`, root);
  keepFocus();
}

whenAnswered((online) => { if (online !== state.online) change((now) => { now.online = online; }); });
watchFocus();
subscribe(draw);
draw();
start();
